"""
A hook for LiteLLM's proxy: `pip install tokforget[litellm]`. Without the proxy, use [`MessageCompressor`], which does
not need LiteLLM: `litellm.completion(model, MessageCompressor(rate=0.5)(messages))`.

Write this file next to the proxy's configuration, and set `callbacks: my_hooks.shorten` in its `litellm_settings`:

    from tokforget.integrations.litellm import ForgetMessageHook

    shorten = ForgetMessageHook(rate=0.5, stable=True)
"""

import asyncio
import logging
from pathlib import Path

from litellm.integrations.custom_logger import CustomLogger

from tokforget.compression.compressor import Compressor
from tokforget.integrations.messages import MessageCompressor


logger = logging.getLogger(__name__)


class ForgetMessageHook(CustomLogger):
    """
    Shortens the messages of every request before it is sent. A request whose messages cannot be read is sent
    unchanged, with a line in the log.

    Args:
        compressor (`Compressor`, `str` or `Path`, *optional*), **options: As for [`MessageCompressor`].
    """

    def __init__(self, compressor: Compressor | str | Path | None = None, **options):
        super().__init__()
        self.shorten = MessageCompressor(compressor, **options)

    async def async_pre_call_hook(self, user_api_key_dict, cache, data: dict, call_type: str) -> dict:
        """Shorten the messages of a request, in another thread, so that the proxy is not blocked."""
        if not isinstance(data.get("messages"), list):
            return data
        system = {"system": data["system"]} if data.get("system") else {}
        try:
            result = await asyncio.to_thread(self.shorten.compress, data["messages"], **system)
        except (ValueError, TypeError) as error:
            logger.warning("messages are sent unchanged: %s", error)
            return data
        logger.info("%d -> %d tokens", result.original_tokens, result.compressed_tokens)
        return data | {"messages": result.messages}

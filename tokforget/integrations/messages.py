"""A function `messages -> messages`, for gateways and agent frameworks that call a hook before a request."""

from pathlib import Path

from tokforget.compression.compressor import Compressor
from tokforget.compression.messages import CompressedMessages
from tokforget.integrations._common import without_other_budgets


class MessageCompressor:
    """
    Shortens the messages of a request, a list of OpenAI's or Anthropic's dictionaries, and returns new ones.

    If a budget cannot be met, the messages are as short as possible and a warning is given, because a hook should not
    let a request fail.

    Args:
        compressor (`Compressor`, `str` or `Path`, *optional*): A compressor, or its folder or Hub id; the packaged
            model by default.
        **options: As in `Compressor.compress_messages`: a budget, `stable`, `question`, `unit`, `roles`, ...

    Raises:
        `ValueError`, `TypeError`: If the options are wrong; this is checked before the first request.

    >>> shorten = MessageCompressor(rate=0.5, stable=True)
    >>> shorten([{"role": "user", "content": "When does the ferry leave?"}])
    [{'role': 'user', 'content': 'When does the ferry leave?'}]
    """

    def __init__(self, compressor: Compressor | str | Path | None = None, **options):
        if not isinstance(compressor, Compressor):
            compressor = Compressor.from_pretrained(compressor)
        self.compressor, self.options = compressor, {"on_impossible": "warn"} | options
        self.compress([])

    def __call__(self, messages: list[dict], **options) -> list[dict]:
        """Shorten the messages; `options` override those of the constructor for this call."""
        return self.compress(messages, **options).messages

    def compress(self, messages: list[dict], **options) -> CompressedMessages:
        """As `__call__`, but returns [`CompressedMessages`] with counts and records."""
        kept = without_other_budgets(self.options, options)
        return self.compressor.compress_messages(messages, **kept | options)

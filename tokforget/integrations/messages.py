"""A hook `messages -> messages`, as gateways and agent frameworks call one before a request. Needs nothing."""

from pathlib import Path

from tokforget.compression.compressor import Compressor
from tokforget.compression.messages import CompressedMessages
from tokforget.integrations._common import without_other_budgets


class MessageCompressor:
    """
    Shortens the messages of a request, a list of OpenAI's or Anthropic's dictionaries, and returns new ones.

    A budget that cannot be met is a warning here, and the messages are as short as may be: a hook is no place for a request to fail.

    Args:
        compressor (`Compressor`, `str` or `Path`, *optional*): Or the folder or Hub id of one; the packaged model without.
        **options: As in `Compressor.compress_messages`: a budget, `stable`, `question`, `unit`, `roles`, ...

    Raises:
        `ValueError`, `TypeError`: If the options are wrong: now, rather than at the first request.

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
        """The messages; `options` are of this call."""
        return self.compress(messages, **options).messages

    def compress(self, messages: list[dict], **options) -> CompressedMessages:
        """The same with counts and records."""
        kept = without_other_budgets(self.options, options)
        return self.compressor.compress_messages(messages, **kept | options)

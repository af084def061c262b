"""A LangChain document compressor and transformer, and one for messages: `pip install tokforget[langchain]`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.documents import BaseDocumentCompressor, BaseDocumentTransformer, Document
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage
from langchain_core.prompt_values import PromptValue
from pydantic import Field

from tokforget.compression.compressor import Compressor
from tokforget.compression.results import counts
from tokforget.integrations._common import PREFIX, compress_documents, ready
from tokforget.integrations.messages import MessageCompressor


class ForgetDocumentCompressor(BaseDocumentCompressor, BaseDocumentTransformer):
    """
    Shortens retrieved documents, each to its own budget, or with `budget="corpus"` all to one budget, spent on the
    highest scores. Use it in a `ContextualCompressionRetriever` or a `DocumentCompressorPipeline`, or in a chain as
    `RunnableLambda(documents.transform_documents)`. A model that takes questions keeps the words that answer the
    query.

    Documents are copies; their metadata stay and get `tokforget_original_tokens`, `tokforget_compressed_tokens` and
    `tokforget_compression_rate`.

    Args:
        compressor (`Compressor`, `str` or `Path`, *optional*): A compressor, or its folder or Hub id; the packaged
            model by default.
        **options: As in `Compressor.compress`.

    >>> ForgetDocumentCompressor(target_tokens=1000, budget="corpus", unit="word")  # doctest: +SKIP
    """

    compressor: Any = Field(exclude=True, repr=False)
    options: dict[str, Any]

    def __init__(self, compressor: Compressor | str | Path | None = None, **options):
        super().__init__(compressor=ready(compressor, options), options=options)

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """Shorten each document; `kwargs` are options of `compress` for this call."""
        options = self.options | kwargs
        if isinstance(documents, Document | str) or not all(isinstance(document, Document) for document in documents):
            raise TypeError(
                "`documents` must be a list of LangChain's documents. For texts there is `Compressor.compress`."
            )
        results = compress_documents(self.compressor, [document.page_content for document in documents], options)
        return [
            document.model_copy(
                update={"page_content": result.text, "metadata": document.metadata | counts(result, PREFIX)}
            )
            for document, result in zip(documents, results)
        ]

    def compress_documents(self, documents: Sequence[Document], query: str, callbacks=None) -> list[Document]:
        """Shorten each document. Documents of which a common budget or a threshold leaves nothing are removed."""
        told = {"question": query} if query and self.compressor.takes_question else {}
        return [document for document in self.transform_documents(documents, **told) if document.page_content.strip()]


class ForgetMessageCompressor:
    """
    Shortens a list of messages on its way to a chat model: `prompt | ForgetMessageCompressor(rate=0.5).transform_messages | model`.

    See `Compressor.compress_messages` for the messages that are shortened. Messages are copies; ids, tool calls and
    metadata stay.

    Args:
        compressor (`Compressor`, `str` or `Path`, *optional*): A compressor, or its folder or Hub id; the packaged
            model by default.
        **options: As for [`tokforget.integrations.messages.MessageCompressor`]: a budget, `stable`, `question`, `unit`, `roles`, ...
    """

    def __init__(self, compressor: Compressor | str | Path | None = None, **options):
        self.shorten = MessageCompressor(compressor, **options)

    def transform_messages(self, messages: Sequence[BaseMessage] | PromptValue) -> list[BaseMessage]:
        """All messages, some of them shortened; a prompt value gives its messages."""
        messages = messages.to_messages() if isinstance(messages, PromptValue) else list(messages)
        for place, message in enumerate(messages):
            if not isinstance(message, BaseMessage):
                raise TypeError(
                    f"Message {place} must be one of LangChain's, got a {type(message).__name__}. Dictionaries are for "
                    "`tokforget.integrations.messages.MessageCompressor`."
                )
        new = self.shorten([_as_dictionary(message) for message in messages])
        return [message.model_copy(update={"content": one["content"]}) for message, one in zip(messages, new)]


def _as_dictionary(message: BaseMessage) -> dict:
    """Role, content and tool calls in OpenAI's form."""
    role = {HumanMessage: "user", AIMessage: "assistant"}.get(
        next((kind for kind in (HumanMessage, AIMessage) if isinstance(message, kind)), None), message.type
    )
    role = message.role if isinstance(message, ChatMessage) else role.removesuffix("MessageChunk").lower()
    found = {"role": role, "content": message.content}
    # Anthropic's tool calls are in the content, and are repeated here.
    among = isinstance(message.content, list) and any(
        isinstance(part, dict) and part.get("type") == "tool_use" for part in message.content
    )
    calls = [] if among else getattr(message, "tool_calls", [])
    return found | {"tool_calls": [{"function": {"name": c["name"], "arguments": c["args"]}} for c in calls]}

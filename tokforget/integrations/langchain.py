"""A LangChain document compressor and transformer: `pip install tokforget[langchain]`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.documents import BaseDocumentCompressor, BaseDocumentTransformer, Document
from pydantic import Field

from tokforget.compression.compressor import Compressor
from tokforget.compression.results import counts
from tokforget.integrations._common import PREFIX, compress_documents, ready


class ForgetDocumentCompressor(BaseDocumentCompressor, BaseDocumentTransformer):
    """
    Shortens retrieved documents, each to its own budget or with `budget="corpus"` all to one, spent where the scores are
    highest. Goes into a `ContextualCompressionRetriever` or a `DocumentCompressorPipeline`, or into a chain as
    `RunnableLambda(documents.transform_documents)`. A model that takes questions keeps what answers the query first.

    Documents are copies; their metadata stay and get `tokforget_original_tokens`, `tokforget_compressed_tokens` and
    `tokforget_compression_rate`.

    Args:
        compressor (`Compressor`, `str` or `Path`, *optional*): Or the folder or Hub id of one; the packaged model without.
        **options: As in `Compressor.compress`.

    >>> ForgetDocumentCompressor(target_tokens=1000, budget="corpus", unit="word")  # doctest: +SKIP
    """

    compressor: Any = Field(exclude=True, repr=False)
    options: dict[str, Any]

    def __init__(self, compressor: Compressor | str | Path | None = None, **options):
        super().__init__(compressor=ready(compressor, options), options=options)

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """Each document shortened; `kwargs` are options of `compress` for this call."""
        options = self.options | kwargs
        results = compress_documents(self.compressor, [document.page_content for document in documents], options)
        return [
            document.model_copy(
                update={"page_content": result.text, "metadata": document.metadata | counts(result, PREFIX)}
            )
            for document, result in zip(documents, results)
        ]

    def compress_documents(self, documents: Sequence[Document], query: str, callbacks=None) -> list[Document]:
        """Each document shortened; only those of which a common budget or a threshold left nothing are not returned."""
        told = {"question": query} if query and self.compressor.takes_question else {}
        return [document for document in self.transform_documents(documents, **told) if document.page_content.strip()]

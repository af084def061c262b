"""A LlamaIndex node postprocessor: `pip install tokforget[llama-index]`."""

from pathlib import Path
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from tokforget.compression.compressor import Compressor
from tokforget.compression.results import CompressedText, counts
from tokforget.integrations._common import PREFIX, compress_documents, ready


class ForgetNodePostprocessor(BaseNodePostprocessor):
    """
    Shortens retrieved nodes, each to its own budget, or with `budget="corpus"` all to one budget. Order, scores, ids
    and relationships stay. A model that takes questions keeps the words that answer the query.

    Nodes are copies; their metadata get `tokforget_original_tokens`, `tokforget_compressed_tokens` and
    `tokforget_compression_rate`, which prompts and embeddings do not include. Nodes without text are not changed.

    Args:
        compressor (`Compressor`, `str` or `Path`, *optional*): A compressor, or its folder or Hub id; the packaged
            model by default.
        **options: As in `Compressor.compress`.

    >>> index.as_query_engine(node_postprocessors=[ForgetNodePostprocessor(rate=0.5)])  # doctest: +SKIP
    """

    compressor: Any = Field(exclude=True, repr=False)
    options: dict[str, Any]

    def __init__(self, compressor: Compressor | str | Path | None = None, **options):
        super().__init__(compressor=ready(compressor, options), options=options)

    @classmethod
    def class_name(cls) -> str:
        """LlamaIndex's name for this kind of component."""
        return "ForgetNodePostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        texts = [node.node.get_content(MetadataMode.NONE) for node in nodes]
        told = {}
        if query_bundle is not None and query_bundle.query_str and self.compressor.takes_question:
            told["question"] = query_bundle.query_str
        results = iter(compress_documents(self.compressor, [text for text in texts if text], self.options, **told))
        return [
            NodeWithScore(node=_shortened(node.node, next(results)), score=node.score) if text else node
            for node, text in zip(nodes, texts)
        ]


def _shortened(node: BaseNode, result: CompressedText) -> BaseNode:
    """A copy of the node with the compressed text."""
    node = node.model_copy(deep=True)
    node.set_content(result.text)
    facts = counts(result, PREFIX)
    node.metadata |= facts
    node.excluded_llm_metadata_keys = [*node.excluded_llm_metadata_keys, *facts]
    node.excluded_embed_metadata_keys = [*node.excluded_embed_metadata_keys, *facts]
    return node

"""
Arguments of the comparison on growing transcripts.

No `from __future__ import annotations` here: Transformers' parser reads the annotations as types.
"""

from dataclasses import dataclass, field

from tokforget.parsing import check_at_least
from tokforget.rates import check_rate


@dataclass
class TranscriptArguments:
    """Transcripts, rates and prices of the comparison."""

    corpus: str = field(
        metadata={
            "help": "Folder of .jsonl(.gz) files with `text` and `source`; transcripts are made of its test sources."
        }
    )
    kinds: list[str] = field(
        default_factory=lambda: ["dialogues", "tool_output"],
        metadata={
            "help": "Kinds of the corpus; texts with two speakers become turns, other texts become tool results."
        },
    )
    transcripts_per_kind: int = field(default=8, metadata={"help": "Transcripts of each kind."})
    transcript_tokens: int = field(default=6000, metadata={"help": "Least tokens of a complete transcript."})
    document_tokens: int = field(default=1200, metadata={"help": "Longer documents are left out."})
    rates: list[float] = field(
        default_factory=lambda: [0.5, 0.7], metadata={"help": "Mean rates to which every method is tuned; in (0, 1)."}
    )
    min_message_tokens: int = field(default=32, metadata={"help": "Shorter messages stay whole."})
    unit: str = field(
        default="auto", metadata={"help": "Unit that is kept or dropped as a whole: auto, word or token."}
    )
    model_path: str | None = field(default=None, metadata={"help": "Compressor; the packaged one by default."})
    input_price: float = field(default=1.0, metadata={"help": "Price of a million input tokens, in any currency."})
    cached_read_price: float = field(default=0.1, metadata={"help": "Price of a million tokens read from the cache."})
    cache_write_price: float = field(
        default=1.25, metadata={"help": "Price of a million tokens written to the cache."}
    )
    min_cached_tokens: int = field(default=1024, metadata={"help": "Shorter prompts are not cached."})
    reader_name_or_path: str | None = field(
        default=None, metadata={"help": "Also measure retention with this causal language model; none by default."}
    )
    lookups_per_transcript: int = field(default=4, metadata={"help": "Lookups of the reader in each transcript."})
    reader_transcripts: int = field(default=12, metadata={"help": "Transcripts of each kind for the reader."})
    reader_tokens: int = field(
        default=1500, metadata={"help": "Least tokens of these transcripts, which are shorter than the priced ones."}
    )
    output_dir: str = field(
        default="outputs/cache_cost", metadata={"help": "Folder for transcripts.json and report.md."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the choice of documents and lookups."})

    def __post_init__(self):
        for name in ("transcripts_per_kind", "transcript_tokens", "document_tokens", "lookups_per_transcript", "reader_transcripts",
                     "reader_tokens"):  # fmt: skip
            check_at_least(self, name, 1)
        check_at_least(self, "min_cached_tokens", 0)
        for rate in self.rates:
            check_rate(rate, "rates")
        for name in ("input_price", "cached_read_price", "cache_write_price"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be a price of at least 0, got {getattr(self, name)}.")

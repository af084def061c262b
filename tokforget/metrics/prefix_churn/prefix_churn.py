"""How much of a prompt changes when it is sent again in the next turn of a growing transcript."""

from tokforget import scoring
from tokforget.metrics import columns


class PrefixChurn(columns.ColumnMetric):
    inputs = ("prompts", "prompt_ids")
    options = ("tokenizer",)
    summary = "Share of a prompt that changes when it is sent again in the next turn of a growing transcript."

    def _compute(self, prompts=None, prompt_ids=None, tokenizer=None) -> dict:
        transcripts = columns.prompt_rows(self, prompts, prompt_ids, tokenizer, as_bytes=True)
        return {**scoring.prefix_churn(transcripts), "transcripts": len(transcripts)}

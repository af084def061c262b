"""How much of a turn's prompt is changed in the next turn, over growing transcripts."""

from tokforget import scoring
from tokforget.metrics import columns


class PrefixChurn(columns.ColumnMetric):
    inputs = ("prompts", "prompt_ids")
    options = ("tokenizer",)
    summary = "Share of a turn's prompt that is changed in the next turn, over growing transcripts."

    def _compute(self, prompts=None, prompt_ids=None, tokenizer=None) -> dict:
        transcripts = columns.prompt_rows(self, prompts, prompt_ids, tokenizer, as_bytes=True)
        return {**scoring.prefix_churn(transcripts), "transcripts": len(transcripts)}

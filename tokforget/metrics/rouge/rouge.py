"""ROUGE, computed by the rouge-score package: overlap of n-grams and longest common subsequences."""

from datasets import Features, List

from tokforget.metrics import columns
from tokforget.readers import words as text_scoring


_STATISTICS = ("fmeasure", "precision", "recall")


class Rouge(columns.ColumnMetric):
    inputs = ("predictions", "references")
    options = ("rouge_types", "use_aggregator", "use_stemmer", "statistic", "tokenize")
    summary = "ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum of restored or generated texts against references."
    source = """@inproceedings{lin-2004-rouge,
    title = "{ROUGE}: A Package for Automatic Evaluation of Summaries",
    author = "Lin, Chin-Yew",
    booktitle = "Text Summarization Branches Out",
    year = "2004",
    pages = "74--81",
}"""

    def add_batch(self, *, predictions=None, references=None, **others) -> None:
        """Add texts; a reference is a string or a list of strings."""
        if references is not None and not isinstance(references, str):
            references = [[reference] if isinstance(reference, str) else reference for reference in references]
        super().add_batch(predictions=predictions, references=references, **others)

    def _features(self, names):
        several = {"references": List(columns.COLUMNS["references"][0])} if "references" in names else {}
        return Features({**super()._features(names), **several})

    def _compute(
        self,
        predictions=None,
        references=None,
        rouge_types=text_scoring.ROUGE_TYPES,
        use_aggregator=True,
        use_stemmer=False,
        statistic="fmeasure",
        tokenize=None,
    ) -> dict:
        if predictions is None or references is None:
            raise columns.missing(self, ["predictions", "references"])
        if not all(references):
            raise ValueError(f"Text {[bool(r) for r in references].index(False)} has no reference.")
        if statistic not in (*_STATISTICS, "all"):
            raise ValueError(f"`statistic` must be one of {(*_STATISTICS, 'all')}, got {statistic!r}.")
        scores = text_scoring.rouge_scores(predictions, references, rouge_types, use_stemmer, tokenize)
        result = {}
        for kind in rouge_types:
            for name in _STATISTICS if statistic == "all" else (statistic,):
                values = [float(getattr(score[kind], name)) for score in scores]
                key = f"{kind}_{name}" if statistic == "all" else kind
                result[key] = text_scoring.mean(values) if use_aggregator else values
        return result

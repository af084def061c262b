"""Share of a passage's information about answers that is left for a frozen reader after compression."""

import numpy as np

from tokforget.metrics import columns
from tokforget.readers import benchmark, language_model, words


_BITS = ["bits_full", "bits_compressed", "bits_none"]
_TEXTS = ["prompt_full", "prompt_compressed", "prompt_none", "target"]


class ReaderRetention(columns.ColumnMetric):
    inputs = (*_BITS, *_TEXTS, "passage")
    options = ("model", "seed")
    summary = "Share of a passage's information about answers that is left for a reader after compression."

    def _compute(
        self,
        bits_full=None,
        bits_compressed=None,
        bits_none=None,
        prompt_full=None,
        prompt_compressed=None,
        prompt_none=None,
        target=None,
        passage=None,
        model=None,
        seed=0,
    ) -> dict:
        prompts = prompt_full, prompt_compressed, prompt_none
        if None not in (*prompts, target):
            if None not in (bits_full, bits_compressed, bits_none):
                raise ValueError(f"Give either {_BITS} or {_TEXTS}, not both.")
            if model is None:
                raise ValueError("To read prompts, pass `model` (a name, a folder, or a `Reader`), or give the bits.")
            reads = model if isinstance(model, language_model.Reader) else language_model.Reader.from_pretrained(model)
            full, compressed, none = (reads.bits(texts, target) for texts in prompts)
        elif None not in (bits_full, bits_compressed, bits_none):
            full, compressed, none = (np.array(bits) for bits in (bits_full, bits_compressed, bits_none))
        else:
            raise columns.missing(self, _BITS, _TEXTS)
        for bits in (full, compressed, none):
            columns.check_bits(bits)
        groups = passage or [str(place) for place in range(len(full))]
        interval = benchmark.retention_interval(compressed, full, none, groups, seed)
        value = benchmark.retention(compressed, full, none)
        return {
            "reader_retention": None if np.isnan(value) else value,
            "interval_low": None if interval is None else interval[0],
            "interval_high": None if interval is None else interval[1],
            "bits_full": words.mean(full),
            "bits_compressed": words.mean(compressed),
            "bits_none": words.mean(none),
            "texts": len(full),
            "passages": len(set(groups)),
        }

"""
Measurements on the decoded texts of a comparison: the rate after re-encoding; restored words, numbers and names;
ROUGE; and the classes of the kept words.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from tokforget.evaluation.comparison import Batch, Comparison
from tokforget.evaluation.vocabulary import WORD_CLASSES, Vocabulary
from tokforget.readers.words import (
    RestoredWords,
    count_restored_words,
    decode,
    decode_with_spans,
    encode,
    lost_by_mask,
    mean,
    rouge_scores,
)


class TextQuality:
    """
    Decodes and measures the texts of a comparison.

    Args:
        batches (`list`): The compared texts, as pairs of `input_ids` `(B, T)` and `valid` `(B, T)`.
        tokenizer (`PreTrainedTokenizerBase`): Decodes the texts and re-encodes the compressed strings.
        vocabulary ([`Vocabulary`]): Gives the word classes.
    """

    def __init__(self, batches: Sequence[Batch], tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary):
        self.tokenizer, self.classes = tokenizer, vocabulary.classes
        self.ids = [row[present].tolist() for ids, valid in batches for row, present in zip(ids.cpu(), valid.cpu())]
        self.texts = [decode_with_spans(ids, tokenizer) for ids in self.ids]

    def rows_of_texts(self, batched: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Split tensors `(B, T)`, one per batch, into the rows `(num_tokens,)` of the texts, without padding."""
        rows = [row for batch in batched for row in batch]
        return [row[: len(ids)] for row, ids in zip(rows, self.ids, strict=True)]

    def compressed_texts(self, comparison: Comparison) -> list[str]:
        """The compressed strings: the decoded kept tokens of each text."""
        masks = self.rows_of_texts(comparison.keep_masks)
        return [decode(torch.tensor(ids)[mask].tolist(), self.tokenizer) for ids, mask in zip(self.ids, masks)]

    def row(self, comparison: Comparison) -> dict:
        """
        `compression_rate_reencoded`; `words_restored`, `numbers_restored`, `names_restored` and `rougeL` of the
        restored texts against the original ones; and `kept_by_class`, the fraction kept of each word class's tokens.
        """
        masks, restored = self.rows_of_texts(comparison.keep_masks), self.rows_of_texts(comparison.restored)
        restored_texts = [decode(row.tolist(), self.tokenizer) for row in restored]
        words = RestoredWords()
        for (text, spans), mask, guess in zip(self.texts, masks, restored_texts):
            words += count_restored_words(text, guess, lost_by_mask(text, mask.tolist(), spans))
        reencoded = sum(len(ids) for ids in encode(self.compressed_texts(comparison), self.tokenizer))
        scores = rouge_scores(restored_texts, [text for text, _ in self.texts], ["rougeL"])
        return {
            "compression_rate_reencoded": reencoded / sum(map(len, self.ids)),
            **words.shares(),
            "rougeL": mean([score["rougeL"].fmeasure for score in scores]),
            "kept_by_class": self._kept_by_class(masks),
        }

    def _kept_by_class(self, masks: list[torch.Tensor]) -> dict[str, float]:
        classes, kept = self.classes[torch.cat([torch.tensor(ids) for ids in self.ids])], torch.cat(masks)
        present = [(i, name) for i, name in enumerate(WORD_CLASSES) if (classes == i).any()]
        return {name: float(kept[classes == i].float().mean()) for i, name in present}

    def samples(self, comparison: Comparison, vocabulary: Vocabulary, num_texts: int) -> list[dict]:
        """
        The first texts for the heat map: for each its `tokens`, whether each was `kept`, and the `restored` tokens.
        """
        masks, restored = self.rows_of_texts(comparison.keep_masks), self.rows_of_texts(comparison.restored)
        return [
            {
                "scorer": comparison.scorer,
                "rate": comparison.rate,
                "tokens": [vocabulary.texts[i] for i in ids],
                "kept": mask.tolist(),
                "restored": [vocabulary.texts[i] for i in row.tolist()],
                "exact": [a == b for a, b in zip(ids, row.tolist())],
            }
            for ids, mask, row in list(zip(self.ids, masks, restored))[:num_texts]
        ]

"""
How well a frozen language model, the reader, answers questions about a compressed text.

The prompt does not say that tokens were dropped, or where. Full context and no context are the two ends of each scale.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokforget.evaluation.scorers import Scorer, select
from tokforget.intervals import bootstrap_interval
from tokforget.packing import cut_blocks
from tokforget.readers.language_model import continuation_nll
from tokforget.readers.questions import Question
from tokforget.readers.words import decode, encode


FULL, NONE = "full_context", "no_context"
_PROMPT = "{context}\n\nQuestion: {question}\nAnswer:"


# -- continuing --------------------------------------------------------------------------------------------------------


# -- answering ---------------------------------------------------------------------------------------------------------
def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: SQuAD's comparison (Rajpurkar et al. 2016, 1606.05250)."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    return float(any(normalise_answer(prediction) == normalise_answer(answer) for answer in answers))


def answer_f1(prediction: str, answers: Sequence[str]) -> float:
    """Best harmonic mean of precision and recall over words, over the accepted answers."""
    return max(_f1(normalise_answer(prediction).split(), normalise_answer(answer).split()) for answer in answers)


def _f1(prediction: list[str], answer: list[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    common = (Counter(prediction) & Counter(answer)).total()
    return 2 * common / (len(prediction) + len(answer))


class Reading:
    """
    Reading comprehension of one set of questions by one reader.

    Args:
        questions (`list[Question]`): Questions whose prompt with the full context is too long for the reader are left
            out for every scorer, and counted in `too_long`.
        reader (`PreTrainedModel`), reader_tokenizer (`PreTrainedTokenizerBase`): The model that answers, and its
            tokenizer.
        max_new_tokens (`int`): Most tokens of a generated answer, which ends at a line break.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        reader: PreTrainedModel,
        reader_tokenizer: PreTrainedTokenizerBase,
        max_questions: int,
        max_new_tokens: int = 16,
        batch_size: int = 8,
    ):
        self.reader, self.tokenizer = reader, reader_tokenizer
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        limit = getattr(reader.config.get_text_config(), "max_position_embeddings", None)
        self.questions: list[Question] = []
        self.too_long = 0
        for question in questions:
            if len(self.questions) == max_questions:
                break
            needed = len(encode([self._prompt(question, question.context)], reader_tokenizer)[0]) + 1
            longest = max(
                len(ids) for ids in encode([f" {a}" for a in question.answers + question.options], self.tokenizer)
            )
            if limit is not None and needed + max(longest, max_new_tokens) > limit:
                self.too_long += 1
            else:
                self.questions.append(question)

    @staticmethod
    def _prompt(question: Question, context: str) -> str:
        return _PROMPT.format(context=context, question=question.question.strip()).lstrip()

    def row(self, contexts: Sequence[str], seed: int = 0) -> dict:
        """
        Answer every question from its context in `contexts`.

        Returns:
            `dict`: `exact_match` and `f1` of generated answers, `answer_bits` (bits of the likeliest accepted answer)
            and, for questions with options, `accuracy` of the likeliest option; each with its 95 % interval.
            `context_tokens` counts the tokens of the contexts.
        """
        prompts = [self._prompt(q, context) for q, context in zip(self.questions, contexts, strict=True)]
        generated = self._generate(prompts)
        bits = self._answer_bits(prompts)
        scores = {
            "exact_match": [exact_match(text, q.answers) for text, q in zip(generated, self.questions)],
            "f1": [answer_f1(text, q.answers) for text, q in zip(generated, self.questions)],
            "answer_bits": [min(of[a] for a in q.answers) for of, q in zip(bits, self.questions)],
        }
        if all(q.options for q in self.questions):
            scores["accuracy"] = [
                float(min(q.options, key=of.get) in q.answers) for of, q in zip(bits, self.questions)
            ]
        row = {
            "questions": len(self.questions),
            "left_out_too_long": self.too_long,
            "context_tokens": sum(map(len, encode(contexts, self.tokenizer))) / len(contexts),
        }
        for name, values in scores.items():
            row[name] = float(np.mean(values))
            row[f"{name}_interval"] = bootstrap_interval(np.array(values), np.ones(len(values)), seed)
        return row

    def _answer_bits(self, prompts: list[str]) -> list[dict[str, float]]:
        asked = [(at, text) for at, q in enumerate(self.questions) for text in dict.fromkeys(q.answers + q.options)]
        prompt_ids, answer_ids = (
            encode(prompts, self.tokenizer),
            encode([f" {text}" for _, text in asked], self.tokenizer),
        )
        scores = continuation_nll(
            self.reader, self.tokenizer, [prompt_ids[at] for at, _ in asked], answer_ids, self.batch_size
        )
        bits: list[dict[str, float]] = [{} for _ in prompts]
        for (at, text), value in zip(asked, scores.nll.tolist()):
            bits[at][text] = value
        return bits

    @torch.no_grad()
    def _generate(self, prompts: list[str]) -> list[str]:
        start = next(i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if i is not None)
        ids = [[start, *row] for row in encode(prompts, self.tokenizer)]
        answers: list[str] = [""] * len(ids)
        order = sorted(range(len(ids)), key=lambda at: -len(ids[at]))
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            width = max(len(ids[at]) for at in batch)
            rows = torch.tensor([[start] * (width - len(ids[at])) + ids[at] for at in batch])
            present = torch.tensor([[0] * (width - len(ids[at])) + [1] * len(ids[at]) for at in batch])
            out = self.reader.generate(
                input_ids=rows.to(self.reader.device), attention_mask=present.to(self.reader.device),
                max_new_tokens=self.max_new_tokens, do_sample=False, pad_token_id=start,
            )  # fmt: skip
            for at, row in zip(batch, out[:, width:].tolist()):
                end = row.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in row else len(row)
                answers[at] = decode(row[:end], self.tokenizer).strip().split("\n")[0].strip()
        return answers


def compress_contexts(
    scorer: Scorer,
    contexts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    rate: float,
    max_length: int,
    pad: int,
    device: torch.device | str = "cpu",
) -> list[str]:
    """
    Compress contexts of any length block by block, each block exactly to its budget.

    Returns:
        `list[str]`: The strings that the reader gets, one per context.
    """
    compressed = []
    for ids in encode(contexts, tokenizer):
        blocks = [torch.tensor(block) for block in cut_blocks(ids, max_length)] or [torch.zeros(0, dtype=torch.long)]
        if not ids:
            compressed.append("")
            continue
        rows = torch.nn.utils.rnn.pad_sequence(blocks, batch_first=True, padding_value=pad)
        valid = torch.arange(rows.shape[1]) < torch.tensor([len(block) for block in blocks])[:, None]
        rows, valid = rows.to(device), valid.to(device)
        compressed.append(decode(rows[select(scorer, rows, valid, rate)].tolist(), tokenizer))
    return compressed


def read_all(
    reading: Reading,
    task: str,
    scorers: Sequence[Scorer],
    rates: Sequence[float],
    compress: Callable[[Scorer, Sequence[str], float], list[str]],
    seed: int = 0,
) -> list[dict]:
    """The rows of one task: full context, no context, and every scorer at every rate."""
    contexts = [question.context for question in reading.questions]
    rows = [
        {"task": task, "scorer": FULL, "rate": 1.0, **reading.row(contexts, seed)},
        {"task": task, "scorer": NONE, "rate": 0.0, **reading.row([""] * len(contexts), seed)},
    ]
    full_tokens = rows[0]["context_tokens"]
    for scorer in tqdm(scorers, desc=f"Reading {task}", leave=False):
        for rate in rates:
            row = {"task": task, "scorer": scorer.name, "rate": rate}
            row |= reading.row(compress(scorer, contexts, rate), seed)
            rows.append(row | {"compression_rate_reencoded": row["context_tokens"] / full_tokens})
    return rows

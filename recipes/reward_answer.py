"""
A reward for a downstream answer: what a reader loses on it when it reads the kept tokens alone.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/train.py --config recipes/quick_test.yaml \
        --data_path answers.jsonl --reward_funcs recipes.reward_answer:AnswerReward --output_dir outputs/answers

Takes `answers.jsonl` of the working directory: a line for each text with `text`, `answer` and, if there is one, `question`;
the same file is the training data. For another file or reader put an object of your own in a module,

    from recipes.reward_answer import AnswerReward
    answer = AnswerReward("squad.jsonl", reader="outputs/my_reader")

and pass `--reward_funcs my_module:answer`. Beside `information_theoretic` it is one wish of two: `--reward_weights 0.2 1`.
"""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokforget.readers.language_model import continuation_nll, load_reader, load_tokenizer
from tokforget.readers.words import decode, encode
from tokforget.training.episodes import EpisodeBatch


class AnswerReward:
    """
    Minus the bits that a reader loses on the answer to a text, kept tokens against the whole text.

    The reader is untouched, gets the kept tokens as one string, then the question, and is not told of any gap. One text has
    one answer, so each of its decisions is given an equal share: `(N, S)` bits that add up to the episode's, the shares of
    windows that a text does not have being 0. `nan` for a text without an answer: its episodes are left out of the policy's
    loss. A text that is longer than `max_length` is cut in training and no longer the one that was asked about: `nan`, too.

    Requires: a file of answers; a reader and a forward of it for each episode. Relates to: `information_theoretic`, which
    asks what the reconstructor loses on the text itself.

    Args:
        path (`str`): `.jsonl` with `text`, `answer` and optionally `question`; several lines of one text are averaged.
        reader (`str` or `PreTrainedModel`): Causal language model: id, folder or `"embedded"`.
        tokenizer (`PreTrainedTokenizerBase` or `str`, *optional*): Of the reconstructor that is trained, whose ids the
            episodes hold; by default the reader's.
        reader_tokenizer (`PreTrainedTokenizerBase` or `str`, *optional*): By default where the reader is.
        template (`str`): What stands between text and answer, where there is a question.
        batch_size (`int`): Rows per forward of the reader.
    """

    def __init__(
        self,
        path: str = "answers.jsonl",
        reader: str | PreTrainedModel = "embedded",
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        reader_tokenizer: str | PreTrainedTokenizerBase | None = None,
        template: str = "\n\nQuestion: {question}\nAnswer:",
        batch_size: int = 32,
    ):
        if not Path(path).is_file():
            raise ValueError(
                f"Answers {path!r}: no such file. Needed are lines with `text`, `answer` and maybe `question`."
            )
        self.path, self.reader, self.template, self.batch_size = path, reader, template, batch_size
        self.reader_tokenizer = reader if reader_tokenizer is None else reader_tokenizer
        self.tokenizer = self.reader_tokenizer if tokenizer is None else tokenizer
        self._asked: dict[tuple[int, ...], list[tuple[str, str]]] | None = None  # by text: prompt and answer
        self._whole: dict[tuple[int, ...], float] = {}  # by text: bits of its answers after the whole text

    def __call__(self, episodes: EpisodeBatch) -> torch.Tensor:
        if self._asked is None:  # not before the first step: arguments are checked in a moment, a reader takes longer
            self._load(episodes.input_ids.device)
        texts = [tuple(ids[valid].tolist()) for ids, valid in zip(episodes.input_ids, episodes.valid)]
        new = [text for text in dict.fromkeys(texts) if text in self._asked and text not in self._whole]
        self._whole |= dict(zip(new, self._answer_bits(new, new)))
        scored = [n for n, text in enumerate(texts) if text in self._asked]
        kept = [episodes.input_ids[n][episodes.keep_mask[n] & episodes.valid[n]].tolist() for n in scored]
        lost = torch.full((len(texts),), torch.nan)
        for n, bits in zip(scored, self._answer_bits(kept, [texts[n] for n in scored])):
            lost[n] = bits - self._whole[texts[n]]
        lost = lost.to(episodes.token_nll.device)
        shares = torch.arange(episodes.num_decisions, device=lost.device) < episodes.decisions_per_episode[:, None]
        return torch.where(shares, -(lost / episodes.decisions_per_episode)[:, None], 0.0)  # (N, S)

    def _load(self, device: torch.device) -> None:
        self.tokenizer, self.reader_tokenizer = load_tokenizer(self.tokenizer), load_tokenizer(self.reader_tokenizer)
        self.reader = load_reader(self.reader).to(device)
        asked: dict[tuple[int, ...], list[tuple[str, str]]] = {}
        rows = [json.loads(line) for line in Path(self.path).read_text(encoding="utf-8").splitlines() if line.strip()]
        for row, ids in zip(rows, encode([row["text"] for row in rows], self.tokenizer)):
            prompt = self.template.format(question=row["question"]) if row.get("question") else ""
            asked.setdefault(tuple(ids), []).append((prompt, f" {row['answer']}"))
        if not asked:
            raise ValueError(f"{self.path} holds no line with an answer: there is nothing to reward.")
        self._asked = asked

    def _answer_bits(self, shown: list, texts: list[tuple[int, ...]]) -> list[float]:
        """Mean bits of the answers to each of `texts` after reading `shown` (ids) instead of it."""
        contexts, answers, counts = [], [], []
        for ids, text in zip(shown, texts):
            read = decode(list(ids), self.tokenizer)
            contexts += [read + prompt for prompt, _ in self._asked[text]]
            answers += [answer for _, answer in self._asked[text]]
            counts.append(len(self._asked[text]))
        if not counts:
            return []
        bits = continuation_nll(self.reader, self.reader_tokenizer, contexts, answers, self.batch_size).nll
        return [float(of_text.mean()) for of_text in bits.split(counts)]

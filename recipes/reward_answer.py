"""
A reward for downstream answers: the bits that a reader loses on an answer when it reads only the kept tokens.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/train.py --config recipes/quick_test.yaml \
        --data_path answers.jsonl --reward_funcs recipes.reward_answer:AnswerReward --output_dir outputs/answers

Reads `answers.jsonl` in the working directory, with `text`, `answer` and optionally `question` in each line; the same
file is the training data. For another file or reader put your own object into a module,

    from recipes.reward_answer import AnswerReward
    answer = AnswerReward("squad.jsonl", reader="outputs/my_reader")

and pass `--reward_funcs my_module:answer`. To combine it with `information_theoretic`, set weights:
`--reward_weights 0.2 1`.
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
    The negative bits that a reader loses on the answer to a text, with the kept tokens compared with the whole text.

    The reader is frozen. It gets the kept tokens as one string, without marks of gaps, and then the question. A text
    has one answer, so all its decisions get an equal share: `(N, S)` bits that add up to the episode's bits, with 0
    for windows that the text does not have. The reward is `nan` for a text without an answer, whose episodes the
    policy's loss leaves out; and for a text longer than `max_length`, because training cuts it to another text.

    Requires: a file of answers; a reader, with a forward pass for each episode. Relates to: `information_theoretic`,
    which measures the reconstructor's bits of the text itself.

    Args:
        path (`str`): `.jsonl` with `text`, `answer` and optionally `question`; several lines of one text are averaged.
        reader (`str` or `PreTrainedModel`): Causal language model: id, folder or `"embedded"`.
        tokenizer (`PreTrainedTokenizerBase` or `str`, *optional*): Tokenizer of the trained reconstructor, to decode
            the episodes' ids; by default the reader's.
        reader_tokenizer (`PreTrainedTokenizerBase` or `str`, *optional*): Tokenizer of the reader; by default from its
            folder.
        template (`str`): Text between context and answer, if there is a question.
        batch_size (`int`): Rows per forward pass of the reader.
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
        if self._asked is None:  # only at the first step, because loading a reader is slow
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

"""
`PromptCompressor` with the calls and result keys of LLMLingua 0.2, so that `from llmlingua import PromptCompressor` can become
`from tokforget.integrations.llmlingua import PromptCompressor`. Written from its documentation; LLMLingua is not needed.

Intended differences:
* The budget is exact and covers the whole `compressed_prompt`, including instruction and question: `compressed_tokens`
  is never above `target_token` or `rate * origin_tokens`. Instruction and question are not changed.
* Tokens are counted with the policy's tokenizer, or with that of `count_tokens`, such as tiktoken's "cl100k_base" for
  GPT-4. `saving` uses LLMLingua's price, $0.06 per 1,000 tokens, and `vocabulary` names the tokenizer.
* No context is dropped as a whole. If the model takes questions, the question influences which words are kept.
* Arguments for features that the policy lacks are refused instead of ignored; arguments that only change how LLMLingua
  computes are accepted.

Method and names: Jiang et al. 2023, arXiv 2310.05736; Pan et al. 2024, arXiv 2403.12968; microsoft/LLMLingua, MIT licence.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokforget.compression.compressor import Compressor
from tokforget.compression.counting import TokenCounter
from tokforget.compression.protection import PRESET, parse_tags
from tokforget.compression.request import as_texts
from tokforget.compression.results import CompressedText, encodable
from tokforget.rates import allowed_tokens, check_number, check_rate


_SEPARATOR = "\n\n"
_DOLLARS_PER_TOKEN = 0.06 / 1000
# Arguments about LLMLingua's computation, or of filters that are refused below; no value changes our result.
_NEUTRAL = {"iterative_size", "high_priority_bonus", "context_budget", "token_budget_ratio", "chunk_end_tokens",
            "token_to_word", "force_context_ids", "use_context_level_filter"}  # fmt: skip
# Arguments for features that we lack, each with the values that switch the feature off.
_REFUSED = {
    "force_context_number": (None,), "use_sentence_level_filter": (False,), "use_token_level_filter": (True,),
    "keep_split": (False,), "keep_first_sentence": (0,), "keep_last_sentence": (0,), "keep_sentence_number": (0,),
    "condition_in_question": ("none",), "reorder_context": ("original",), "dynamic_context_compression_ratio": (0.0,),
    "condition_compare": (False,), "add_instruction": (False,), "rank_method": ("llmlingua",), "context_segs": (None,),
    "context_segs_rate": (None,), "context_segs_compress": (None,), "target_context": (-1,), "context_level_rate": (1.0,),
    "context_level_target_token": (-1,),
}  # fmt: skip


class PromptCompressor:
    """
    A replacement for LLMLingua's `PromptCompressor`.

    Args:
        model_name (`Compressor`, `str` or `Path`, *optional*): A tokforget model, or its folder or Hub id; the
            packaged model by default. Models of LLMLingua are refused.
        device_map (`str`): Device of the policy.
        use_llmlingua2 (`bool`), llmlingua2_config (`dict`, *optional*): Accepted and ignored: there is only one method
            here.
        model_config, open_api_config, use_slingua: Accepted only at LLMLingua's defaults.
        unit (`str`): `"word"`, as in LLMLingua-2, or `"token"`.
        count_tokens (*optional*): Tokenizer that counts, as in `Compressor.compress`.

    >>> PromptCompressor().compress_prompt(contexts, question="Who won?", target_token=200)  # doctest: +SKIP
    """

    def __init__(
        self,
        model_name: Compressor | str | Path | None = None,
        device_map: str = "cpu",
        model_config: dict | None = None,
        open_api_config: dict | None = None,
        use_llmlingua2: bool = True,
        use_slingua: bool = False,
        llmlingua2_config: dict | None = None,
        unit: str = "word",
        count_tokens=None,
    ):
        for name, value in (("model_config", model_config), ("open_api_config", open_api_config),
                            ("use_slingua", use_slingua)):  # fmt: skip
            if value:
                raise ValueError(
                    f"`{name}` configures models of LLMLingua, which tokforget does not run; got {value!r}."
                )
        if "llmlingua" in str(model_name).lower().split("/")[-1] and not Path(str(model_name)).is_dir():
            raise ValueError(
                f"{model_name!r} is a model of LLMLingua. Pass a tokforget model, or nothing for the packaged one."
            )
        loaded = isinstance(model_name, Compressor)
        self.compressor = model_name if loaded else Compressor.from_pretrained(model_name, device=device_map)
        self.unit, self.counter = unit, TokenCounter.of(count_tokens)
        self.compressor.compress([], unit=unit)  # a wrong unit is said now

    def __call__(self, *args, **kwargs) -> dict:
        """The same as `compress_prompt`."""
        return self.compress_prompt(*args, **kwargs)

    def compress_prompt(
        self,
        context: str | Sequence[str],
        instruction: str = "",
        question: str = "",
        rate: float = 0.5,
        target_token: float = -1,
        *,
        concate_question: bool = True,
        return_word_label: bool = False,
        word_sep: str = "\t\t|\t\t",
        label_sep: str = " ",
        force_tokens: Iterable[str] = (),
        force_reserve_digit: bool = False,
        drop_consecutive: bool = False,
        on_impossible: str = "raise",
        **others,
    ) -> dict:
        """
        Compress contexts, and put instruction and question around them.

        Args:
            context (`str` or `Sequence[str]`): The contexts to compress.
            instruction (`str`), question (`str`): Text before and after the contexts, unchanged.
            rate (`float`): Fraction of all tokens that the prompt may have, in (0, 1].
            target_token (`float`): Most tokens of the prompt; -1 to use `rate`.
            concate_question (`bool`): Whether the prompt contains the question.
            return_word_label (`bool`), word_sep (`str`), label_sep (`str`): Also return every word of the contexts,
                with 1 if a part of it was kept, else 0.
            force_tokens (`Iterable[str]`): Strings that are always kept; words only as whole words.
            force_reserve_digit (`bool`): Keep all numbers.
            drop_consecutive (`bool`): Keep only one of a forced string that is repeated directly in the result.
            on_impossible (`str`): As in `Compressor.compress`, if the forced strings exceed the budget.
            **others: LLMLingua's other arguments, at values that do not change the result.

        Returns:
            `dict`: `compressed_prompt`, `compressed_prompt_list` (one string per context), `origin_tokens`,
            `compressed_tokens`, `ratio` ("2.0x"), `rate` ("50.0%"), `saving`, `vocabulary`, and `fn_labeled_original_prompt`
            if labels were asked for.
        """
        _refuse(others)
        contexts = _contexts(context)
        _check_strings(instruction=instruction, question=question)
        _check_target(target_token)
        if isinstance(force_tokens, str):
            raise TypeError(
                f"`force_tokens` takes a list of strings, got {force_tokens!r:.60}: for one of them pass [{force_tokens!r:.60}]."
            )
        origin_tokens = self._count(_laid_out(contexts, instruction, question)[0])
        if target_token == -1:
            budget = max(int(allowed_tokens(origin_tokens, check_rate(rate))), 1)
        else:
            budget = int(target_token)  # as LLMLingua, which takes 200.0, too
        text, spans, fixed = _laid_out(contexts, instruction, question if concate_question else "")
        protect = [PRESET, *fixed, *_forced(force_tokens, force_reserve_digit)]
        result = self.compressor.compress(text, target_tokens=budget, unit=self.unit, protect=protect, count_tokens=self.counter,
                                          on_impossible=on_impossible, question=self._told(question))  # fmt: skip
        parts = [_part(result, text, *span) for span in spans]
        prompt = result.text
        if drop_consecutive:
            parts = [_without_repeats(part, force_tokens) for part in parts]
            prompt = _laid_out(parts, instruction, question if concate_question else "")[0]
        labels = {}
        if return_word_label:
            labels["fn_labeled_original_prompt"] = word_sep.join(_labelled(result, text, spans, label_sep))
        return self._answer(prompt, parts, origin_tokens) | labels

    def compress_prompt_llmlingua2(self, context: str | Sequence[str], **options) -> dict:
        """LLMLingua-2's call: only contexts."""
        unfit = sorted(options.keys() & {"instruction", "question", "concate_question"})
        if unfit:
            raise TypeError(f"`compress_prompt_llmlingua2` takes no {', '.join(unfit)}; `compress_prompt` does.")
        return self.compress_prompt(context, **options)

    def structured_compress_prompt(
        self,
        context: str | Sequence[str],
        instruction: str = "",
        question: str = "",
        rate: float = 0.5,
        target_token: float = -1,
        *,
        concate_question: bool = True,
        on_impossible: str = "raise",
        **others,
    ) -> dict:
        """
        Like `compress_prompt`, for contexts with segments that have their own rate:
        `<llmlingua, rate=0.4>...</llmlingua>`, `<llmlingua, compress=False>...</llmlingua>`, `<keep>...</keep>`,
        `<drop>...</drop>`.

        `rate` applies to the text outside such segments; instruction and question are not counted. As in LLMLingua, a
        `target_token` becomes a rate of the contexts, so that segments may make the result longer or shorter.
        """
        _refuse(others)
        contexts = _contexts(context)
        _check_strings(instruction=instruction, question=question)
        _check_target(target_token)
        question_shown = question if concate_question else ""
        plain = [parse_tags(one)[0] for one in contexts]
        for name, value in (("instruction", instruction), ("question", question_shown)):
            if parse_tags(value)[0] != value:
                raise ValueError(f"`{name}` holds tags; only contexts may.")
        if target_token != -1:
            rate = min(target_token / max(sum(map(self._count, plain)), 1), 1.0)
        origin_tokens = self._count(_laid_out(plain, instruction, question)[0])
        text, spans, fixed = _laid_out(plain, instruction, question_shown)
        tagged = _laid_out(contexts, instruction, question_shown)[0]
        result = self.compressor.compress(tagged, rate=check_rate(rate), unit=self.unit, protect=[PRESET, *fixed], tags=True,
                                          count_tokens=self.counter, on_impossible=on_impossible, question=self._told(question))  # fmt: skip
        return self._answer(result.text, [_part(result, text, *span) for span in spans], origin_tokens)

    def _told(self, question: str) -> str | None:
        """The question for the policy; `None` if there is none or the model takes none."""
        return question if question.strip() and self.compressor.takes_question else None

    def _count(self, text: str) -> int:
        if self.counter is not None:
            return self.counter([text])[0]
        return len(self.compressor.tokenizer.encode(encodable(text), add_special_tokens=False))

    def _answer(self, prompt: str, parts: list[str], origin_tokens: int) -> dict:
        compressed_tokens = self._count(prompt)
        ratio = origin_tokens / compressed_tokens if compressed_tokens else 1.0
        saving = (origin_tokens - compressed_tokens) * _DOLLARS_PER_TOKEN
        return {
            "compressed_prompt": prompt,
            "compressed_prompt_list": parts,
            "origin_tokens": origin_tokens,
            "compressed_tokens": compressed_tokens,
            "ratio": f"{ratio:.1f}x",
            "rate": f"{100 / ratio if ratio else 100:.1f}%",
            "saving": f", Saving ${saving:.1f} in GPT-4.",
            "vocabulary": self.compressor.vocabulary if self.counter is None else self.counter.name,
        }


def _contexts(context) -> list[str]:
    """The contexts of a call; none at all is an empty one."""
    if context is None:
        return [""]
    contexts = as_texts(context) or [""]
    for place, one in enumerate(contexts):
        if not isinstance(one, str):
            raise TypeError(f"Context {place} must be a string, got a {type(one).__name__}, {one!r:.60}.")
    return contexts


def _check_strings(**values) -> None:
    for name, value in values.items():
        if not isinstance(value, str):
            raise TypeError(
                f"`{name}` must be a string, got a {type(value).__name__}, {value!r:.60}; leave it out for none."
            )


def _check_target(target_token: float) -> None:
    if target_token != -1 and not check_number(target_token, "target_token") >= 1:
        raise ValueError(f"`target_token` must be at least 1, or -1 to go by `rate`, got {target_token}.")


def _refuse(others: dict) -> None:
    """Raise an error for unknown arguments, and for arguments of LLMLingua that would have to change the result."""
    unknown = sorted(others.keys() - _NEUTRAL - _REFUSED.keys())
    if unknown:
        raise TypeError(f"LLMLingua's `compress_prompt` has no argument {', '.join(map(repr, unknown))}.")
    for name in sorted(others.keys() & _REFUSED.keys()):
        if others[name] not in _REFUSED[name]:
            raise ValueError(
                f"`{name}={others[name]!r}` is not supported: tokforget's policy has no such step. Leave it out."
            )


def _laid_out(
    contexts: list[str], instruction: str, question: str
) -> tuple[str, list[tuple[int, int]], list[tuple[int, int]]]:
    """The prompt, the spans of the contexts in it, and the spans of the rest. Empty parts get no separator."""
    parts, spans, length = [], [], 0
    for index, part in enumerate([instruction, *contexts, question]):
        separator = _SEPARATOR if part and length else ""
        parts += [separator, part]
        length += len(separator) + len(part)
        if 0 < index <= len(contexts):
            spans.append((length - len(part), length))
    edges = [0, *(edge for span in spans for edge in span), length]
    return "".join(parts), spans, [(a, b) for a, b in zip(edges[::2], edges[1::2]) if a < b]


def _forced(force_tokens: Iterable[str], digits: bool) -> list[str]:
    """Patterns that protect strings."""
    edge = {True: r"(?<!\w)", False: ""}, {True: r"(?!\w)", False: ""}
    forced = [
        f"re:{edge[0][one[0].isalnum()]}{re.escape(one)}{edge[1][one[-1].isalnum()]}" for one in force_tokens if one
    ]
    return forced + ["numbers"] * digits


def _part(result: CompressedText, text: str, start: int, end: int) -> str:
    """The kept text of the characters from `start` to `end`."""
    kept = [
        (" " if apart and a >= start else "") + text[max(a, start) : min(b, end)]
        for (a, b), apart in zip(result.kept_spans.tolist(), result.separated.tolist())
        if a < end and b > start
    ]
    return "".join(kept)


def _without_repeats(text: str, force_tokens: Iterable[str]) -> str:
    """Remove direct repetitions of forced strings, with only white space between them."""
    for one in force_tokens:
        if one:
            text = re.sub(rf"({re.escape(one)})(?:[^\S\n]*{re.escape(one)})+", r"\1", text)
    return text


def _labelled(result: CompressedText, text: str, spans: list[tuple[int, int]], label_sep: str) -> list[str]:
    """Each word of the contexts, with 1 if a part of it was kept, else 0."""
    kept = bytearray(len(text))
    for start, end in result.kept_spans.tolist():
        kept[start:end] = b"\1" * (end - start)
    words = (word for start, end in spans for word in re.compile(r"\S+").finditer(text, start, end))
    return [f"{word[0]}{label_sep}{int(any(kept[word.start() : word.end()]))}" for word in words]

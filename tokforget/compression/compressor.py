"""
The compressor, the main interface for users: `from_pretrained`, `compress`, `restore`, `explain`. It does not depend
on training.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence, Set
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tokforget.compression.chunks import CHUNK, CONTEXT, blocks, chunk_ends
from tokforget.compression.counting import CandidateCounter
from tokforget.compression.fences import scan_fences
from tokforget.compression.json_text import is_json, records_on_lines
from tokforget.compression.messages import (
    MIN_MESSAGE_TOKENS,
    MIN_RATE,
    CompressedMessages,
    Memory,
    compress_messages,
)
from tokforget.compression.pieces import cut
from tokforget.compression.protection import PRESET, parse_tags
from tokforget.compression.quality import RISK, Calibration
from tokforget.compression.ranked_text import RankedText, search
from tokforget.compression.request import Request, as_texts
from tokforget.compression.results import CompressedText, encodable
from tokforget.compression.scores import WINDOW, score
from tokforget.compression.search import Choice, run_searches
from tokforget.compression.structure import find_structure
from tokforget.files import CONFIG, TRAINING
from tokforget.forks import let_children_compute
from tokforget.models.folders import (
    check_hub_options,
    check_name,
    local_folder,
    read_array_policy,
    read_onnx_policy,
    read_policy,
    read_tokenizer,
)
from tokforget.models.onnx_policy import GRAPHS
from tokforget.models.word_features import near_question, token_features
from tokforget.optional import needed
from tokforget.packaged import EMBEDDED, forget_model_path, reader_model_path
from tokforget.rates import allowed_tokens, check_number, check_whole


class OverBudgetWarning(UserWarning):
    """Protected text exceeds the budget, and the smallest feasible text was returned."""


# Chunks before a chunk whose words its features use, if a text is decided in chunks.
_CHUNKS_BEHIND = 8
_READ = {
    "numpy": read_array_policy,
    "torch": read_policy,
    "onnx": read_onnx_policy,
    "onnx-int8": partial(read_onnx_policy, precision="onnx-int8"),
}
BACKENDS = tuple(_READ)


class Compressor:
    """
    Shortens texts to a budget by dropping words or tokens that a language model does not need.

    Args:
        policy (`KeepMaskPolicy`, in evaluation mode, or `ArrayPolicy`): Scores the tokens.
        tokenizer (`tokenizers.Tokenizer`): The policy's tokenizer; it must read special tokens in a text as text.
        folder (`Path`, *optional*): The model's folder, whose adapter `restore` needs.

    With `compressor = Compressor.from_pretrained("embedded")`:

    >>> text = "The meeting has been moved to Tuesday, 3 pm, in room B12. Please bring the report, and the signed forms."
    >>> result = compressor.compress(text, rate=0.5)
    >>> result.target_tokens - result.compressed_tokens in (0, 1)
    True
    >>> [text[a:b] for a, b in result.kept_spans] == [text[a:b] for a, b in result.kept_spans if text[a:b] in result.text]
    True
    >>> "B12" in compressor.compress(text, rate=0.5, protect=["numbers", "first:2"], unit="word").text
    True
    >>> [r.compressed_tokens <= 12 for r in compressor.compress([text, text.upper()], target_tokens=12)]
    [True, True]
    >>> compressor.compress("Keep <keep>this  exactly</keep>, please.", rate=0.6, tags=True, on_impossible="warn").text.count("this  exactly")
    1
    >>> sum(len(r.text) for r in compressor.compress_stream([text, text], rate=0.3)) < len(text)
    True
    >>> "<!doctype html>" in compressor.explain(text, rate=0.5).to_html()
    True
    >>> compressor.restore(result).is_restoration
    True
    """

    def __init__(self, policy, tokenizer, folder: Path | None = None):
        self.policy, self.tokenizer, self.folder = policy, tokenizer, folder
        self.base_model: str | None = None  # for `restore`, if it differs from the model's config
        self.fingerprint = hashlib.blake2b(tokenizer.to_str().encode(), digest_size=8).hexdigest()
        let_children_compute()

    def __getstate__(self) -> dict:
        """
        Only the parts that decide. Caches and loaded models are left out and rebuilt when needed. `copy` and
        `deepcopy` use this, too.
        """
        names = ("policy", "folder", "fingerprint", "base_model")
        # A pickled tokenizer loses its treatment of special tokens, because the file does not contain it.
        return {name: vars(self)[name] for name in names} | {
            "tokenizer": self.tokenizer.to_str(),
            "encode_special_tokens": self.tokenizer.encode_special_tokens,
        }

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        tokenizer = Tokenizer.from_str(state["tokenizer"])
        tokenizer.encode_special_tokens = state.pop("encode_special_tokens")
        vars(self).update(state | {"tokenizer": tokenizer})
        let_children_compute()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        device=None,
        dtype=None,
        backend: str | None = None,
        base_model: str | Path | None = None,
        **hub_options,
    ) -> "Compressor":
        """
        Load a model folder: the policy with its table, and the tokenizer. No base model is loaded, and a local path
        needs no network.

        Args:
            pretrained_model_name_or_path (`str` or `Path`, *optional*): A local folder or a Hub id. By default the
                packaged compressor for real text, which drops whole words and takes a question. `"embedded"` is the
                packaged small model, which has a reconstructor and can restore.
            device (`str` or `torch.device`, *optional*): Device of the policy; "cpu" by default.
            dtype (`torch.dtype`, *optional*): Type of the policy's weights; float32 by default.
            base_model (`str` or `Path`, *optional*): Id or folder of the base model for `restore`; by default the one
                in the model's config. It is loaded at the first `restore`.
            backend (`str`, *optional*): Library that computes the policy: `"numpy"`, which needs no torch and runs on
                CPUs in float32; `"torch"`; or `"onnx"` for ONNX Runtime on CPUs, with the graph that
                `tokforget export` wrote to the folder (the float32 graph, if there are two). By default torch if a
                `device` or a `dtype` is given, else NumPy. The scores of these backends agree to 1 in 4,096.
                `"onnx-int8"` uses the int8 graph, with different scores and masks.
            **hub_options: `revision`, `token`, `cache_dir`, `local_files_only`.

        Returns:
            [`Compressor`]: The compressor.

        Raises:
            `ValueError`: If the folder is no tokforget model, is incomplete, or contains code; or if a `backend` does
                not support the `device` or `dtype`, or finds no graph of these weights.
            [`tokforget.optional.MissingPackage`]: If torch or ONNX Runtime is needed and not installed.
        """
        backend = _chosen(backend, device, dtype)
        name = pretrained_model_name_or_path
        check_hub_options(hub_options)
        if base_model is not None:
            check_name(base_model)
        if name is None:
            folder = reader_model_path()
        else:
            graphs = backend in GRAPHS
            folder = forget_model_path() if name == EMBEDDED else local_folder(name, graphs=graphs, **hub_options)
        policy = _READ[backend](folder)
        tokenizer = read_tokenizer(folder, policy.vocab_size)
        if backend == "torch" and (device is not None or dtype is not None):
            from tokforget.models.policy import floating

            policy = _moved(policy.to(dtype=floating(dtype)), device)
        # Absolute, because `restore` reads it later, when the working directory may have changed.
        compressor = cls(policy, tokenizer, folder.absolute())
        if base_model is not None:  # absolute, for the same reason
            compressor.base_model = str(Path(base_model).absolute() if Path(base_model).is_dir() else base_model)
        return compressor

    # -- compress ------------------------------------------------------------------------------------------------------
    def compress(
        self,
        texts: str | Sequence[str],
        rate: float | None = None,
        target_tokens: int | None = None,
        threshold: float | None = None,
        quality: float | None = None,
        risk: float | None = None,
        unit: str | None = None,
        protect=PRESET,
        nested: bool = False,
        prefix_stable: bool = False,
        budget: str = "per_text",
        tags: bool = False,
        min_tokens: int = 0,
        on_impossible: str | None = None,
        question: str | Sequence[str | None] | None = None,
        count_tokens=None,
        mark_omissions: bool = False,
        omit_records: bool = False,
    ) -> CompressedText | list[CompressedText]:
        r"""
        Compress one text or several.

        The budget counts the tokens of the output string after re-encoding. The output never exceeds it, and on
        natural text is at most 1 token below it (in word units: one word). Results do not depend on the other texts of
        the call, except with `budget="corpus"`.

        Args:
            texts (`str` or `Sequence[str]`): Any text of any length.
            rate (`float`, *optional*): Fraction of tokens to keep, in (0, 1]. 0.5 if no budget is given.
            target_tokens (`int`, *optional*): Most tokens to keep.
            threshold (`float`, *optional*): Keep all tokens that score at least this, in (0, 1); there is no budget
                then.
            quality (`float`, *optional*): The shortest result for which a reader retains this share of the text's
                information, in (0, 1], by the model's calibration; see [`tokforget.compression.quality`]. If no
                shorter text is guaranteed to reach it, the text is returned whole (`returned_whole`).
            risk (`float`, *optional*): Share of texts that may fall below `quality`, in (0, 1); 0.1 by default. A model
                is calibrated for some risks, the packaged one for 0.05, 0.1, 0.2, 0.3 and 0.5; between two of them the
                lower one applies.
            unit (`str`, *optional*): Unit that is kept or dropped as a whole: `"token"`; `"word"`, where a number or
                an address counts as a word; or `"auto"`: words, but JSON stays JSON, and code and logs are kept or
                dropped by lines ([`tokforget.compression.structure`]). By default `"auto"` if the model was trained by
                words, except with `quality`, `prefix_stable` and `tags`, which need `"word"`; otherwise the unit of the
                model's training.
            protect (*optional*): Text that must stay byte for byte; one item or several: names out of `"numbers"`, `"urls"`,
                `"emails"`, `"paths"`, `"code_fences"`, `"inline_code"`, `"identifiers"`, `"negations"`, `"sentence_ends"`,
                `"line_breaks"`, `"roles"`; compiled regular expressions or `"re:<pattern>"`; `"first:<n>"` and `"last:<n>"`
                tokens; spans `(start, end)` in characters of a single text; functions from a text to spans. In word
                units the preset `"readable"` applies in addition, as far as the budget allows: negations are kept
                first, together with the words they negate; line breaks, speakers, ends of sentences and limits
                ("before", "more than") are kept together with the kept words they belong to. `"none"`, `None` or `[]`
                switches it off.
            nested (`bool`): Whether a smaller budget keeps a subset of the tokens of a larger one.
            prefix_stable (`bool`): Whether appending to a text leaves its earlier result unchanged, except in the
                last, unfinished chunk of about 130 tokens. Needs a rate or a threshold.
            budget (`str`): `"per_text"`, or `"corpus"` for one budget over all texts, spent on the highest scores.
            tags (`bool`): Read `<keep>`, `<keep rate=0.8>`, `<drop>` and `<llmlingua, rate=0.4, compress=False>` segments.
            min_tokens (`int`): Texts with fewer tokens are returned whole (`returned_whole`).
            on_impossible (`str`, *optional*): If protected text, or JSON that stays JSON, exceeds the budget:
                `"raise"`, or `"warn"` and return the smallest feasible result, with the reason in `unreached`. By
                default `"warn"` where a text is cut by its structure (`kind`), and `"raise"` otherwise.
            question (`str`, or one for each text, *optional*): A question about the text; the words that answer it are
                kept first. The model must have been trained with questions (`takes_question`).
            count_tokens (*optional*): Tokenizer in which `rate`, `target_tokens`, `min_tokens` and the result count: a
                `tokenizer.json`, a folder with one, an id on the Hub, a name of tiktoken (`"o200k_base"`, `"gpt-4o"`), a
                loaded tokenizer, or a function from a text to a number; see [`tokforget.compression.counting`]. By
                default the model's own. The tokens of the output string are counted, and the budget is filled as far
                as pieces fit. "first:n" and "last:n" of `protect`, and the quotas of `tags`, always count the model's
                tokens.
            mark_omissions (`bool`): Mark the gaps in the output: `[… lines 12-18]` for whole lines of the original,
                `[…]` for eight words or more within a line, if the gap is at least twice as long as its mark. Marks
                count in the budget. JSON gets none, and neither does a text whose budget is too small for them.
            omit_records (`bool`): Drop whole records of JSON, which are the items of a list of objects or lists, or lines of
                JSON; otherwise only the words of long strings are dropped. The output still parses, and a string such as
                `"… 12 left out"` stands where records are missing. Needs `unit="auto"`.

        Returns:
            [`CompressedText`], or a list of them for a sequence of texts.

        Raises:
            `ValueError`: If arguments exclude each other, or protected text does not fit the budget.
        """
        request = Request(
            rate=rate, target_tokens=target_tokens, threshold=threshold, quality=quality, risk=risk, unit=unit, protect=protect,
            nested=nested, prefix_stable=prefix_stable, budget=budget, tags=tags, min_tokens=min_tokens, on_impossible=on_impossible,
            count_tokens=count_tokens, mark_omissions=mark_omissions, omit_records=omit_records,
            trained_unit=self.policy.unit,
        )  # fmt: skip
        single = isinstance(texts, str)
        texts = as_texts(texts)
        request.check_texts(texts, single)
        results = self._compress(texts, request, self._questions(question, len(texts)))
        return results[0] if single else results

    @property
    def backend(self) -> str:
        """The library that computes the policy: `"numpy"`, `"torch"`, `"onnx"` or `"onnx-int8"`."""
        return self.policy.backend

    def to(self, device) -> "Compressor":
        """
        Move the policy to a device (`str` or `torch.device`), where torch computes it; returns the compressor itself.

        Raises:
            [`tokforget.optional.MissingPackage`]: If torch is not installed.
            `ValueError`: If the policy is not in torch and there is no folder to load it from again.
        """
        if self.backend != "torch":
            if self.folder is None:
                raise ValueError(f"This compressor was built from a policy in {self.backend}, without a folder: load it with "
                                 "`from_pretrained(..., backend='torch')`.")  # fmt: skip
            self.policy = read_policy(self.folder)
        self.policy = _moved(self.policy, device)
        return self

    @property
    def takes_question(self) -> bool:
        """Whether the model was trained with questions."""
        return self.policy.num_features > 0

    def _questions(self, question: str | Sequence[str | None] | None, num_texts: int) -> list[str | None]:
        """
        A question or None for each text. Raises `ValueError` or `TypeError` if they do not fit the texts or the model.
        """
        if question is not None and (
            isinstance(question, bytes | Mapping | Set) or not isinstance(question, Iterable)
        ):
            raise TypeError(
                f"`question` must be a string, or a sequence of strings and None, one for each text; got a {type(question).__name__}, "
                f"{question!r:.60}."
            )
        questions = [question] * num_texts if question is None or isinstance(question, str) else list(question)
        if len(questions) != num_texts:
            raise ValueError(
                f"There are {len(questions)} questions and {num_texts} texts; pass one for each, or one for all."
            )
        if any(one is not None and not isinstance(one, str) for one in questions):
            raise TypeError("`question` must be a string, or a sequence of strings and None, one for each text.")
        if any(questions) and not self.takes_question:
            raise ValueError(
                "This model was trained without questions and cannot use one. Leave out `question`, or load one that does."
            )
        return questions

    def _compress(
        self, texts: list[str], request: Request, questions: Sequence[str | None] | None = None
    ) -> list[CompressedText]:
        began = time.perf_counter()
        if request.quality is not None:  # before the first text, and where there is none
            needed = self.calibration.needed(request.quality, RISK if request.risk is None else request.risk)
        items = self._encode_chunks(texts, request) if request.prefix_stable else self._encode(texts, request.tags)
        if self.takes_question:
            for item, question in zip(items, questions or [None] * len(items)):
                by_lines = bool(question) and request.omit_records
                item.features = self._features(item, question, by_lines)
                item.near_question = near_question(item.features) if question else None
        vocabulary = self.vocabulary if request.counter is None else request.counter.name
        if request.counter is not None:
            for item, total in zip(items, request.counter([item.text for item in items])):
                item.total = total
        for item in items:
            if not len(item.ids) or not item.num_counted:
                item.returned_whole_because = "no tokens"
            elif item.num_counted < request.min_tokens:
                item.returned_whole_because = "min_tokens"
            elif request.keeps_json and is_json(item.text):
                item.returned_whole_because = "json"
            elif request.quality is not None:
                item.worth_needed = 1.0 if needed is None else needed
                item.returned_whole_because = "quality" if needed is None else None
        self._score(items, request.conditioning_rates([item.num_counted for item in items]))
        for item in items:
            item.features = None  # most of the memory, and no longer needed
        active = [item for item in items if not item.returned_whole_because]
        for item in active:
            item.prepare(request)
        groups = [active] * bool(active) if request.budget == "corpus" else [[item] for item in active]
        done: dict[int, CompressedText] = {}
        for group, choice, own in zip(groups, *self._search(groups, request)):
            unreached = _check_feasible(choice, group, request, vocabulary)
            start = 0
            for item, text, encoded, counted in zip(group, choice.outputs, own, choice.encoded):
                keep = choice.keep[start : start + len(item.pieces)]
                start += len(item.pieces)
                shortfall = 0 if item.target is None else item.target - choice.count
                counted = None if request.counter is None else len(counted)
                ids = np.array(encoded.ids, np.int64)
                done[id(item)] = item.result(keep, text, ids, shortfall, self.fingerprint, vocabulary, counted)
                done[id(item)].unreached = unreached
                if request.quality is not None:
                    done[id(item)].predicted_retention = round(self.calibration.expected(item.worth_kept(keep)), 4)
        results = [done.get(id(item)) or item.returned_whole(self.fingerprint, vocabulary) for item in items]
        seconds = (time.perf_counter() - began) / max(sum(len(item.ids) for item in items), 1)
        for result in results:
            result.seconds = seconds * len(result.scores)
        return results

    def _search(self, groups: list[list[RankedText]], request: Request) -> tuple[list[Choice], list[list]]:
        """The choice for each group of texts with a common budget, and the encodings of its outputs."""

        def run(groups: list[list[RankedText]], counts: Callable) -> tuple[list[Choice], list[list]]:
            choices = run_searches([search(group, request) for group in groups], counts)
            encoded = iter(self._reencode([text for choice in choices for text in choice.outputs]))
            return choices, [[next(encoded) for _ in choice.outputs] for choice in choices]

        if request.counter is not None:
            return run(groups, lambda strings: [range(count) for count in request.counter(strings)])
        if self._candidate_counter is None:
            return run(groups, self._reencode)
        choices, encoded = run(groups, self._candidate_counter)
        for place, (choice, own) in enumerate(zip(choices, encoded)):
            if any(len(one) != len(counted) for one, counted in zip(own, choice.encoded)):
                ((choices[place],), (encoded[place],)) = run([groups[place]], self._reencode)
        return choices, encoded

    @cached_property
    def _candidate_counter(self) -> CandidateCounter | None:
        return CandidateCounter(self.tokenizer) if CandidateCounter.fits(self.tokenizer) else None

    def compress_messages(
        self,
        messages: Sequence[dict],
        rate: float | None = None,
        target_tokens: int | None = None,
        quality: float | None = None,
        risk: float | None = None,
        *,
        system: str | list | None = None,
        question: str | bool | None = True,
        unit: str = "auto",
        protect=PRESET,
        roles: Sequence[str] | None = None,
        stable: bool = False,
        min_tokens: int | None = None,
        min_message_tokens: int = MIN_MESSAGE_TOKENS,
        min_rate: float = MIN_RATE,
        on_impossible: str = "raise",
        memory: MutableMapping[str, int] | None = None,
        count_tokens=None,
        omit_records: bool = False,
    ) -> CompressedMessages:
        """
        Shorten the tool results and the older turns of a chat, in OpenAI's or Anthropic's dictionaries.

        These stay verbatim: system and developer messages, the last user message and the assistant's words after it,
        tool calls with their arguments, thinking, images, audio, documents and parts of an unknown kind. Roles, ids,
        `cache_control` and all other fields are copied. No message is removed, and none is changed in place.

        The budget covers all texts together, including tool calls and verbatim texts, each counted separately; it is
        never exceeded. All shortened texts get the same rate. A text that needs more (for the keys of a JSON or
        protected text) gets more, and the others get less.

        With `stable=True` each message is decided alone: the same message gives the same bytes in every transcript,
        whatever comes before and after it, so that a provider's prompt cache stays valid while the transcript grows.
        Then each text is shortened to `rate` (or `quality`), there is no question, user messages are never shortened,
        and assistant messages only with `roles=("tool", "assistant")`.

        Compressing the output again with the same settings changes nothing, because hashes of all outputs are kept in
        `memory`.

        Args:
            messages (`Sequence[dict]`): `role`, and `content` as a string, a list of parts, or None.
            rate (`float`, *optional*): Fraction of all tokens to keep, in (0, 1]; 0.5 if no budget is given.
            target_tokens (`int`, *optional*): Most tokens of all messages.
            quality (`float`, *optional*): As in `compress`, for each text separately; JSON, code and logs then stay
                whole.
            risk (`float`, *optional*): As in `compress`.
            system (`str` or `list`, *optional*): Anthropic's system prompt; verbatim, and counted.
            question (`str` or `bool`): A question about the texts; True takes it from the last user message, None for
                none.
            unit (`str`), protect (*optional*): As in `compress`, but without spans.
            roles (`Sequence[str]`, *optional*): Roles whose texts are shortened, out of `"tool"`, `"assistant"` and
                `"user"`; by default all three, with `stable` only `"tool"`.
            stable (`bool`): Decide each message alone.
            min_tokens (`int`, *optional*): Chats with fewer tokens are returned whole, because compressing would cost
                more than it saves. By default 500; 0 with `target_tokens`, which is a limit, and with `stable`.
            min_message_tokens (`int`): Texts with fewer tokens stay whole.
            min_rate (`float`): Lowest rate of a text, in (0, 1]; ignored with `stable`.
            on_impossible (`str`): `"raise"`, or `"warn"` and return the smallest feasible result.
            memory (`MutableMapping[str, int]`, *optional*): From hashes of outputs to the tokens before compression.
                By default this compressor's own, which holds the last 65,536 texts; pass your own mapping to keep it
                longer than the process.
            count_tokens (*optional*): Tokenizer in which budgets, limits and records count, as in `compress`; by
                default the model's own.
            omit_records (`bool`): Drop whole records of JSON, as in `compress`; for tool results.

        Returns:
            [`CompressedMessages`]: `messages` and `system` in the given form, tokens before and after, `records`,
            `omitted`.

        Raises:
            `ValueError`: If arguments exclude each other, or the verbatim texts do not fit the budget.
            `TypeError`: If `messages` are not messages.
        """
        return compress_messages(
            self, messages, system, memory, rate=rate, target_tokens=target_tokens, quality=quality, risk=risk, question=question, unit=unit,
            protect=protect, roles=roles, stable=stable, min_tokens=min_tokens, min_message_tokens=min_message_tokens,
            min_rate=min_rate, on_impossible=on_impossible, count_tokens=count_tokens, omit_records=omit_records,
        )  # fmt: skip

    @cached_property
    def memory(self) -> Memory:
        """Hashes of the outputs of `compress_messages` in this process; it is not copied with the compressor."""
        return Memory()

    def compress_stream(
        self,
        parts: Iterable[str],
        rate: float | None = None,
        threshold: float | None = None,
        block_chars: int = 65_536,
        **options,
    ) -> Iterator[CompressedText]:
        """
        Compress a long text that arrives in parts, such as the lines of a file, in constant memory.

        The joined outputs are the compressed text; their tokens never exceed `rate` times the tokens read so far. The
        first token of each block is kept, so that blocks are joined as words are.

        Args:
            parts (`Iterable[str]`): Strings of any length.
            rate (`float`, *optional*), threshold (`float`, *optional*): As in `compress`.
            block_chars (`int`): Least characters that are decided together.
            **options: `unit`, `protect`, `on_impossible`, `question` as in `compress`.

        Returns:
            `Iterator[CompressedText]`: One for each block; `start` is its place in the stream.

        Raises:
            `ValueError`: If an argument is not possible for a stream; raised by the call, not by the first block.
        """
        unknown = sorted(options.keys() - {"unit", "protect", "on_impossible", "question"})
        if unknown:
            raise ValueError(f"`compress_stream` does not take {', '.join(unknown)}.")
        if (
            hasattr(parts, "columns")
            or isinstance(parts, bytes | bytearray | Mapping | Set)
            or not isinstance(parts, Iterable)
        ):
            raise TypeError(
                f"`parts` must be strings that follow each other, such as an open file or a generator, got a {type(parts).__name__}, "
                f"{parts!r:.60}."
            )
        check_whole(block_chars, "block_chars", 1)
        # Built here, so that a mistake is reported now and not at the first block.
        (question,) = self._questions(options.pop("question", None), 1)
        options["unit"] = options.get("unit") or self.policy.unit
        if options["unit"] == "auto":
            raise ValueError("`unit='auto'` looks at a text as a whole, and a stream comes in blocks: pass 'word'.")
        request = Request(rate=rate, threshold=threshold, **options)
        if request.protection.last or request.protection.spans:
            raise ValueError(
                "A stream's end is not known and its blocks are decided apart: leave out 'last:n' and spans."
            )
        return self._stream(parts, request, block_chars, question)

    def _stream(
        self, parts: Iterable[str], request: Request, block_chars: int, question: str | None
    ) -> Iterator[CompressedText]:
        start = read = written = 0
        rate = request.rate
        for block in blocks(parts, block_chars, request.protection.unbroken(request.unit)):
            if rate is not None:
                read += len(self._reencode([block])[0])
                target = max(int(allowed_tokens(read, rate)) - written, 1)
                request.rate, request.target_tokens = None, target
            result = self._compress([block], request, [question])[0]
            result.start = start
            written += result.compressed_tokens
            start += len(block)
            request.protection.first = 1
            if request.protection.keeps_fences:
                request.protection.place = scan_fences(block, request.protection.place)[1]
            yield result

    def _encode(self, texts: list[str], tags: bool) -> list[RankedText]:
        parsed = [parse_tags(text) if tags else (text, []) for text in texts]
        encodings = self.tokenizer.encode_batch([encodable(text) for text, _ in parsed], add_special_tokens=False)
        return [
            RankedText(
                text, segments, np.array(encoding.ids, np.int64), np.array(encoding.offsets, np.int64).reshape(-1, 2)
            )
            for (text, segments), encoding in zip(parsed, encodings)
        ]

    def _encode_chunks(self, texts: list[str], request: Request) -> list[RankedText]:
        """Tokenise each chunk on its own, so that its tokens do not depend on the following text."""
        unbroken = request.protection.unbroken(request.unit)
        ends = [[*chunk_ends(text, CHUNK, unbroken), len(text)] for text in texts]
        parts = [text[a:b] for text, own in zip(texts, ends) for a, b in zip([0, *own], own)]
        encoded = iter(self._encode(parts, tags=False))
        items = []
        for text, own in zip(texts, ends):
            chunks = [next(encoded) for _ in own]
            offsets = [chunk.offsets + start for chunk, start in zip(chunks, [0, *own])]
            lengths = np.cumsum([len(chunk.ids) for chunk in chunks])
            items.append(
                RankedText(text, [], np.concatenate([chunk.ids for chunk in chunks]), np.concatenate(offsets),
                      np.stack([own, lengths], 1))
            )  # fmt: skip
        return items

    def find_kind(self, text: str) -> str | None:
        """
        The kind of structure that `unit="auto"` finds in a text: `"json"`, `"code"`, `"log"`, `"diff"`, `"csv"`,
        `"settings"`, `"rows"`, `"fences"` or `"tables"`; `None` if it is cut by words.
        """
        offsets = np.array(self._reencode([text])[0].offsets, np.int64).reshape(-1, 2)
        found = find_structure(text, offsets, readable=False)
        return None if found is None else found.kind

    def _reencode(self, texts: list[str]) -> list:
        return self.tokenizer.encode_batch_fast([encodable(text) for text in texts], add_special_tokens=False)

    def _score(self, items: list[RankedText], rates: list[float]) -> None:
        """Score every text; the logits of a chunk do not depend on later tokens."""
        rows, context, told, features = [], [], [], []
        for item, rate in zip(items, rates):
            ends = [len(item.ids)] if item.chunks is None else item.chunks[:, 1].tolist()
            for start, end in zip([0, *ends], ends):
                first = max(0, start - CONTEXT)
                rows.append(item.ids[first:end])
                context.append(start - first)
                told.append(rate)
                if item.features is not None:
                    features.append(item.features[first:end])
        found = score(self.policy, rows, told, features if self.takes_question else None)
        logits = (row[skipped:] for row, skipped in zip(found, context))
        for item in items:
            num_rows = 1 if item.chunks is None else len(item.chunks)
            item.logits = np.concatenate([next(logits) for _ in range(num_rows)])

    def _features(self, item: RankedText, question: str | None, by_lines: bool = False) -> np.ndarray:
        """
        Features of every token of a text; with `by_lines` each record of a JSON counts as a line of its own. Those of a
        chunk are computed from the last few chunks up to its end, so that appended text does not change them.
        """
        if item.chunks is None:
            text = records_on_lines(item.text) if by_lines else item.text
            return token_features(text, item.offsets, self._rarity, question)
        found, start = [], 0
        ends = item.chunks.tolist()
        for number, (end_char, end) in enumerate(ends):
            behind = max(0, number - _CHUNKS_BEHIND)
            first_char, first = ends[behind - 1] if behind else (0, 0)
            offsets = item.offsets[first:end] - first_char
            found.append(
                token_features(item.text[first_char:end_char], offsets, self._rarity, question)[start - first :]
            )
            start = end
        return np.concatenate([*found, np.zeros((0, self.policy.num_features), np.float32)])

    def reference_logits(self, text: str, question: str | None = None) -> np.ndarray:
        """Keep logits of each token `(num_tokens,)` at the rate 0.5, which `quality` uses."""
        (item,) = self._encode([text], tags=False)
        if self.takes_question:
            item.features = self._features(item, question)
        self._score([item], [0.5])
        return item.logits

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration in the model's folder, for `quality`. Raises `ValueError` if there is none."""
        if self.folder is None:
            raise ValueError("This compressor was built without a model folder and promises no quality: pass `rate`.")
        return Calibration.load(self.folder)

    @cached_property
    def vocabulary(self) -> str:
        """Name of the model's own vocabulary: that of its base language model."""
        config = self.folder / CONFIG if self.folder is not None else None
        name = None
        if config is not None and config.is_file():
            name = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
        name = str(name or "").replace("\\", "/").rstrip("/").split("/")[-1]
        return "the packaged GPT-2" if name == EMBEDDED else name or "the model"

    @cached_property
    def _rarity(self):
        return self.policy.rarity()

    # -- explain -------------------------------------------------------------------------------------------------------
    def explain(self, text: str, **options):
        """
        The scores of a text as a heat map, and its compressed version.

        Args:
            text (`str`): The text.
            **options: As in `compress`.

        Returns:
            [`Explanation`]: `rich.print` shows it in a terminal, `to_html(path)` writes a page.
        """
        from tokforget.compression.heatmap import Explanation

        if not isinstance(text, str):
            raise TypeError(f"`explain` takes one string, got a {type(text).__name__}.")
        result = self.compress(text, **options)
        chunked = None
        if options.get("prefix_stable"):
            kept = {name: options[name] for name in ("rate", "threshold", "protect") if name in options}
            unit = options.get("unit") or self.policy.unit
            chunked = self._encode_chunks([text], Request(unit=unit, prefix_stable=True, **kept))
        item = (chunked or self._encode([text], tags=options.get("tags", False)))[0]
        return Explanation(item.text, cut(item.text, item.offsets, "token"), result)

    # -- restore -------------------------------------------------------------------------------------------------------
    @cached_property
    def reconstructor(self):
        """The reconstructor of this model (base model and adapter), loaded at the first use."""
        if self.folder is None:
            raise ValueError("This compressor was built without a model folder: load it with `from_pretrained`.")
        with needed("Restoring"):
            from tokforget.models.forget_model import (
                ForgetModel,  # imports Transformers and PEFT, which compressing does not need
            )

        try:
            model = ForgetModel.from_pretrained(self.folder, base_model=self.base_model).eval()
        except ValueError as error:
            if "could not be loaded" not in str(error):
                raise
            raise ValueError(
                f"{error} Restoring needs the base model: from the Hub by its id, or in a folder, `base_model=` or `--base-model`; "
                "`python -m tokforget.models.smollm2 FOLDER` writes SmolLM2-135M-Instruct into one without the Hub."
            ) from error
        return model.reconstructor.to(self.policy.inputs.weight.device if self.backend == "torch" else "cpu")

    def restore(
        self,
        compressed,
        abstain_below: float | None = None,
        gap: str = "[…]",
        batch_size: int = 16,
        progress: bool | None = None,
    ):
        """
        Fill the gaps of a compressed text. The result is a prediction and is marked as such (`is_restoration`,
        `label`).

        The model's layout decides whether this takes one pass or decodes token by token. Texts longer than those of
        the training are restored in overlapping windows.

        Args:
            compressed: A [`CompressedText`] or a pair of token ids and keep mask `(T,)`, or a list of either. The ids
                are those of all positions (dropped ones are not read) or only of the kept tokens.
            abstain_below (`float`, *optional*): Leave a gap where the model's confidence is below this, in (0, 1].
            gap (`str`): Text shown for such a gap.
            batch_size (`int`): Windows per batch.
            progress (`bool`, *optional*): Whether to show a progress bar; by default only on a terminal.

        Returns:
            [`RestoredText`], or a list of them for a list.

        Raises:
            `ValueError`: If the model has no reconstructor, its base model cannot be loaded, or the text was
                compressed with another tokenizer.
        """
        with needed("Restoring"):
            from tokforget.compression.restoration import fill_gaps, full_length, write_text

        if abstain_below is not None and not 0.0 < check_number(abstain_below, "abstain_below") <= 1.0:
            raise ValueError(f"`abstain_below` is a probability in (0, 1], got {abstain_below}.")
        if not isinstance(gap, str):
            raise TypeError(f"`gap` must be a string, got a {type(gap).__name__}, {gap!r:.60}.")
        check_whole(batch_size, "batch_size", 1)
        single = not isinstance(compressed, list)
        given = [compressed] if single else compressed
        texts = [full_length(one, self.fingerprint) for one in given]
        filled = texts
        if any(not mask.all() for _, mask in texts):
            filled = fill_gaps(self.reconstructor, texts, self._restore_window(), batch_size, progress)
        restored = [
            write_text(self.tokenizer, one, ids, mask, confidence, abstain_below, gap)
            for one, (_, mask), (ids, confidence) in zip(given, texts, filled)
        ]
        return restored[0] if single else restored

    def _restore_window(self) -> int:
        """Tokens of a window: the recorded text length of the training run, limited by the model's context."""
        record = self.folder / TRAINING
        trained = json.loads(record.read_text(encoding="utf-8")).get("max_length") if record.is_file() else None
        return min(trained or WINDOW, self.reconstructor.max_tokens or trained or WINDOW)


def _chosen(backend: str | None, device, dtype) -> str:
    """The backend for the given arguments. Raises `ValueError` if they exclude each other."""
    elsewhere = dtype is not None or (device is not None and str(device) != "cpu")
    if backend is None:
        return "torch" if elsewhere else "numpy"
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {BACKENDS}, got {backend!r}. Leave it out to have it chosen.")
    if backend != "torch" and elsewhere:
        raise ValueError(f"`backend={backend!r}` computes on the CPU in float32, got device {device!r} and dtype {dtype!r}: pass "
                         "`backend='torch'`.")  # fmt: skip
    return backend


def _moved(policy, device):
    """A policy in torch on a device, or itself for `None`; `ValueError` in one line if there is no such device."""
    if device is None:
        return policy
    try:
        return policy.to(device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"`device` {device!r} cannot be used: {str(error).splitlines()[0].rstrip('.')}. Pass 'cpu', or 'cuda' where "
                         "there is a GPU.") from error  # fmt: skip


def _check_feasible(choice: Choice, group: list[RankedText], request: Request, vocabulary: str) -> str | None:
    """
    The reason if a budget is not reached, else `None`; by `on_impossible` it is raised as `ValueError` or given as a
    warning. `None` warns of texts that are cut by their structure, in which a protected number keeps its line, and raises
    for other texts.
    """
    target, on_impossible = group[0].target, request.on_impossible
    # With "return" the caller checks the tokens.
    if target is None or choice.count <= target or on_impossible == "return":
        return None
    is_json = any(item.kind == "json" for item in group)
    structured = any(item.kind is not None for item in group)
    what, remedy = "is protected", "protect less"
    if is_json:
        what = "JSON needs to stay whole"
        remedy = "pass `unit='word'`" if request.omit_records else "pass `omit_records=True` or `unit='word'`"
    before = sum(item.num_counted for item in group)
    found = f"{choice.count} of {before}" if choice.count < before else f"all {before} that there were"
    needs = f"What {what} takes {choice.count} tokens of {vocabulary}, the budget is {target}."
    if on_impossible == "raise" or (on_impossible is None and not structured):
        raise ValueError(
            f"{needs} The smallest feasible budget is {choice.count}; {remedy}, or pass `on_impossible='warn'`."
        )
    unreached = f"{needs} Returned are {found}; for less, {remedy}."
    warnings.warn(unreached, OverBudgetWarning, stacklevel=4)
    return unreached

"""
The compressor: what people install. `from_pretrained`, `compress`, `restore`, `explain`. Knows nothing of training.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence, Set
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tokforget.compression.chunks import CHUNK, CONTEXT, blocks, chunk_ends
from tokforget.compression.fences import scan_fences
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
from tokforget.models.word_features import token_features
from tokforget.optional import needed
from tokforget.packaged import EMBEDDED, forget_model_path, reader_model_path
from tokforget.rates import allowed_tokens, check_number, check_whole


class OverBudgetWarning(UserWarning):
    """What must stay takes more than the budget, and the smallest feasible text was returned."""


# Chunks before one whose words are known to it, where a text is decided in chunks.
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
    Shortens texts to a budget by dropping what a language model can do without.

    Args:
        policy (`KeepMaskPolicy`, in evaluation mode, or `ArrayPolicy`): Decides.
        tokenizer (`tokenizers.Tokenizer`): Of the policy's vocabulary; special tokens in a text are to be read as text.
        folder (`Path`, *optional*): Where the adapter lies, for `restore`.

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
        self.base_model: str | None = None  # where `restore` finds it, if not where the model says
        self.fingerprint = hashlib.blake2b(tokenizer.to_str().encode(), digest_size=8).hexdigest()
        let_children_compute()

    def __getstate__(self) -> dict:
        """
        What decides, and nothing of what was loaded or counted on the way: that is found again when it is needed. `copy` and
        `deepcopy` take the same way.
        """
        names = ("policy", "folder", "fingerprint", "base_model")
        # As its library pickles it, a tokenizer forgets how it treats special tokens: the file does not say it.
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
        Load a model folder: the policy with its table, and the tokenizer. No base model, and no network for a local path.

        Args:
            pretrained_model_name_or_path (`str` or `Path`, *optional*): A local folder or a Hub id; without it the compressor for
                real text that the package carries, which decides by words and takes a question. `"embedded"` is the small
                model that the package carries with its reconstructor: it restores.
            device (`str` or `torch.device`, *optional*): Where the policy runs; "cpu" without it.
            dtype (`torch.dtype`, *optional*): Of the policy's weights; float32 without it.
            base_model (`str` or `Path`, *optional*): Where `restore` finds the base model, an id or a folder; what the model was
                trained over without it. Nothing of it is read before that.
            backend (`str`, *optional*): What the policy is computed with: `"numpy"`, which needs no torch and runs on CPUs in float32;
                `"torch"`; or `"onnx"` for ONNX Runtime on CPUs, from the graph that `tokforget export` wrote into the folder: that in
                float32 if there are two. Without it torch where a `device` or a `dtype` is asked for, else NumPy. These score alike to
                1 in 4,096. `"onnx-int8"` is the graph in int8, whose scores and masks are others.
            **hub_options: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            `ValueError`: If the folder is no tokforget model, or not a whole one, or holds anything that would run; or if a
                `backend` does not know the `device` or `dtype`, or finds no graph of these weights.
            [`tokforget.optional.MissingPackage`]: If torch or ONNX Runtime is asked for and not installed.
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
        # `restore` reads it later, when the process may stand in another folder.
        compressor = cls(policy, tokenizer, folder.absolute())
        if base_model is not None:  # a folder stays where it is when the process moves
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
    ) -> CompressedText | list[CompressedText]:
        r"""
        Compress one text or several.

        The budget counts tokens of the output string, tokenised again: never above it, and on natural text at most 1
        below it (in word units: one word). Results do not depend on the other texts of the call, except with
        `budget="corpus"`.

        Args:
            texts (`str` or `Sequence[str]`): Any text of any length.
            rate (`float`, *optional*): Fraction of tokens to keep, in (0, 1]. 0.5 if no budget is given.
            target_tokens (`int`, *optional*): Tokens to keep.
            threshold (`float`, *optional*): Keep what scores at least this, in (0, 1); no budget then.
            quality (`float`, *optional*): Keep as little as the model's calibration allows for a reader to retain this share of
                what the text tells it, in (0, 1]; see [`tokforget.compression.quality`]. A text for which nothing shorter can be
                promised is returned whole, and says so.
            risk (`float`, *optional*): Share of texts that may fall below `quality`, in (0, 1); 0.1 without it. The packaged model
                is calibrated for 0.05, 0.1, 0.2, 0.3 and 0.5; between two of them the lower one holds.
            unit (`str`, *optional*): `"token"`, or `"word"`: a word is kept or dropped whole, and so is a number or an address;
                or `"auto"`: by words, but JSON stays JSON, and code and logs are taken by lines
                ([`tokforget.compression.structure`]). What the model was trained by without it.
            protect (*optional*): What must stay byte for byte; one item or several: names out of `"numbers"`, `"urls"`,
                `"emails"`, `"paths"`, `"code_fences"`, `"inline_code"`, `"identifiers"`, `"negations"`, `"sentence_ends"`,
                `"line_breaks"`, `"roles"`; compiled regular expressions or `"re:<pattern>"`; `"first:<n>"` and `"last:<n>"`
                tokens; spans `(start, end)` in characters of a single text; functions from a text to spans. By words the preset
                `"readable"` stays on beside them: negations come first and with what they negate, and line breaks, speakers,
                ends of sentences and limits ("before", "more than") with what is left of theirs, as far as the budget allows.
                `"none"`, `None` or `[]` switches it off.
            nested (`bool`): A smaller budget keeps a subset of what a larger one keeps.
            prefix_stable (`bool`): Appending to a text changes nothing in what was decided for it before, except in its
                last, unfinished chunk of some 130 tokens. Takes a rate or a threshold.
            budget (`str`): `"per_text"`, or `"corpus"`: one budget over all texts, spent where the scores are highest.
            tags (`bool`): Read `<keep>`, `<keep rate=0.8>`, `<drop>` and `<llmlingua, rate=0.4, compress=False>` segments.
            min_tokens (`int`): Texts below this many tokens are returned whole, and say so.
            on_impossible (`str`, *optional*): What is done where protected text, or JSON that stays JSON, exceeds the budget:
                `"raise"`, or `"warn"` and return the smallest feasible result, which says why in `unreached`. Without it
                `"warn"` for `unit="auto"`, which is asked to make the best of any text, and `"raise"` else.
            question (`str`, or one for each text, *optional*): What will be asked about the text: what answers it is kept
                first. The model must have been trained with questions (`takes_question`).
            count_tokens (*optional*): Whose tokens `rate`, `target_tokens` and `min_tokens` count and the result reports: a
                `tokenizer.json`, a folder with one, an id on the Hub, a name of tiktoken (`"o200k_base"`, `"gpt-4o"`), a
                loaded tokenizer, or a function from a text to a number; see [`tokforget.compression.counting`]. The model's
                own without it. The output is counted as a string, and filled to the last token that a piece fits into;
                "first:n" and "last:n" of `protect`, and the quotas of `tags`, stay in the model's tokens.
            mark_omissions (`bool`): Write into the output what is gone: `[… lines 12-18]` for whole lines of the original,
                `[…]` for eight words or more within a line, where the gap is at least twice as long as its mark. Marks are
                part of the budget, are not written into JSON, and are left out of a text whose budget is too small for them.

        Returns:
            [`CompressedText`], or a list of them for a sequence of texts.

        Raises:
            `ValueError`: If arguments exclude each other, or what is protected does not fit the budget.
        """
        request = Request(
            rate=rate, target_tokens=target_tokens, threshold=threshold, quality=quality, risk=risk, unit=self.policy.unit if unit is None else unit, protect=protect, nested=nested,
            prefix_stable=prefix_stable, budget=budget, tags=tags, min_tokens=min_tokens, on_impossible=on_impossible,
            count_tokens=count_tokens, mark_omissions=mark_omissions,
        )  # fmt: skip
        single = isinstance(texts, str)
        texts = as_texts(texts)
        request.check_texts(texts, single)
        results = self._compress(texts, request, self._questions(question, len(texts)))
        return results[0] if single else results

    @property
    def backend(self) -> str:
        """What the policy is computed with: `"numpy"`, `"torch"`, `"onnx"` or `"onnx-int8"`."""
        return self.policy.backend

    def to(self, device) -> "Compressor":
        """
        Have the policy run on a device (`str` or `torch.device`) from now on, by torch; itself is returned.

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
        """Whether the model looks at a question."""
        return self.policy.num_features > 0

    def _questions(self, question: str | Sequence[str | None] | None, num_texts: int) -> list[str | None]:
        """A question or none for each text."""
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
                item.features, item.asked = self._features(item, question), bool(question)
        vocabulary = self.vocabulary if request.counter is None else request.counter.name
        if request.counter is not None:
            for item, total in zip(items, request.counter([item.text for item in items])):
                item.total = total
        for item in items:
            if not len(item.ids) or not item.num_counted:
                item.returned_whole_because = "no tokens"
            elif item.num_counted < request.min_tokens:
                item.returned_whole_because = "min_tokens"
            elif request.quality is not None:
                item.worth_needed = 1.0 if needed is None else needed
                item.returned_whole_because = "quality" if needed is None else None
        self._score(items, request.conditioning_rates([item.num_counted for item in items]))
        active = [item for item in items if not item.returned_whole_because]
        for item in active:
            item.prepare(request)
        groups = [active] * bool(active) if request.budget == "corpus" else [[item] for item in active]
        counts = self._reencode
        if request.counter is not None:
            counts = lambda strings: [range(count) for count in request.counter(strings)]  # noqa: E731
        choices = run_searches([search(group, request) for group in groups], counts)
        done: dict[int, CompressedText] = {}
        for group, choice in zip(groups, choices):
            unreached = _check_feasible(choice, group, request.on_impossible, vocabulary)
            start = 0
            own = choice.encoded if request.counter is None else self._reencode(choice.outputs)
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
    ) -> CompressedMessages:
        """
        Shorten the results of tools and the older turns of a chat, in OpenAI's or Anthropic's dictionaries.

        Verbatim stay: system and developer messages, the last user message and the assistant's words behind it, calls of tools
        with their arguments, thinking, images, audio, documents and parts of a kind that is not known. Roles, ids, `cache_control`
        and all else beside the texts are copied. No message is taken out, and none is changed in place.

        The budget is for all texts together, calls of tools and what stays verbatim included, each counted on its own; never
        exceeded. All that is shortened gets one rate; what needs more (the keys of a JSON, what is protected) gets it, and the
        others less.

        With `stable=True` a message is decided alone: the same message gives the same bytes in every transcript, whatever stands
        before and behind it, so that a provider's prompt cache stays valid while the transcript grows. Each text is then shortened
        to `rate` (or `quality`) by itself, there is no question, users' words are never shortened, and the assistant's only with
        `roles=("tool", "assistant")`.

        Compressing twice changes nothing at the same setting: what was written is remembered, by hash, in `memory`.

        Args:
            messages (`Sequence[dict]`): `role`, and `content` as a string, a list of parts, or None.
            rate (`float`, *optional*): Fraction of all tokens to keep, in (0, 1]; 0.5 if no budget is given.
            target_tokens (`int`, *optional*): Tokens to keep of all messages.
            quality (`float`, *optional*): As in `compress`, for each text by itself; JSON, code and logs stay whole then.
            risk (`float`, *optional*): As in `compress`.
            system (`str` or `list`, *optional*): Anthropic's system prompt. Verbatim, and counted.
            question (`str` or `bool`): What the texts will be asked; True takes it from the last user message, None for none.
            unit (`str`), protect (*optional*): As in `compress`, but spans.
            roles (`Sequence[str]`, *optional*): Whose texts are shortened, out of `"tool"`, `"assistant"` and `"user"`; all three,
                with `stable` `"tool"` alone.
            stable (`bool`): Decide each message alone.
            min_tokens (`int`, *optional*): Messages of fewer tokens together are returned whole: a request costs more than such a
                prompt can save. 500; 0 with `target_tokens`, which is a limit, and with `stable`.
            min_message_tokens (`int`): Shorter texts of messages stay whole.
            min_rate (`float`): No text is asked to become shorter than this; in (0, 1]. With `stable` it is not looked at.
            on_impossible (`str`): `"raise"`, or `"warn"` and return the smallest feasible result.
            memory (`MutableMapping[str, int]`, *optional*): What was compressed, by hash, with the tokens before. Without it this
                compressor's own, which holds the last 65,536 texts; pass a dictionary of yours to keep it longer than the process.
            count_tokens (*optional*): Whose tokens budgets, floors and records count, as in `compress`; the model's own without it.

        Returns:
            [`CompressedMessages`]: `messages` and `system` of the shape that was given, tokens before and after, `records`, `omitted`.

        Raises:
            `ValueError`: If arguments exclude each other, or what stays verbatim does not fit the budget.
            `TypeError`: If these are no messages.
        """
        return compress_messages(
            self, messages, system, memory, rate=rate, target_tokens=target_tokens, quality=quality, risk=risk, question=question, unit=unit,
            protect=protect, roles=roles, stable=stable, min_tokens=min_tokens, min_message_tokens=min_message_tokens,
            min_rate=min_rate, on_impossible=on_impossible, count_tokens=count_tokens,
        )  # fmt: skip

    @cached_property
    def memory(self) -> Memory:
        """What `compress_messages` has written in this process, by hash; not copied along."""
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
        Compress a long text that arrives in parts, such as the lines of a file, in memory that does not grow.

        The outputs, joined, are the compressed text; their tokens never exceed `rate` times the tokens read so far. The
        first token of each block is kept, so that blocks join like words.

        Args:
            parts (`Iterable[str]`): Strings of any length.
            rate (`float`, *optional*), threshold (`float`, *optional*): As in `compress`.
            block_chars (`int`): Characters that are decided together, at least.
            **options: `unit`, `protect`, `on_impossible`, `question` as in `compress`.

        Returns:
            `Iterator[CompressedText]`: One for each block, with `start` its place in the stream.
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
        # Built here, so that a mistake shows now and not when the first block is asked for.
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
        """Each chunk is tokenised on its own, so that its tokens do not depend on what follows."""
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

    def _reencode(self, texts: list[str]) -> list:
        return self.tokenizer.encode_batch_fast([encodable(text) for text in texts], add_special_tokens=False)

    def _score(self, items: list[RankedText], rates: list[float]) -> None:
        """Logits of every text; a chunk's look at no token behind it."""
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

    def _features(self, item: RankedText, question: str | None) -> np.ndarray:
        """
        Of every token of a text. A chunk's are those of the text up to its end, the last few chunks of it: what is appended
        later changes nothing in them.
        """
        if item.chunks is None:
            return token_features(item.text, item.offsets, self._rarity, question)
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
        """Keep logits of each token `(num_tokens,)` that a `quality` goes by: those of the rate 0.5."""
        (item,) = self._encode([text], tags=False)
        if self.takes_question:
            item.features = self._features(item, question)
        self._score([item], [0.5])
        return item.logits

    @cached_property
    def calibration(self) -> Calibration:
        """What the model's folder promises of its texts; `ValueError` if it promises nothing."""
        if self.folder is None:
            raise ValueError("This compressor was built without a model folder and promises no quality: pass `rate`.")
        return Calibration.load(self.folder)

    @cached_property
    def vocabulary(self) -> str:
        """What the model's own vocabulary is called: by the language model that it is of."""
        config = self.folder / "config.json" if self.folder is not None else None
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
        Scores of a text as a heat map, and what a budget makes of it.

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
        """The reconstructor of this model, loaded when it is first used: base model and adapter."""
        if self.folder is None:
            raise ValueError("This compressor was built without a model folder: load it with `from_pretrained`.")
        with needed("Restoring"):
            from tokforget.models.forget_model import (
                ForgetModel,  # brings Transformers and PEFT, which compressing does without
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
        Fill the gaps of what `compress` kept. A restoration is a guess, and its result says so (`is_restoration`, `label`).

        One pass or token by token, as the model's layout says. Longer texts than the model was trained on are restored in
        overlapping windows.

        Args:
            compressed: A [`CompressedText`] or a pair of token ids and keep mask `(T,)`, or a list of either. The ids are
                those of all places (what stands at dropped ones is not read) or of the kept tokens alone.
            abstain_below (`float`, *optional*): Leave a gap where the model's confidence is below this, in (0, 1].
            gap (`str`): What stands for tokens that are left open.
            batch_size (`int`): Windows restored at once.
            progress (`bool`, *optional*): Whether a bar is shown; without it only on a terminal.

        Returns:
            [`RestoredText`], or a list of them for a list.
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
        """Tokens of a window: as long as the texts of the training run, where that is on record, and as the model takes."""
        record = self.folder / "training_config.json"
        trained = json.loads(record.read_text(encoding="utf-8")).get("max_length") if record.is_file() else None
        return min(trained or WINDOW, self.reconstructor.max_tokens or trained or WINDOW)


def _chosen(backend: str | None, device, dtype) -> str:
    """The backend for what was asked for."""
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


def _check_feasible(choice: Choice, group: list[RankedText], on_impossible: str, vocabulary: str) -> str | None:
    """Why a budget is not reached, if it is not; `ValueError` or a warning says it."""
    target = group[0].target
    # Whoever asks for "return" looks at the tokens himself.
    if target is None or choice.count <= target or on_impossible == "return":
        return None
    is_json = any(item.kind == "json" for item in group)
    what, remedy = ("JSON needs to stay whole", "pass `unit='word'`") if is_json else ("is protected", "protect less")
    before = sum(item.num_counted for item in group)
    found = f"{choice.count} of {before}" if choice.count < before else f"all {before} that there were"
    needs = f"What {what} takes {choice.count} tokens of {vocabulary}, the budget is {target}."
    if on_impossible == "raise":
        raise ValueError(
            f"{needs} The smallest feasible budget is {choice.count}; {remedy}, or pass `on_impossible='warn'`."
        )
    unreached = f"{needs} Returned are {found}; for less, {remedy}."
    warnings.warn(unreached, OverBudgetWarning, stacklevel=4)
    return unreached

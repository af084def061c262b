"""
Compress the messages of a chat: choose the texts to shorten, divide the budget, keep the rest.

The messages are OpenAI's or Anthropic's dictionaries. System, developer and the last user message stay verbatim, and
so do tool calls, thinking, images and parts of an unknown kind. Tool results and the turns before the last user
message are shortened. No message is marked or removed.

Compressing an output again changes nothing, because the hash of every output is stored with the tokens of its
original. A text found there with the same settings stays, and counts in the budget with the tokens of its original.
`target_tokens` needs no such memory, because messages that fit are returned whole.
"""

import hashlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

from tokforget.compression.counting import TokenCounter
from tokforget.compression.protection import PRESET
from tokforget.compression.request import Request
from tokforget.compression.results import CompressedText
from tokforget.rates import allowed_tokens, check_flag, check_rate, check_whole
from tokforget.text_units import split_sentences


# Shorter chats are not compressed: for so many tokens compressing takes about 0.05 s of a free core, about as long as
# a provider needs to read the half that is saved, and it may lose content. Users of tools that compress every prompt
# ask for 500 to 2,000.
MIN_TOKENS = 500
# Texts of a line or two: compressing saves ten tokens and may lose the content. "The address is 60 Furman Street" lost
# the number, "from March 11th to March 13th" one of the dates.
MIN_MESSAGE_TOKENS = 32
# The lowest rate in the training of policies; below it outputs are hardly readable.
MIN_RATE = 0.2

ROLES = ("tool", "assistant", "user")
_ROLE_OF = {"tool": "tool", "function": "tool", "assistant": "assistant", "user": "user"}
_VERBATIM_ROLES = ("system", "developer")
_TEXT_PARTS = ("text", "input_text", "output_text")
# Longest message that is used as the question; of a longer one its questions, or its last paragraph.
_QUESTION_WORDS = 60
_MEMORY = 65_536


# -- results -----------------------------------------------------------------------------------------------------------
class Omitted(NamedTuple):
    """
    Text that was left out: number of the message, keys from the message to the text (such as
    `("content", 0, "text")`), first and last character, and the text itself.
    """

    message: int
    place: tuple
    start: int
    end: int
    text: str


@dataclass
class PartRecord:
    """
    One text of a message, or a part that is not text.

    Args:
        place (`tuple`): Keys from the message to the part.
        original_tokens (`int`), compressed_tokens (`int`): Tokens of the text; 0 for other parts.
        whole (`str`, *optional*): Why it was not changed; `None` if it was shortened.
        predicted_retention (`float`, *optional*): With a `quality`; see [`CompressedText`].
        dropped_spans (`list[tuple[int, int]]`): Spans of the text that were left out, in characters.
    """

    place: tuple
    original_tokens: int = 0
    compressed_tokens: int = 0
    whole: str | None = None
    predicted_retention: float | None = None
    dropped_spans: list[tuple[int, int]] = field(default_factory=list)
    text: str = field(default="", repr=False)


@dataclass
class MessageRecord:
    """Record of one message: its number from 0 (-1 for `system=`), its role, and its parts."""

    message: int
    role: str
    parts: list[PartRecord]

    @property
    def original_tokens(self) -> int:
        return sum(part.original_tokens for part in self.parts)

    @property
    def compressed_tokens(self) -> int:
        return sum(part.compressed_tokens for part in self.parts)

    @property
    def rate(self) -> float:
        """Tokens after ÷ before; 1 for a message without text."""
        return self.compressed_tokens / self.original_tokens if self.original_tokens else 1.0

    @property
    def whole(self) -> str | None:
        """Why the message was not changed; `None` if any of its texts was shortened."""
        reasons = list(dict.fromkeys(part.whole for part in self.parts))
        return None if None in reasons else "; ".join(reasons) or "empty"


@dataclass
class CompressedMessages:
    """
    The result of [`Compressor.compress_messages`].

    Args:
        messages (`list[dict]`): New messages in the given form.
        system (*optional*): The given `system=`, unchanged.
        records (`list[MessageRecord]`): One for each message; `system=` comes first, with the number -1.
        target_tokens (`int`, *optional*): The budget, if there was a common one.
        question (`str`, *optional*): The question that was used.
        returned_whole (`str`, *optional*): Why nothing was compressed: `"min_tokens"`, or `"fits"` if all is within
            the budget.
        vocabulary (`str`): Name of the vocabulary that counts.
    """

    messages: list[dict]
    system: Any
    records: list[MessageRecord]
    target_tokens: int | None = None
    question: str | None = None
    returned_whole: str | None = None
    vocabulary: str = ""

    @property
    def original_tokens(self) -> int:
        """
        Tokens of all given texts, including tool calls. Roles, images, definitions of tools and a provider's marks are
        not counted.
        """
        return sum(record.original_tokens for record in self.records)

    @property
    def compressed_tokens(self) -> int:
        """Tokens of all returned texts."""
        return sum(record.compressed_tokens for record in self.records)

    @property
    def compression_rate(self) -> float:
        """Tokens after ÷ before; 1 without any text."""
        return self.compressed_tokens / self.original_tokens if self.original_tokens else 1.0

    @property
    def shortfall(self) -> int:
        """Tokens below the budget; negative if it cannot be met (with `on_impossible="warn"`). 0 without a budget."""
        return 0 if self.target_tokens is None else self.target_tokens - self.compressed_tokens

    @property
    def omitted(self) -> list[Omitted]:
        """All omissions, in order."""
        return [
            Omitted(record.message, part.place, start, end, part.text[start:end])
            for record in self.records
            for part in record.parts
            for start, end in part.dropped_spans
        ]

    def to_dict(self) -> dict:
        """Plain Python values; omissions are spans."""
        records = [
            {name: getattr(record, name) for name in ("message", "role", "original_tokens", "compressed_tokens", "whole")}
            | {"rate": round(record.rate, 4)}
            | {"parts": [{k: v for k, v in vars(part).items() if k != "text"} for part in record.parts]}
            for record in self.records
        ]  # fmt: skip
        own = {name: getattr(self, name) for name in ("target_tokens", "question", "returned_whole", "vocabulary")}
        counts = {name: getattr(self, name) for name in ("original_tokens", "compressed_tokens", "shortfall")}
        return {"messages": self.messages, "system": self.system} | counts | own | {"records": records}


class Memory(MutableMapping):
    """
    From hashes of outputs to the tokens of their originals. The oldest entries are removed when there are too many.
    """

    def __init__(self, most: int = _MEMORY):
        self.most, self._found, self._lock = most, OrderedDict(), Lock()

    def __getitem__(self, key: str) -> int:
        with self._lock:
            self._found.move_to_end(key)
            return self._found[key]

    def __setitem__(self, key: str, tokens: int) -> None:
        with self._lock:
            self._found[key] = tokens
            self._found.move_to_end(key)
            while len(self._found) > self.most:
                self._found.popitem(last=False)

    def __delitem__(self, key: str) -> None:
        del self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._found))

    def __len__(self) -> int:
        return len(self._found)


# -- contents of messages ----------------------------------------------------------------------------------------------
@dataclass(eq=False)
class _Text:
    """A text of a message while it is processed: `role` is its owner's role, `why` the reason if it stays whole."""

    message: int
    place: tuple
    text: str
    role: str = ""
    why: str | None = None
    tokens: int = 0
    counted: int = 0  # tokens before it was first compressed
    result: CompressedText | None = None

    @property
    def size(self) -> int:
        return self.tokens if self.result is None else self.result.compressed_tokens


def check_messages(messages: object, system: object = None) -> None:
    """
    Check the form of messages.

    Raises:
        `TypeError`, `ValueError`: If they are not messages; the error says what was found, where, and what is allowed.
    """
    if isinstance(messages, dict) and "messages" in messages:
        raise TypeError("`messages` is a request: pass its `messages`, and what it has as `system` as `system=`.")
    if not isinstance(messages, (list, tuple)):
        raise TypeError(f"`messages` must be a list of dictionaries, got {_shown(messages)}.")
    for place, message in enumerate(messages):
        if not isinstance(message, dict):
            raise TypeError(
                f"Message {place} must be a dictionary with `role` and `content`, got {_shown(message)}. Of an object of a client "
                "library pass `.model_dump(exclude_none=True)`."
            )
        if not isinstance(message.get("role"), str):
            raise ValueError(
                f"Message {place} has no `role` that is a string, got {_shown(message.get('role'))}. Roles are system, developer, "
                "user, assistant and tool."
            )
        _check_content(message.get("content"), f"`content` of message {place}")
        if not isinstance(message.get("tool_calls"), (list, tuple, type(None))):
            raise TypeError(
                f"`tool_calls` of message {place} must be a list of calls or None, got {_shown(message['tool_calls'])}."
            )
    _check_content(system, "`system`")


def _check_content(content: object, name: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, (list, tuple)):
        raise TypeError(f"{name} must be a string, a list of parts or None, got {_shown(content)}.")
    for place, part in enumerate(content):
        if isinstance(part, str):
            continue
        if not isinstance(part, dict):
            raise TypeError(f"{name}, part {place}, must be a dictionary or a string, got {_shown(part)}.")
        if part.get("type") in _TEXT_PARTS and not isinstance(part.get("text"), str):
            raise TypeError(f"{name}, part {place}: `text` must be a string, got {_shown(part.get('text'))}.")
        if part.get("type") == "tool_result":
            _check_content(part.get("content"), f"{name}, part {place}: its `content`")


def _shown(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}, {value!r:.60}"


def _find_texts(message: dict, number: int) -> list[_Text]:
    """All texts and other parts of a message, each with its place."""
    role = message["role"]
    found = list(_content_texts(message.get("content"), number, ("content",), _ROLE_OF.get(role, role)))
    for place, call in enumerate(message.get("tool_calls") or ()):
        if isinstance(call, dict) and isinstance(call.get("function"), dict):
            found.append(
                _Text(number, ("tool_calls", place), _call_text(call["function"], "arguments"), why="tool call")
            )
    if isinstance(message.get("function_call"), dict):
        found.append(
            _Text(number, ("function_call",), _call_text(message["function_call"], "arguments"), why="tool call")
        )
    return found


def _content_texts(content: object, number: int, place: tuple, role: str) -> Iterator[_Text]:
    if isinstance(content, str):
        yield _Text(number, place, content, role)
        return
    for at, part in enumerate(content or ()):
        here = (*place, at)
        if isinstance(part, str):
            yield _Text(number, here, part, role)
            continue
        kind = part.get("type")
        if kind in _TEXT_PARTS:
            yield _Text(number, (*here, "text"), part["text"], role)
        elif kind == "tool_result":
            yield from _content_texts(part.get("content"), number, (*here, "content"), "tool")
        elif kind == "tool_use":
            yield _Text(number, here, _call_text(part, "input"), why="tool call")
        elif kind == "thinking" and isinstance(part.get("thinking"), str):
            yield _Text(number, here, part["thinking"], why="thinking")
        else:
            yield _Text(number, here, "", why=f"{kind} part" if isinstance(kind, str) else "unknown part")


def _call_text(call: dict, arguments: str) -> str:
    """The text of a tool call that a model reads, for counting."""
    given = call.get(arguments)
    given = (
        given
        if isinstance(given, str)
        else ""
        if given is None
        else json.dumps(given, ensure_ascii=False, default=str)
    )
    return f"{call.get('name') or ''}{given}"


def _last_user_message(messages: Sequence[dict], texts: list[_Text]) -> int:
    """Number of the last message with a user's text (not only tool results); without one, the last message."""
    said = {
        t.message for t in texts if messages[t.message]["role"] == "user" and t.role != "tool" and (t.text or t.why)
    }
    return max(said, default=len(messages) - 1)


def _question_in(texts: Sequence[str]) -> str | None:
    """
    The question in a message: all of a short one; of a long one its interrogative sentences, else its last paragraph.
    """
    text = "\n\n".join(text.strip() for text in texts if text.strip())
    if len(text.split()) > _QUESTION_WORDS:
        sentences = [text[start:end].strip() for start, end in split_sentences(text)]
        asking = [sentence for sentence in sentences if sentence.endswith(("?", "？", "؟"))]
        text = " ".join(asking) or text.split("\n\n")[-1]
    return " ".join(text.split()[-_QUESTION_WORDS:]) or None


def _copied(value):
    """Copy lists and dictionaries but not their strings, which may be megabytes of an image."""
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copied, value)) if type(value) in (list, tuple) else list(map(_copied, value))
    return value


def _put(message: dict, place: tuple, text: str) -> None:
    *way, last = place
    for key in way:
        if isinstance(message[key], tuple):  # a tuple cannot be changed
            message[key] = list(message[key])
        message = message[key]
    message[last] = text


# -- compress ----------------------------------------------------------------------------------------------------------
@dataclass(kw_only=True)
class _Setting:
    """The checked arguments of `Compressor.compress_messages`; see there."""

    rate: float | None
    target_tokens: int | None
    quality: float | None
    risk: float | None
    question: str | bool | None
    unit: str
    protect: Any
    roles: Sequence[str] | None
    stable: bool
    min_tokens: int | None
    min_message_tokens: int
    min_rate: float
    on_impossible: str
    count_tokens: Any = None
    omit_records: bool = False

    def __post_init__(self):
        self.count_tokens = TokenCounter.of(self.count_tokens)
        request = self.request()  # checks the arguments shared with `compress`
        self.rate = request.rate
        self.on_impossible = self.on_impossible or "raise"
        if self.on_impossible not in ("raise", "warn"):
            raise ValueError(f"`on_impossible` must be one of ('raise', 'warn'), got {self.on_impossible!r}.")
        if not (self.question is None or isinstance(self.question, (bool, str))):
            raise TypeError(
                f"`question` must be a string, True (taken from the last user message) or None, got {_shown(self.question)}."
            )
        for name in ("min_tokens", "min_message_tokens"):
            if getattr(self, name) is not None or name == "min_message_tokens":
                check_whole(getattr(self, name), name, 0)
        check_rate(self.min_rate, "min_rate")
        check_flag(self.stable, "stable")
        if self.roles is not None and not isinstance(self.roles, Iterable):
            raise TypeError(f"`roles` must be a list out of {ROLES}, got {_shown(self.roles)}.")
        if self.roles is not None and not isinstance(self.roles, str):
            self.roles = tuple(self.roles)
        if self.roles is None:
            self.roles = ("tool",) if self.stable else ROLES
        unknown = [self.roles] if isinstance(self.roles, str) else [role for role in self.roles if role not in ROLES]
        if unknown:
            raise ValueError(f"`roles` must be a list out of {ROLES}, got {unknown[0]!r}.")
        if self.stable:
            self._check_stable()
        if self.min_tokens is None:
            # `target_tokens` is a hard limit and must hold for short chats, too; a rate need not.
            self.min_tokens = 0 if self.stable or self.target_tokens is not None else MIN_TOKENS

    def _check_stable(self) -> None:
        for clash, message in (
            (self.target_tokens is not None, "one budget for all moves with every message: pass `rate` or `quality`."),
            (isinstance(self.question, str), "a question changes from turn to turn: leave out `question`."),
            ("user" in self.roles, "the last user message is verbatim and would change later: leave 'user' out of `roles`."),
            (bool(self.min_tokens), "a floor for the whole falls when the transcript grows: leave out `min_tokens`."),
        ):  # fmt: skip
            if clash:
                raise ValueError(f"`stable` decides each message alone, and {message}")
        self.question = None

    def request(self, rate: float | None = None) -> Request:
        """The request for the texts of this call, with their budget or the given rate."""
        budget = {"rate": rate} if rate is not None else {
            "rate": self.rate, "target_tokens": self.target_tokens, "quality": self.quality, "risk": self.risk
        }  # fmt: skip
        unit = "word" if self.unit == "auto" and self.quality is not None else self.unit
        request = Request(
            **budget, unit=unit, protect=self.protect, count_tokens=self.count_tokens, omit_records=self.omit_records
        )
        if request.protection.spans:
            raise ValueError("Protected spans belong to one text. For messages pass a function from a text to spans.")
        request.on_impossible = "return"
        return request

    def key(self, fingerprint: str) -> str:
        """The key of two calls must be equal for an output of one to stay unchanged in the other."""
        least = "" if self.target_tokens is None else "least"
        quality = self.quality if self.risk is None else (self.quality, self.risk)
        found = (fingerprint, self.rate, quality, least, self.unit, self.protect, self.min_rate, self.stable)
        found += () if self.count_tokens is None else (self.count_tokens.name,)
        return repr((*found, "omit_records") if self.omit_records else found)


def compress_messages(
    compressor, messages: Sequence[dict], system=None, memory: MutableMapping | None = None, **options
) -> CompressedMessages:
    """Implements [`Compressor.compress_messages`]; see there."""
    options = {"protect": PRESET, "min_message_tokens": MIN_MESSAGE_TOKENS, "min_rate": MIN_RATE} | options
    setting = _Setting(**options)
    check_messages(messages, system)
    if isinstance(setting.question, str) and setting.question and not compressor.takes_question:
        compressor._questions(setting.question, 1)  # raises an error if the model takes no question
    if memory is not None and not isinstance(memory, MutableMapping):
        raise TypeError(f"`memory` must be a dictionary, or None for the compressor's own, got {_shown(memory)}.")
    key, memory = setting.key(compressor.fingerprint), compressor.memory if memory is None else memory
    texts = [text for number, message in enumerate(messages) for text in _find_texts(message, number)]
    last_user = _last_user_message(messages, texts)
    for text in texts:
        text.why = text.why or _why_verbatim(messages[text.message], text, last_user, setting)
    above = list(_content_texts(system, -1, (), "system"))
    for text in above:
        text.why = "system"
    _count(compressor, [*above, *texts], setting.count_tokens)
    run = _Run(compressor, setting, key, memory, [*above, *texts])
    if compressor.takes_question and setting.question is True:
        asked = [t.text for t in texts if t.message == last_user and t.role == "user"]
        run.question = _question_in(asked) if messages and messages[last_user]["role"] == "user" else None
    elif isinstance(setting.question, str):
        run.question = setting.question or None
    run.decide()
    new = [_copied(message) for message in messages]
    for text in texts:
        if text.result is not None:
            _put(new[text.message], text.place, text.result.text)
    roles = {-1: "system"} | {number: message["role"] for number, message in enumerate(messages)}
    numbers = [-1] * bool(above) + list(range(len(messages)))
    own: dict[int, list[PartRecord]] = {number: [] for number in numbers}
    for text in [*above, *texts]:
        own[text.message].append(_part_record(text))
    records = [MessageRecord(number, roles[number], own[number]) for number in numbers]
    vocabulary = compressor.vocabulary if setting.count_tokens is None else setting.count_tokens.name
    return CompressedMessages(new, _copied(system), records, run.target, run.question, run.returned_whole, vocabulary)


def _why_verbatim(message: dict, text: _Text, last_user: int, setting: _Setting) -> str | None:
    role = text.role
    if message["role"] in _VERBATIM_ROLES:
        return message["role"]
    if role not in ROLES:
        return f"unknown role {message['role']!r}"
    if role not in setting.roles:
        return f"{role}, not among `roles`"
    if role != "tool" and not setting.stable and text.message >= last_user:
        return "last user message" if text.message == last_user and role == "user" else "current turn"
    return None if text.text.strip() else "empty"


def _count(compressor, texts: list[_Text], counter: TokenCounter | None) -> None:
    given = [text.text for text in texts]
    counts = map(len, compressor._reencode(given)) if counter is None else counter(given)
    for text, count in zip(texts, counts):
        text.tokens = text.counted = count


def _part_record(text: _Text) -> PartRecord:
    record = PartRecord(text.place, text.tokens, text.size, text.why, text=text.text)
    if text.result is not None:
        record.predicted_retention = text.result.predicted_retention
        record.dropped_spans = [tuple(span) for span in text.result.dropped_spans.tolist()]
    return record


@dataclass
class _Run:
    """One call: its texts, the open ones among them, and the search for rates within the budget."""

    compressor: Any
    setting: _Setting
    key: str
    memory: MutableMapping
    texts: list[_Text]
    question: str | None = None
    target: int | None = None
    returned_whole: str | None = None
    at_least: bool = False  # the budget cannot be met, and all texts are as short as possible

    def decide(self) -> None:
        setting = self.setting
        open_ = [text for text in self.texts if text.why is None]
        for text in open_:
            if (before := self.memory.get(self._hash(text.text))) is not None:
                text.why, text.counted = "done before", max(int(before), text.tokens)
            elif text.tokens < setting.min_message_tokens:
                text.why = "min_message_tokens"
        open_ = [text for text in open_ if text.why is None]
        total = sum(text.counted for text in self.texts)
        if total < setting.min_tokens or setting.rate == 1.0:
            self.returned_whole = "min_tokens" if total < setting.min_tokens else "fits"
            for text in open_:
                text.why = self.returned_whole
        elif setting.quality is not None:
            self._to_quality(open_)
        elif setting.stable:
            self._each(open_, setting.request())
        else:
            self._to_budget(open_, total)
        for text in open_:
            self._close(text)

    def _hash(self, text: str) -> str:
        data = f"{self.key}\0{text}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=16).hexdigest()

    def _close(self, text: _Text) -> None:
        """Note why a text is unchanged, or store a changed one in the memory."""
        if text.result is None:
            return
        if text.result.text == text.text:
            text.why, text.result = text.result.returned_whole or "nothing to leave out", None
        elif self.setting.target_tokens is None or self.at_least:
            self.memory[self._hash(text.result.text)] = text.counted

    def _each(self, texts: list[_Text], request: Request) -> None:
        """
        Compress every text alone. A text whose result is empty stays whole, because providers refuse empty texts.
        """
        if not texts:
            return
        results = self.compressor._compress([text.text for text in texts], request, [self.question] * len(texts))
        for text, result in zip(texts, results):
            text.result, text.why = (result, None) if result.text.strip() else (None, "no word fits")

    def _to_quality(self, texts: list[_Text]) -> None:
        """
        Shorten texts to a quality. The calibration covers words, so structured texts stay whole unless `unit="word"`.
        """
        if self.setting.unit == "auto":
            for text in texts:
                kind = self.compressor.find_kind(text.text)
                text.why = None if kind is None else f"{kind}, of which no quality is promised"
        self._each([text for text in texts if text.why is None], self.setting.request())

    def _to_budget(self, open_: list[_Text], total: int) -> None:
        """
        Find one rate for all open texts that meets the budget. A text that needs more than this rate (for the keys of
        a JSON or protected text) gets more, and the others get less.
        """
        setting = self.setting
        self.target = setting.target_tokens
        if self.target is None:
            self.target = max(int(allowed_tokens(total, setting.rate)), 1)
        elif sum(text.tokens for text in self.texts) <= self.target:
            self.returned_whole = "fits"
            for text in open_:
                text.why = "fits"
            return
        fixed = sum(text.tokens for text in self.texts) - sum(text.tokens for text in open_)
        flexible = list(open_)
        while flexible:
            room = self.target - fixed - sum(text.size for text in open_ if text not in flexible)
            rate = room / sum(text.tokens for text in flexible)
            self._each(flexible, setting.request(min(max(rate, setting.min_rate), 1.0)))
            stiff = [text for text in flexible if text.size > rate * text.tokens + 1e-6]
            if rate < setting.min_rate or not stiff:
                break
            flexible = [text for text in flexible if text not in stiff]
        size = sum(text.size for text in self.texts)
        if size > self.target:
            self._refuse(open_, size)

    def _refuse(self, open_: list[_Text], size: int) -> None:
        """Raise or warn that the budget cannot be met, with the tokens of each part."""
        setting = self.setting
        short = sum(text.tokens for text in self.texts if text.why == "min_message_tokens")
        least = sum(text.size for text in open_)
        done = sum(text.tokens for text in self.texts if text.why == "done before")
        parts = [f"what stays verbatim takes {size - short - least - done} tokens"]
        parts += [f"texts below `min_message_tokens={setting.min_message_tokens}` {short}"] if short else []
        parts += [f"what was compressed before {done}"] if done else []
        parts += [f"the rest at least {least} (`min_rate={setting.min_rate}`)"] if open_ else []
        message = (
            f"Of these messages {', '.join(parts)}; the budget is {self.target}. The smallest feasible budget is {size}; pass that, lower "
            "`min_rate` or `min_message_tokens`, or pass `on_impossible='warn'`."
        )
        if setting.on_impossible == "raise":
            raise ValueError(message)
        warnings.warn(message, stacklevel=6)
        self.at_least = True

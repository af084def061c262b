"""
The bodies of requests and answers, their OpenAPI descriptions, and the error messages about wrong bodies.

This module checks names and types. The compressor checks values, so that a request and a call in Python get the same
message.
"""

import difflib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from tokforget.compression.messages import MIN_MESSAGE_TOKENS, MIN_RATE
from tokforget.compression.protection import PRESET


# Most texts of a request, because each result takes about 300 bytes even for an empty text.
MAX_TEXTS = 1024


class _FailFast(FailFast):
    """Stops at the first wrong item of a list, because a body may contain a million of them."""

    __hash__ = object.__hash__  # members of a union must be hashable


_Protect = Annotated[
    str | Annotated[list[str | Annotated[list[int], _FailFast()]], _FailFast()] | None,
    Field(
        description="Text that must stay byte for byte: one name or several out of numbers, urls, emails, paths, code_fences, inline_code, "
        "identifiers, negations, sentence_ends, line_breaks, roles; 're:<pattern>'; 'first:<n>', 'last:<n>' (tokens); a list "
        "[start, end] of characters of a single text. 'none' switches the preset off."
    ),
]
_RATE = Field(None, description="Fraction of tokens to keep, in (0, 1]; 0.5 if no budget is given.")
_TARGET = Field(None, description="Most tokens to keep.")
_QUALITY = Field(
    None,
    description="The shortest result for which a reader retains this share, in (0, 1], by the model's calibration.",
)
_RISK = Field(None, description="Share of texts that may fall below `quality`, in (0, 1); 0.1 by default.")
_OMIT_RECORDS = "Drop whole records of JSON, with a string in their place that says how many."
_ON_IMPOSSIBLE = "If protected text exceeds the budget: 'raise' (an error), or 'warn' and return the smallest feasible result, with the reason in `unreached`."


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Options(_Body):
    """The options of `Compressor.compress`."""

    rate: float | None = _RATE
    target_tokens: int | None = _TARGET
    threshold: float | None = Field(
        None, description="Keep all tokens that score at least this, in (0, 1); there is no budget then."
    )
    quality: float | None = _QUALITY
    risk: float | None = _RISK
    unit: str | None = Field(
        None,
        description="'token', 'word' or 'auto' (JSON stays JSON, code and logs are cut by lines), the default for a "
        "model that was trained by words.",
    )
    protect: _Protect = PRESET
    nested: bool = Field(False, description="A smaller budget keeps a subset of the tokens of a larger one.")
    prefix_stable: bool = Field(False, description="Appending to a text does not change the earlier result.")
    tags: bool = Field(False, description="Read <keep>, <drop> and <llmlingua> segments.")
    min_tokens: int = Field(0, description="Shorter texts are returned whole.")
    on_impossible: str | None = Field(None, description=_ON_IMPOSSIBLE)
    count_tokens: str | None = Field(
        None, description="Tokenizer that counts: one of those that the service was started with."
    )
    mark_omissions: bool = Field(False, description="Mark missing lines in the output, within the budget.")
    omit_records: bool = Field(False, description=_OMIT_RECORDS)


class CompressBody(_Options):
    """The arguments of `Compressor.compress`."""

    texts: str | Annotated[list[str], _FailFast()] = Field(
        description=f"A text, or a list of at most {MAX_TEXTS:,}; results have the same form."
    )
    question: str | Annotated[list[str | None], _FailFast()] | None = Field(
        None, description="A question about the text, or a list with one for each text."
    )
    budget: str = Field("per_text", description="'per_text', or 'corpus': one budget over all texts of the request.")
    details: bool = Field(
        False, description="Return ids, scores and spans, which /v1/restore needs, and the omissions."
    )


class ExplainBody(_Options):
    """The arguments of `Compressor.explain`."""

    text: str
    question: str | None = Field(None, description="A question about the text.")


class MessagesBody(_Body):
    """The arguments of `Compressor.compress_messages`."""

    messages: list = Field(description="Messages of a chat, OpenAI's or Anthropic's.")
    rate: float | None = _RATE
    target_tokens: int | None = _TARGET
    quality: float | None = _QUALITY
    risk: float | None = _RISK
    system: str | list | None = Field(None, description="Anthropic's system prompt; verbatim, and counted.")
    question: bool | str | None = Field(
        True, description="A question about the texts; true takes it from the last user message."
    )
    unit: str = "auto"
    protect: _Protect = PRESET
    roles: Annotated[list[str], _FailFast()] | None = Field(
        None, description="Roles whose texts are shortened, out of 'tool', 'assistant' and 'user'."
    )
    stable: bool = Field(
        False, description="Decide each message alone, so that a provider's prompt cache stays valid."
    )
    min_tokens: int | None = Field(None, description="Chats with fewer tokens are returned whole.")
    min_message_tokens: int = Field(MIN_MESSAGE_TOKENS, description="Texts with fewer tokens stay whole.")
    min_rate: float = Field(MIN_RATE, description="Lowest rate of a text, in (0, 1].")
    on_impossible: str = Field("raise", description=_ON_IMPOSSIBLE)
    count_tokens: str | None = Field(
        None, description="Whose tokens are counted: one of the vocabularies that the service was started with."
    )
    omit_records: bool = Field(False, description=_OMIT_RECORDS)
    memory: Annotated[dict[str, int], _FailFast()] | None = Field(
        None,
        description="The `memory` of the last answer, {} for the first request: texts that were compressed before then stay unchanged. The "
        "service itself stores nothing.",
    )


class RestoreBody(_Body):
    """The arguments of `Compressor.restore`."""

    compressed: dict | list = Field(
        description="A result of /v1/compress with `details`, or a list of them, from the same model."
    )
    abstain_below: float | None = Field(None, description="Leave a gap where the confidence is below this, in (0, 1].")
    gap: str = Field("[…]", description="Text shown for a gap.")


# -- answers -----------------------------------------------------------------------------------------------------------
class CompressedAnswer(BaseModel):
    """One compressed text. With `details` also the fields of `CompressedText.to_dict` and `omitted`."""

    text: str
    original_tokens: int
    compressed_tokens: int
    compression_rate: float
    target_tokens: int | None
    shortfall: int
    returned_whole: str | None = Field(description="Why nothing was compressed.")
    unreached: str | None = Field(description="Why the text exceeds its budget, if it does.")
    predicted_retention: float | None
    vocabulary: str = Field(description="Name of the vocabulary that counts.")
    kind: str | None = Field(description="Kind of structure by which the text was cut, such as 'json' or 'code'.")


class CompressedAnswers(BaseModel):
    """The results of a list of texts, in its order."""

    results: list[CompressedAnswer]


class ExplainedAnswer(CompressedAnswer):
    """A compressed text and the score of each piece of the original."""

    pieces: list[tuple[str, float, bool]] = Field(description="[piece, score in (0, 1), whether it was kept].")


class MessagesAnswer(BaseModel):
    """The fields of `CompressedMessages.to_dict`."""

    messages: list[dict]
    system: Any
    original_tokens: int
    compressed_tokens: int
    shortfall: int
    target_tokens: int | None
    question: str | None
    returned_whole: str | None
    records: list[dict]
    unreached: str | None = Field(description="Why the messages exceed the budget, if they do.")
    memory: dict[str, int] | None = Field(
        description="Send it with the next request; only if this request had a `memory`."
    )


class RestoredAnswer(BaseModel):
    """
    The fields of `RestoredText.to_dict`. It is a prediction, as `label` says. For a list, `results` is a list of them.
    """

    text: str
    input_ids: list[int]
    keep_mask: list[bool]
    confidence: list[float]
    restored_spans: list[tuple[int, int]]
    abstained: int
    is_restoration: bool
    label: str


class Fault(BaseModel):
    """The message of an error in one line: what was sent, what is allowed, what to do."""

    status: int
    message: str


class FaultAnswer(BaseModel):
    error: Fault


# -- errors ------------------------------------------------------------------------------------------------------------
def parse_body(kind: type[_Body], data: bytes, route: str) -> dict:
    """
    The arguments in a request's body.

    Raises:
        `SyntaxError`: If it is not a JSON object; the message is one line.
        `ValueError`: If its keys or the types of its values are wrong; the message is one line.
    """
    try:
        fields = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_number
        )
    except UnicodeDecodeError as error:
        raise SyntaxError(
            f"The body is not UTF-8: {error.reason} at byte {error.start}. Send JSON in UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        raise SyntaxError(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise SyntaxError(f"The body is not JSON that can be read: {reason}.") from None
    if not isinstance(fields, dict):
        raise SyntaxError(f"The body must be a JSON object with the arguments of {route}, got {_shown(fields)}.")
    unknown = [name for name in fields if name not in kind.model_fields]
    if unknown:
        known = sorted(kind.model_fields, key=lambda name: not kind.model_fields[name].is_required())
        near = difflib.get_close_matches(unknown[0], kind.model_fields, 1, 0.6)
        raise ValueError(
            f"`{unknown[0]:.60}` is no argument of {route}.{f' Did you mean `{near[0]}`?' if near else ''} It takes "
            f"{', '.join(known)}."
        )
    try:
        return vars(kind.model_validate(fields))
    except ValidationError as error:
        name = error.errors(include_url=False, include_input=False, include_context=False)[0]["loc"][0]
        allowed = _allowed(kind.model_json_schema()["properties"][name])
        if name not in fields:
            raise ValueError(f"`{name}` is missing. It must be {allowed}.") from None
        raise ValueError(f"`{name}` must be {allowed}, got {_shown(fields[name])}.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    """Raise `ValueError` for a duplicate key, because programs read such objects differently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {twice!r:.60} stands twice in an object")
    return found


def _no_number(name: str):
    raise ValueError(f"{name} is no JSON")


def _number(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text:.20} is too large")
    return number


_KINDS = {"number": "a number", "integer": "a whole number", "string": "a string", "boolean": "true or false", "object": "an object",
          "null": "null"}  # fmt: skip
_SEVERAL = {"a number": "numbers", "a whole number": "whole numbers", "a string": "strings", "an object": "objects"}


def _allowed(schema: dict) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(_allowed(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        each = _allowed(schema["items"]) if schema.get("items") else ""
        each = " or ".join(_SEVERAL.get(one, one.replace("a list of", "lists of")) for one in each.split(" or "))
        return f"a list of {each}" if each else "a list"
    return _KINDS.get(schema.get("type", ""), "a value")


def _shown(value: Any) -> str:
    """A JSON value, shortened to fit in a line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    kind = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}[type(value)]
    if isinstance(value, list | dict):
        return f"{kind} of {len(value):,}" if value else f"an empty {kind.split()[1]}"
    return f"{kind}, {value!r:.60}"

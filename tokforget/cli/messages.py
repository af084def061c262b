"""
`tokforget compress --messages`: reads a JSON list of messages, a request that contains one, or JSON Lines of either.
The output has the same form.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tokforget.cli.files import Record, UserError, json_line, open_input, unique_keys


# Options of `compress` for texts, with their default values.
_OF_TEXTS = {
    "threshold": None, "prefix_stable": False, "nested": False, "tags": False, "budget": "per_text", "stream": False, "column": None,
    "question_column": None, "output_column": None, "keep_first": None, "keep_last": None,
    "mark_omissions": False, "report": None,
}  # fmt: skip
_OF_MESSAGES = {"stable": False, "no_question": False, "min_message_tokens": None, "roles": None}


@dataclass
class Conversation:
    """
    The messages of one chat in the input, and their place.

    Args:
        record (`Record`): The place, with a line number in a JSONL file.
        value: The list, or the object with the list in `messages`.
        indent (`int`, *optional*): Indent of the JSON file, if it has several lines.
    """

    record: Record
    value: Any
    indent: int | None = None

    @property
    def messages(self):
        return self.value["messages"] if isinstance(self.value, dict) else self.value

    @property
    def system(self):
        return self.value.get("system") if isinstance(self.value, dict) else None

    def rendered(self, messages: list) -> bytes:
        """The same JSON with other messages."""
        value = {**self.value, "messages": messages} if isinstance(self.value, dict) else messages
        return json_line(value, self.indent)


def check_options(args: argparse.Namespace) -> None:
    """Raise `UserError` for options that exclude `--messages`, or that need it."""
    unfit = _OF_TEXTS if args.messages else _OF_MESSAGES
    given = [f"--{name.replace('_', '-')}" for name, default in unfit.items() if getattr(args, name) != default]
    if given and args.messages:
        raise UserError(f"`--messages` looks at messages one by one and does not go with {', '.join(given)}.")
    if given:
        raise UserError(f"{', '.join(given)}: only with --messages.")
    if args.messages and args.no_question and args.question:
        raise UserError("`--no-question` takes no question and does not go with --question.")


def message_options(args: argparse.Namespace, protect) -> dict:
    """The arguments of `Compressor.compress_messages`."""
    names = ("rate", "target_tokens", "quality", "risk", "stable", "min_tokens", "on_impossible", "omit_records")
    options = {name: getattr(args, name) for name in names} | {"protect": protect, "unit": args.unit or "auto"}
    options["count_tokens"] = args.count_with
    options["question"] = None if args.no_question else args.question or True
    if args.roles is not None:
        options["roles"] = [role.strip() for role in args.roles.split(",")]
    if args.min_message_tokens is not None:
        options["min_message_tokens"] = args.min_message_tokens
    return options


def read_conversations(sources: list[str], reject: Callable[[str, str], None]) -> Iterator[Conversation]:
    """
    Read the conversations of files. A line of a JSONL file that is no conversation is passed to
    `reject(place, reason)`; a JSON file that is none raises `UserError`.
    """
    for source in sources:
        with open_input(source) as file:
            data = file.read()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{source}: not UTF-8: {error.reason} at byte {error.start}.") from None
        try:
            value = _conversation(text)
        except (ValueError, RecursionError) as error:
            yield from _lines(source, text, str(error) or "nested too deeply", reject)
        else:
            yield Conversation(Record(source, "", len(data)), value, _indent(text))


def _lines(source: str, text: str, error: str, reject: Callable[[str, str], None]) -> Iterator[Conversation]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    found: list[tuple[Record, Any, str]] = []
    for number, line in lines:
        record = Record(source, "", len(line) + 1, number)
        try:
            found.append((record, _conversation(line), ""))
        except (ValueError, RecursionError) as reason:
            found.append((record, None, str(reason) or "nested too deeply"))
    if len(lines) < 2 or all(value is None for _, value, _ in found):
        raise UserError(f"{source} holds no messages, neither as JSON nor as JSON Lines: {error}")
    for record, value, reason in found:
        if value is None:
            reject(record.place, reason)
        else:
            yield Conversation(record, value)


def _conversation(text: str):
    """Parse a list of messages, or an object that contains one; else raise `ValueError`."""
    value = json.loads(text, object_pairs_hook=unique_keys)
    if isinstance(value, list) or (isinstance(value, dict) and isinstance(value.get("messages"), list)):
        return value
    what = (
        f"an object with {', '.join(map(repr, list(value)[:8])) or 'no key'}"
        if isinstance(value, dict)
        else "a plain value"
    )
    raise ValueError(f"a list of messages, or an object with one in `messages`, is read; there is {what}.")


def _indent(text: str) -> int | None:
    lines = text.strip().split("\n")
    return len(lines[1]) - len(lines[1].lstrip()) or None if len(lines) > 1 else None

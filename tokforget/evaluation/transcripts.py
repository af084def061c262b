"""
Compare ways to shorten growing chats, at equal mean rates: how much of the previous prompt changes, what that costs
with a provider that caches prefixes, and what a reader still finds.

Every request sends the whole chat. The mean rate is tokens sent ÷ tokens of the uncompressed chats. Every method has
one parameter (its knob), tuned until the mean rate over all requests of a kind is as close as possible to the one
asked for.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tokforget.compression.compressor import Compressor
from tokforget.compression.results import encodable
from tokforget.evaluation.transcript_arguments import TranscriptArguments
from tokforget.files import write_json
from tokforget.readers.benchmark import difference_interval, retention, retention_interval, target_bits
from tokforget.readers.language_model import Reader
from tokforget.readers.spans import Lookup, find_lookups
from tokforget.readers.tasks import ReadingItem, read_corpus
from tokforget.readers.word_counts import WordCounts
from tokforget.scoring import cache_cost, prefix_churn


RESULTS, REPORT = "transcripts.json", "report.md"
_SYSTEM = "You are an assistant. Use the tools that you have, and answer from what they return."
_SPEAKER = re.compile(r"^([A-Za-z][\w .'-]{0,24}): ", re.MULTILINE)
# Tool results between two questions of the user.
_RESULTS_PER_QUESTION = 3
_SUBJECT_WORDS = 8
# Documents of each kind whose words are counted, so that lookups ask for rare words.
_COUNTED = 200
_TOLERANCE, _STEPS = 0.005, 8


# -- transcripts -------------------------------------------------------------------------------------------------------
@dataclass
class Transcript:
    """
    A growing chat.

    Args:
        messages (`list[dict]`): All messages, in OpenAI's form.
        requests (`list[int]`): For each turn the number of messages in its prompt, counted from the first message.
    """

    messages: list[dict]
    requests: list[int]

    def prompts(self) -> list[list[dict]]:
        return [self.messages[:end] for end in self.requests]


def speakers_turns(text: str) -> list[dict] | None:
    """The turns of a text with two speakers, where the first speaker is the user; `None` for any other text."""
    marks = list(_SPEAKER.finditer(text))
    names = list(dict.fromkeys(mark[1] for mark in marks))
    if len(names) != 2 or len(marks) < 4 or marks[0].start() > 0:
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    roles = {names[0]: "user", names[1]: "assistant"}
    if {name.lower() for name in names} == {"user", "assistant"}:
        roles = {name: name.lower() for name in names}
    turns = [{"role": roles[m[1]], "content": text[m.end() : end].strip()} for m, end in zip(marks, ends)]
    return [turn for turn in turns if turn["content"]]


def result_turns(text: str, number: int) -> list[dict]:
    """A document as a tool result; every third document begins with a question of the user."""
    call = {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": "read", "arguments": json.dumps({"number": number})},
    }
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": text},
    ]
    if number % _RESULTS_PER_QUESTION == 0:
        subject = " ".join(re.findall(r"\w+", text)[:_SUBJECT_WORDS])
        turns.insert(0, {"role": "user", "content": f"Look at number {number} and what follows: {subject}"})
    return turns


def make_transcripts(
    documents: Sequence[str], per_kind: int, tokens: int, count: Callable[[str], int]
) -> list[Transcript]:
    """
    Make chats from documents: documents are appended until a chat has `tokens` tokens, by `count`. No document is used
    twice.
    """
    found, left = [], iter(documents)
    while len(found) < per_kind:
        messages, requests, size, number = [{"role": "system", "content": _SYSTEM}], [], 0, 0
        while size < tokens:
            text = next(left, None)
            if text is None:
                return found
            for turn in speakers_turns(text) or result_turns(text, number):
                messages.append(turn)
                size += count(turn["content"] or "")
                if turn["role"] != "assistant":
                    requests.append(len(messages))
            number += 1
        found.append(Transcript(messages, requests))
    return found


# -- methods -----------------------------------------------------------------------------------------------------------
class Rows:
    """
    Messages as a provider sees them: token ids. Each message is encoded alone, so that no token spans two messages.
    """

    def __init__(self, compressor: Compressor):
        self.compressor = compressor
        self._ids = lru_cache(maxsize=None)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.compressor.tokenizer.encode(encodable(text), add_special_tokens=False).ids)

    def count(self, text: str) -> int:
        return len(self._ids(text))

    def ids(self, messages: Sequence[dict]) -> np.ndarray:
        return np.array([one for message in messages for one in self._ids(shown(message))], dtype=np.int64)


def shown(message: dict) -> str:
    """A message as one string, including its tool calls."""
    calls = [f"{call['function']['name']}{call['function']['arguments']}" for call in message.get("tool_calls", [])]
    return f"{message['role']}: {message['content'] or ''}{''.join(calls)}\n"


def truncated(text: str, tokens: int, compressor: Compressor) -> str:
    """The first `tokens` tokens of a text, and a mark where it was cut."""
    encoding = compressor.tokenizer.encode(encodable(text), add_special_tokens=False)
    return text if len(encoding) <= tokens else f"{text[: encoding.offsets[tokens - 1][1]]} [...]"


@dataclass
class Method:
    """
    A way to shorten a prompt.

    Args:
        name (`str`): Name in tables.
        shorten (`Callable`): `(prompt, knob) -> prompt`.
        low (`float`), high (`float`): Range of the knob; higher values keep more.
        whole (`bool`): Whether the knob takes whole numbers only.
    """

    name: str
    shorten: Callable[[list[dict], float], list[dict]]
    low: float
    high: float
    whole: bool = False


def methods(compressor: Compressor, args: TranscriptArguments, roles: Sequence[str]) -> list[Method]:
    """
    The compared methods: the compressor with and without `stable`, and hand-written rules.

    Args:
        compressor ([`Compressor`]): The compressor.
        args ([`TranscriptArguments`]): Its unit and limits.
        roles (`Sequence[str]`): Roles whose messages the stable compressor and the truncating rules shorten.
    """
    common = {"min_message_tokens": args.min_message_tokens, "unit": args.unit}

    def stable(prompt, rate):
        return compressor.compress_messages(prompt, rate=rate, stable=True, roles=roles, memory={}, **common).messages

    def one_budget(prompt, rate, **options):
        options = {"rate": rate, "min_tokens": 0, "min_rate": 0.05, "on_impossible": "warn"} | options
        return compressor.compress_messages(prompt, memory={}, **common, **options).messages

    def last_messages(prompt, number):
        return [m for n, m in enumerate(prompt) if m["role"] == "system" or n >= len(prompt) - number]

    def cut(prompt, tokens, keep_last):
        last = max((n for n, m in enumerate(prompt) if m["role"] in roles), default=-1) if keep_last else -1
        return [
            m | {"content": truncated(m["content"], tokens, compressor)} if m["role"] in roles and m["content"] and n != last else m
            for n, m in enumerate(prompt)
        ]  # fmt: skip

    def to_percentile(prompt, percentile):
        sizes = [len(compressor._reencode([m["content"]])[0]) for m in prompt if m["role"] in roles and m["content"]]
        return cut(prompt, max(int(np.percentile(sizes, percentile)), 1), keep_last=True) if sizes else prompt

    return [
        Method("stable", stable, 0.02, 1.0),
        Method("one budget, question", one_budget, 0.05, 1.0),
        Method("one budget, no question", lambda prompt, rate: one_budget(prompt, rate, question=None), 0.05, 1.0),
        Method("last N messages", last_messages, 1, 400, whole=True),
        Method("old ones to a percentile", to_percentile, 0, 100),
        Method("each to N tokens", lambda prompt, tokens: cut(prompt, int(tokens), keep_last=False), 1, 4000, whole=True),
    ]  # fmt: skip


def turned(rate_of: Callable[[float], float], rate: float, method: Method) -> float:
    """The knob whose mean rate is nearest to `rate`, by bisection; `rate_of` must increase with the knob."""
    low, high, best, nearest = method.low, method.high, method.high, float("inf")
    for _ in range(_STEPS):
        knob = (low + high) / 2 if high - low < 8 or not method.whole else (low * high) ** 0.5
        knob = round(knob) if method.whole else knob
        found = rate_of(knob)
        if abs(found - rate) < nearest:
            best, nearest = knob, abs(found - rate)
        if nearest <= _TOLERANCE or (method.whole and high - low <= 1):
            break
        low, high = (knob, high) if found < rate else (low, knob)
    return best


# -- the run -----------------------------------------------------------------------------------------------------------
def run_transcripts(args: TranscriptArguments) -> list[dict]:
    """
    Measure every method on every kind at every rate. Writes transcripts.json and report.md.

    Returns:
        `list[dict]`: One row per method, kind and rate.

    Raises:
        `ValueError`: If the corpus has too few documents of a kind.
    """
    compressor = Compressor.from_pretrained(args.model_path)
    rows_of, results = Rows(compressor), []
    reader = Reader.from_pretrained(args.reader_name_or_path) if args.reader_name_or_path else None
    for kind in args.kinds:
        documents = [text for _, text in read_corpus(args.corpus, "test", [kind])]
        documents = [text for text in documents if 64 <= rows_of.count(text) <= args.document_tokens]
        random.Random(args.seed).shuffle(documents)
        transcripts = make_transcripts(documents, args.transcripts_per_kind, args.transcript_tokens, rows_of.count)
        if not transcripts:
            raise ValueError(
                f"{args.corpus} has too few documents of kind {kind!r} in its test sources for one transcript of "
                f"{args.transcript_tokens} tokens: lower `transcript_tokens` or raise `document_tokens`."
            )
        results += _kind_rows(args, kind, documents, transcripts, compressor, rows_of, reader)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    write_json(Path(args.output_dir, RESULTS), {"arguments": vars(args), "rows": results})
    Path(args.output_dir, REPORT).write_text(report(results, args), encoding="utf-8")
    return results


def _kind_rows(
    args: TranscriptArguments,
    kind: str,
    documents: Sequence[str],
    transcripts: Sequence[Transcript],
    compressor: Compressor,
    rows_of: Rows,
    reader: Reader | None,
) -> list[dict]:
    talks = any(message["role"] == "tool" for message in transcripts[0].messages)
    compared = methods(compressor, args, ("tool",) if talks else ("tool", "assistant"))
    full = _measured(args, rows_of, transcripts, lambda prompt: prompt)
    rows = [{"kind": kind, "method": "nothing", "asked_rate": 1.0, "knob": None, "rate": 1.0} | full]
    for rate in args.rates:
        for method in tqdm(compared, desc=f"{kind} at {rate}", disable=None):
            knob = turned(partial(_mean_rate, rows_of, transcripts, method), rate, method)
            found = _measured(args, rows_of, transcripts, lambda prompt, m=method, k=knob: m.shorten(prompt, k))
            rows.append({"kind": kind, "method": method.name, "asked_rate": rate, "knob": round(float(knob), 4),
                         "rate": found["tokens"] / full["tokens"]} | found)  # fmt: skip
    if reader:
        _add_retention(args, reader, compared, _lookups(args, kind, documents, rows_of), rows)
    return rows


def _mean_rate(rows_of: Rows, transcripts: Sequence[Transcript], method: Method, knob: float) -> float:
    """Mean rate over every fourth request, including the last; these are enough to tune the knob."""
    sent = whole = 0
    for transcript in transcripts:
        for prompt in transcript.prompts()[::-1][::4]:
            sent += len(rows_of.ids(method.shorten(prompt, knob)))
            whole += len(rows_of.ids(prompt))
    return sent / whole


def _measured(args: TranscriptArguments, rows_of: Rows, transcripts: Sequence[Transcript], shorten: Callable) -> dict:
    sent = [[rows_of.ids(shorten(prompt)) for prompt in transcript.prompts()] for transcript in transcripts]
    prices = {name: getattr(args, name) for name in ("input_price", "cached_read_price", "cache_write_price")}
    cost = cache_cost(sent, **prices, min_cached_tokens=args.min_cached_tokens)
    churn = prefix_churn(sent)
    return {name: churn[name] for name in ("prefix_churn", "changed_turns")} | cost


def _lookups(
    args: TranscriptArguments, kind: str, documents: Sequence[str], rows_of: Rows
) -> list[tuple[str, list[dict], Lookup]]:
    """Name, messages and a lookup in one of the messages, for chats that fit the reader."""
    counted = (text for n, (_, text) in enumerate(read_corpus(args.corpus, "train", [kind])) if n < _COUNTED)
    counts, found = WordCounts.of_texts(counted), []
    chats = make_transcripts(documents, args.reader_transcripts, args.reader_tokens, rows_of.count)
    for number, chat in enumerate(chats):
        generator = random.Random(f"{args.seed} {number}")
        texts = [m["content"] for m in chat.messages if m["role"] in ("tool", "assistant") and m["content"]]
        long = [text for text in texts if rows_of.count(text) >= args.min_message_tokens]
        drawn = [one for text in long for one in find_lookups(text, counts, args.lookups_per_transcript, generator)]
        generator.shuffle(drawn)
        found += [(str(number), chat.messages, lookup) for lookup in drawn[: args.lookups_per_transcript]]
    return found


def _add_retention(args, reader: Reader, compared: Sequence[Method], items: list[tuple], rows: list[dict]) -> None:
    """
    Add retention to the rows: what the reader recalls from earlier messages when the user's last message asks for it.
    """

    def passage(messages: list[dict]) -> str:
        return "".join(map(shown, messages))

    asked = [
        ReadingItem(passage(messages), group, rows[0]["kind"], "", lookup.suffix, lookup.target, lookup.cue)
        for group, messages, lookup in items
    ]
    groups = [item.group for item in asked]
    full = target_bits(reader, asked, [item.passage for item in asked])
    none = target_bits(reader, asked, [""] * len(asked))
    found: dict[tuple, np.ndarray] = {}
    # These shorter chats need another knob for the same rate; it is tuned on one question of each chat.
    one_each = list({group: (messages, lookup) for group, messages, lookup in items}.values())
    found: dict[tuple, np.ndarray] = {}
    for row in tqdm(rows[1:], desc="reading", disable=None):
        method = next(one for one in compared if one.name == row["method"])

        def short(messages: list[dict], lookup, knob: float, method: Method = method) -> str:
            # The compressor gets the question, but the reader does not: its prompt would contain the cue twice.
            told = [*messages, {"role": "user", "content": f"Go on with: {lookup.cue}"}]
            return passage(method.shorten(told, knob)[:-1])

        def rate_of(knob: float, short=short) -> float:
            texts = [short(messages, lookup, knob) for messages, lookup in one_each]
            return sum(reader.counts(texts)) / sum(reader.counts([passage(messages) for messages, _ in one_each]))

        knob = turned(rate_of, row["asked_rate"], method)
        texts = [short(messages, lookup, knob) for _, messages, lookup in items]
        bits = found[row["asked_rate"], row["method"]] = target_bits(reader, asked, texts)
        row |= {
            "lookups": len(asked),
            "reader_rate": sum(reader.counts(texts)) / sum(reader.counts([item.passage for item in asked])),
            "retention": retention(bits, full, none),
            "retention_interval": retention_interval(bits, full, none, groups, args.seed),
        }
    for row in rows[1:]:
        stable, bits = found[row["asked_rate"], "stable"], found[row["asked_rate"], row["method"]]
        row["stable_minus_this"] = difference_interval(stable, bits, full, none, groups, args.seed)


def report(rows: Sequence[dict], args: TranscriptArguments) -> str:
    """The rows as a Markdown table."""
    plain = {row["kind"]: row["cost"] for row in rows if row["method"] == "nothing"}
    lines = [
        "# Growing transcripts",
        "",
        f"Prices of a million tokens: {args.input_price} input, {args.cached_read_price} cached read, {args.cache_write_price} cache write; "
        f"cached from {args.min_cached_tokens} tokens on. Cost is relative to sending everything with the same cache.",
        "",
        "| kind | method | mean rate | prefix churn | turns changed | cached | cost | retention, at rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kept = "" if row.get("retention") is None else f"{row['retention']:.2f}"
        if row.get("retention_interval"):
            kept += " [{:.2f}, {:.2f}]".format(*row["retention_interval"])
        kept += f" at {row['reader_rate']:.2f}" if kept else ""
        asked = "" if row["method"] == "nothing" else f" @ {row['asked_rate']:g}"
        lines.append(
            f"| {row['kind']} | {row['method']}{asked} | {row['rate']:.3f} | {row['prefix_churn']:.3f} | {row['changed_turns']:.2f} | "
            f"{row['cached_tokens'] / row['tokens']:.2f} | {row['cost'] / plain[row['kind']]:.2f} | {kept} |"
        )
    return "\n".join(lines) + "\n"

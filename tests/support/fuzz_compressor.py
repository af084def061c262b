"""
Compress generated and real texts of every kind, and check what must hold for any of them.

    python tests/support/fuzz_compressor.py --texts 100000                  # a policy with random opinions, packaged tokenizer
    python tests/support/fuzz_compressor.py --texts 2000 --model <folder>   # a trained model

Texts: logs, tables, CSV, YAML, HTML, diffs, transcripts, conversations, letters of all scripts, words of some, Python source, JSON, markdown, e-mails and URLs, emoji, broken bytes, control
characters, special-token strings, white space, one character many times. Each batch has its own arguments. Ends with exit
code 1 and the seed of the batch at the first failure.
"""

import argparse
import csv
import difflib
import io
import json
import random
import re
import sys
import sysconfig
import time
import unicodedata
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import regex
import torch
import yaml
from tqdm.auto import tqdm

from tokforget.compression.compressor import Compressor
from tokforget.compression.results import CompressedText, encodable
from tokforget.compression.structure import find_structure
from tokforget.models.folders import read_tokenizer
from tokforget.models.policy import KeepMaskPolicy
from tokforget.packaged import base_model_path


GRAPHEMES = regex.compile(r"\X")
# First letters of the blocks of scripts into which the Universal Declaration of Human Rights has been translated.
SCRIPTS = {
    "latin": (0x0041, 0x024F), "greek": (0x0391, 0x03C9), "cyrillic": (0x0410, 0x044F), "armenian": (0x0531, 0x0587),
    "hebrew": (0x05D0, 0x05EA), "arabic": (0x0620, 0x064A), "syriac": (0x0710, 0x074A), "thaana": (0x0780, 0x07B0),
    "nko": (0x07CA, 0x07EA), "devanagari": (0x0904, 0x094D), "bengali": (0x0985, 0x09CD), "gurmukhi": (0x0A05, 0x0A4D),
    "gujarati": (0x0A85, 0x0ACD), "tamil": (0x0B85, 0x0BCD), "telugu": (0x0C05, 0x0C4D), "kannada": (0x0C85, 0x0CCD),
    "malayalam": (0x0D05, 0x0D4E), "sinhala": (0x0D85, 0x0DCA), "thai": (0x0E01, 0x0E4E), "lao": (0x0E81, 0x0ECD),
    "tibetan": (0x0F40, 0x0FBC), "burmese": (0x1000, 0x104F), "georgian": (0x10D0, 0x10FF), "hangul jamo": (0x1100, 0x11FF),
    "ethiopic": (0x1200, 0x137F), "cherokee": (0x13A0, 0x13F4), "aboriginal": (0x1401, 0x166C), "khmer": (0x1780, 0x17D3),
    "mongolian": (0x1820, 0x1878), "tifinagh": (0x2D30, 0x2D67), "kana": (0x3041, 0x30FF), "han": (0x4E00, 0x9FFF),
    "yi": (0xA000, 0xA48C), "vai": (0xA500, 0xA62B), "hangul": (0xAC00, 0xD7A3), "adlam": (0x1E900, 0x1E943),
    "mathematical": (0x1D400, 0x1D7FF),
}  # fmt: skip
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪", "🇫🇷🇯🇵", "1️⃣", "❤️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🤷🏿‍♀️", "☕", "👨‍💻"]
ODD = ["<|endoftext|>", "<s>", "</s>", "[MASK]", "\x00", "\x1b[31m", "\u202e", "\ufeff", "\ud800", "\udfff", "\r\n", "\t", "\u00a0",
       "\u2028", "\u0301", "\u200d", "e\u0301", "\U0010ffff", "<keep>", "```", "don't", "3.14", "1,000", "a_b", "x/y", "C:\\a\\b"]  # fmt: skip
ENGLISH = ["the", "not", "before", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "it", "rains", "and", "nobody", "at", "all", "knows", "why", "there", "should", "be", "so", "many", "unbelievable", "misunderstandings", "about", "counterrevolutionary", "electroencephalographers"]  # fmt: skip


@cache
def sources() -> list[str]:
    """Real Python source: the standard library's."""
    found = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [path.read_text(encoding="utf-8", errors="surrogateescape") for path in found[:60]]


def letters(rng: random.Random) -> str:
    first, last = rng.choice(list(SCRIPTS.values()))
    words = (
        "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 9))) for _ in range(rng.randint(1, 25))
    )
    return rng.choice([" ", " ", "", "\n", ", "]).join(words)


def prose(rng: random.Random) -> str:
    words = rng.choices(ENGLISH, k=rng.randint(1, 60))
    return " ".join(word + rng.choice(["", "", "", "", ",", ".", "!", ".\n", "\n\n"]) for word in words)


def real(rng: random.Random) -> str:
    source = rng.choice(sources())
    start = rng.randrange(len(source))
    return source[start : start + rng.randint(1, 500)]


def structured(rng: random.Random) -> str:
    data = {
        rng.choice(ENGLISH): rng.choice([rng.random(), letters(rng), None, [1, 2.5], {"a": prose(rng)}])
        for _ in range(5)
    }
    if rng.random() < 0.4:
        data["rows"] = [
            {"id": number, "of": [letters(rng)], "name": prose(rng)[:40]} for number in range(rng.randint(0, 12))
        ]
    return json.dumps(data, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 2]))


def markdown(rng: random.Random) -> str:
    parts = [f"# {prose(rng)}", f"* `{rng.choice(ENGLISH)}()` {prose(rng)}", f"```python\n{real(rng)}\n```",
             f"[{rng.choice(ENGLISH)}](https://example.org/{rng.choice(ENGLISH)}?q=1) bob@example.com", "| a | b |\n|---|---|",
             f"![{letters(rng)}](/img/{rng.randint(0, 99)}.png)", f"{rng.random():.3f} % of /usr/lib/{rng.choice(ENGLISH)}.so"]  # fmt: skip
    return "\n".join(rng.choices(parts, k=rng.randint(1, 5)))


def broken(rng: random.Random) -> str:
    raw = rng.randbytes(rng.randint(0, 120))
    return raw.decode(rng.choice(["utf-8", "utf-16-le", "utf-32-le"]), rng.choice(["replace", "ignore"])) + raw.decode(
        "utf-8", "surrogateescape"
    )


def repeated(rng: random.Random) -> str:
    return rng.choice([*" \n\ta0.好", *EMOJI, *ODD]) * rng.randint(1, 300)


def mixed(rng: random.Random) -> str:
    pool = [*EMOJI, *ODD, *ENGLISH, letters(rng), " ", " ", "\n"]
    return "".join(rng.choices(pool, k=rng.randint(0, 40)))


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(ENGLISH, k=rng.randint(1, 12)))


def log(rng: random.Random) -> str:
    said = [
        lambda: (
            f"INFO  [worker-{rng.randint(1, 9)}] Processed batch {rng.randint(1, 999)} in {rng.randint(1, 999)} ms"
        ),
        lambda: f"WARN  [cache] Slow read of key user:{rng.randint(1000, 9999)}: {rng.randint(500, 900)} ms",
        lambda: "INFO  Heartbeat ok queue=0",
        lambda: f"ERROR [payments] Charge failed for order {rng.randint(1, 99999)}: {sentence(rng)}",
        lambda: f"DEBUG {sentence(rng)}",
    ]
    lines = []
    for second in range(rng.randint(3, 40)):
        lines.append(f"2026-11-02 09:{second // 60 + 10}:{second % 60:02d} {rng.choice(said)()}")
        if rng.random() < 0.05:
            lines += [
                "Traceback (most recent call last):",
                '  File "a.py", line 8, in charge',
                "    raise KeyError(code)",
                "KeyError: 51",
            ]
    return rng.choice(["\n", "\n", "\r\n"]).join(lines) + rng.choice(["", "\n"])


def table(rng: random.Random) -> str:
    width = rng.randint(2, 5)
    rows = [[rng.choice([sentence(rng), str(rng.randint(0, 9999)), f"{rng.random():.2f}", ""]) for _ in range(width)]
            for _ in range(rng.randint(2, 12))]  # fmt: skip
    shown = ["| " + " | ".join(row) + " |" for row in rows]
    shown.insert(1, "|" + rng.choice(["---", ":--", "---:"]) * 1 + "|---" * (width - 1) + "|")
    return f"# {sentence(rng)}\n\n{sentence(rng)}.\n\n" + "\n".join(shown) + f"\n\n{prose(rng)}\n"


def comma_separated(rng: random.Random) -> str:
    width, out = rng.randint(3, 6), io.StringIO()
    writer = csv.writer(out, lineterminator=rng.choice(["\n", "\r\n"]))
    writer.writerow([f"column{n}" for n in range(width)])
    for _ in range(rng.randint(3, 25)):
        writer.writerow(
            [
                rng.choice([rng.randint(0, 999), rng.random(), "one, two", 'a "quoted" word', rng.choice(ENGLISH), ""])
                for _ in range(width)
            ]
        )
    return out.getvalue()


def settings(rng: random.Random) -> str:
    def value(depth: int):
        plain = [
            rng.randint(0, 9999),
            rng.random() < 0.5,
            rng.choice(ENGLISH),
            "1.2.3",
            "a: b",
            "it's",
            None,
            "#5",
            "8080:80",
            " ".join(rng.choices(ENGLISH, k=3)),
        ]
        if depth > 2 or rng.random() < 0.5:
            return rng.choice(plain)
        if rng.random() < 0.4:
            return [value(depth + 1) for _ in range(rng.randint(0, 3))]
        return {f"{rng.choice(ENGLISH)}{n}": value(depth + 1) for n in range(rng.randint(0, 4))}

    data = {f"{rng.choice(ENGLISH)}{n}": value(0) for n in range(rng.randint(2, 7))}
    return yaml.safe_dump(
        data, sort_keys=False, indent=rng.choice([2, 4]), default_flow_style=rng.choice([False, False, None])
    )


def html(rng: random.Random) -> str:
    def element(depth: int) -> str:
        name = rng.choice(["div", "p", "ul", "li", "b", "td"])
        inner = sentence(rng) if depth > 2 else "".join(element(depth + 1) for _ in range(rng.randint(1, 3)))
        return f'<{name} class="{rng.choice(ENGLISH)}">{inner}</{name}>\n'

    return f"<html>\n<body>\n{element(0)}{element(0)}</body>\n</html>\n"


def chat(rng: random.Random) -> str:
    return "".join(
        f"{rng.choice(['user', 'assistant', 'Anna', 'Tom'])}: {prose(rng)}\n" for _ in range(rng.randint(2, 12))
    )


def diff(rng: random.Random) -> str:
    before = [sentence(rng) for _ in range(rng.randint(3, 25))]
    after = [line if rng.random() < 0.7 else sentence(rng) for line in before if rng.random() < 0.9]
    return "\n".join(difflib.unified_diff(before, after, "a/notes.txt", "b/notes.txt", lineterm=""))


def transcript(rng: random.Random) -> str:
    style = rng.choice(
        [
            lambda n, who: f"[{9 + n // 60:02d}:{n % 60:02d}] {who}: ",
            lambda n, who: f"12/05/2026, {9 + n // 60:02d}:{n % 60:02d} - {who}: ",
            lambda n, who: f"{9 + n // 60:02d}:{n % 60:02d} <{who}> ",
            lambda n, who: f"**{who}:** ",
            lambda n, who: f"{who} ({9 + n // 60:02d}:{n % 60:02d}): ",
            lambda n, who: f"\n{n + 1}\n00:00:{n % 60:02d},000 --> 00:00:{n % 60:02d},900\n{who}: ",
        ]
    )
    return "".join(
        f"{style(n, rng.choice(['Anna', 'Tom Petersen', 'bot', 'Agent 2']))}{sentence(rng)}{rng.choice('.?!')}\n"
        for n in range(rng.randint(2, 30))
    )


KINDS = {"diff": diff, "transcript": transcript, "log": log, "table": table, "csv": comma_separated, "settings": settings, "html": html, "chat": chat, "letters": letters, "prose": prose, "source": real, "json": structured, "markdown": markdown, "broken bytes": broken,
         "repeated": repeated, "mixed": mixed}  # fmt: skip


def check_json(before, after) -> None:
    """
    Keys, numbers, booleans, short strings and counts are the same, but for records that are said to be left out; long
    strings have no new word.
    """
    assert type(before) is type(after)
    if isinstance(before, dict):
        assert list(before) == list(after), "a key was lost"
        for key in before:
            check_json(before[key], after[key])
    elif isinstance(before, list):
        place = 0
        for other in after:
            left_out = re.fullmatch("… ([0-9]+) left out", other) if isinstance(other, str) else None
            if left_out:
                assert all(isinstance(one, dict | list) for one in before[place : place + int(left_out[1])])
                place += int(left_out[1])
            else:
                check_json(before[place], other)
                place += 1
        assert place == len(before), "a record was lost"
    elif not isinstance(before, str) or len(before.split()) < 8:
        assert before == after, "a value was changed"


def check_tags(output: str) -> None:
    """Every tag that opens is closed, in order."""
    open_ = []
    for close, name in re.findall(r"<(/?)(\w+)[^<>]*>", output):
        if close:
            assert open_ and open_.pop() == name, f"</{name}> closes nothing"
        else:
            open_.append(name)
    assert not open_, f"never closed: {open_}"


def check_content(kind: str, text: str, result: CompressedText, options: dict) -> None:
    """What a kind of text keeps by `unit="auto"`, and by words that no word or number is made up."""
    output, auto = result.text, options["unit"] == "auto"
    if result.notes:
        parts = zip(result.kept_spans.tolist(), result.separated.tolist())
        output = "".join(" " * apart + text[a:b] for (a, b), apart in parts)
    dropped = np.ones(len(text), dtype=bool)
    for start, end in result.kept_spans.tolist():
        dropped[start:end] = False
    for _, note in result.notes:  # as many lines as are said to be gone are gone
        gone = sum(bool(dropped[m.start() : m.end()].all()) for m in re.finditer(r"[^\n]+", text))
        assert "left out" in note or int(re.search(r"\d+", note)[0]) <= gone + 1, note
    if options["unit"] in ("word", "auto") and kind in _PLAIN and text.isascii():
        words = re.compile(r"[A-Za-z]+|\d+(?:[.,:]\d+)*")
        made_up = set(words.findall(output)) - set(words.findall(text))
        assert not made_up, f"made up: {made_up}"
    if not auto or "protect" in options or "threshold" in options:
        return
    roomy = (result.target_tokens or 0) >= _ROOM and options.get("budget") != "corpus"
    if kind == "html" and roomy:
        check_tags(output)
    if kind == "json":
        check_json(json.loads(text), json.loads(result.text))
    found = (
        find_structure(text, np.stack([np.arange(len(text)), np.arange(len(text)) + 1], 1)) if text.strip() else None
    )
    by_lines = result.kept_spans.tolist() and found is not None and found.kind in ("log", "csv", "settings")
    lines = text.splitlines()  # the last line of an output may lack its break
    if by_lines and roomy and all(a == 0 or text[a - 1] == "\n" for a, _ in result.kept_spans.tolist()):
        place = 0
        for line in output.splitlines():
            place = lines.index(line, place) + 1
        if found.kind == "csv" and roomy:
            assert len({len(row) for row in csv.reader(io.StringIO(output))}) == 1 and output.startswith(lines[0])
        if found.kind == "settings" and roomy:
            left, whole = yaml.safe_load(output), yaml.safe_load(text)
            assert left is None or (
                type(left) is type(whole) and (isinstance(left, list) or left.keys() <= whole.keys())
            )
    if kind == "table" and roomy:
        rows = [line for line in output.splitlines() if line.startswith("| ")]
        if any(line in text.splitlines() for line in rows):
            assert rows[0] == next(line for line in text.splitlines() if line.startswith("| ")), (
                "a table without its head"
            )


# Tokens that hold any record of a text here with what it stands in; in less it may stand by itself.
_ROOM = 120
_PLAIN = ("diff", "transcript", "log", "table", "csv", "settings", "html", "chat", "prose")


def arguments(rng: random.Random) -> dict:
    """One call's arguments; every combination that is allowed can come."""
    options = {"unit": rng.choice(["token", "token", "word", "auto"]), "on_impossible": "warn"}
    mode = rng.choice(["plain", "plain", "nested", "prefix_stable", "corpus"])
    if mode in ("nested", "prefix_stable"):
        options[mode] = True
    elif mode == "corpus":
        options["budget"] = "corpus"
    options |= rng.choice([{"rate": round(rng.uniform(0.01, 1.0), 2)}, {"target_tokens": rng.randint(1, 60)}])
    if mode == "prefix_stable":
        options.pop("target_tokens", None)
        options["unit"] = options["unit"].replace("auto", "word")
    if options["unit"] == "auto" and mode != "prefix_stable" and rng.random() < 0.4:
        options["omit_records"] = True
    if rng.random() < 0.15 and mode != "corpus":
        options = {key: options[key] for key in options.keys() & {"unit", "on_impossible", "nested", "prefix_stable"}}
        options["threshold"] = rng.uniform(0.05, 0.95)
    if rng.random() < 0.3:
        options["protect"] = rng.sample(["numbers", "urls", "emails", "paths", "code_fences", "inline_code", "identifiers",
                                         "first:2", r"re:[aeiou]{2}", "negations", "line_breaks", "sentence_ends", "roles"],
                                        k=rng.randint(1, 4)) + rng.choice([[], ["none"]])  # fmt: skip
    return options


def check(text: str, result: CompressedText, compressor: Compressor, options: dict, natural: bool) -> int:
    """What holds for any text; returns by how much the budget was missed."""
    spans = sorted([*map(tuple, result.kept_spans.tolist()), *map(tuple, result.dropped_spans.tolist())])
    assert "".join(text[a:b] for a, b in spans) == text, "the spans do not cover the text"
    kept = [text[a:b] for a, b in result.kept_spans.tolist()]
    joined = "".join(" " * apart + part for part, apart in zip(kept, result.separated.tolist()))
    for _, note in result.notes:
        assert note in result.text
    assert result.notes or joined == result.text, "the kept spans do not make up the output"
    edges = {0, *(match.end() for match in GRAPHEMES.finditer(text))}
    # `regex` may know a newer Unicode than Python does; JSON divides at a quotation mark whatever follows it.
    if options.get("unit") != "auto" and not any(unicodedata.category(char) == "Cn" for char in text):
        assert all(a in edges and b in edges for a, b in spans), "a character was split"
    for (_, end), (start, _), apart in zip(result.kept_spans, result.kept_spans[1:], result.separated[1:]):
        fuses = all(unicodedata.category(text[i])[0] in "LN" for i in (start, start - 1, end - 1)) and not apart
        fuses = (
            fuses and re.search(r"\\[nrtbf]$", text[max(end - 2, 0) : end]) is None
        )  # a line break, as JSON writes it
        assert not fuses or unicodedata.name(text[start], "")[:4] in SPACELESS, f"{text[end - 1]}{text[start]} fused"
    again = compressor._reencode([result.text])[0].ids
    assert result.compressed_input_ids.tolist() == again, "the output's tokens are not those of the output"
    assert len(result.scores) == result.original_tokens and np.isfinite(result.scores).all()
    for a, b in protected(text, options):
        assert any(s <= a and b <= e for s, e in result.kept_spans.tolist()), f"protected {text[a:b]!r} was cut"
    loaded = CompressedText.from_json(result.to_json())
    assert loaded.text == encodable(result.text) and np.array_equal(loaded.keep_mask, result.keep_mask)
    if result.target_tokens is None or options.get("budget") == "corpus":
        return 0
    assert result.shortfall == result.target_tokens - result.compressed_tokens
    assert result.shortfall >= 0 or "protect" in options or options["unit"] == "auto", (
        f"{-result.shortfall} above the budget"
    )
    return result.shortfall


SPACELESS = {
    "CJK ",
    "HIRA",
    "KATA",
    "THAI",
    "LAO ",
    "MYAN",
    "KHME",
    "TIBE",
    "HALF",
    "IDEO",
    "NEW ",
    "TAI ",
    "BALI",
    "JAVA",
}


def protected(text: str, options: dict) -> list[tuple[int, int]]:
    if options.get("prefix_stable"):
        return []  # what is protected there depends on the chunk
    patterns = [item[3:] for item in options.get("protect", ()) if item.startswith("re:")]
    if "numbers" in options.get("protect", ()):
        patterns.append(r"(?<!\w)\d+(?!\w)")  # what anybody would call a number
    return [match.span() for pattern in patterns for match in regex.finditer(pattern, text)]


def make_compressor() -> Compressor:
    """A policy with random opinions over the packaged tokenizer: budgets and units do not ask how good it is."""
    torch.manual_seed(0)
    tokenizer = read_tokenizer(Path(base_model_path()))
    policy = KeepMaskPolicy(
        tokenizer.get_vocab_size(), 8, hidden_size=16, dilations=(1, 2), head_size=16, ngram_buckets=256
    )
    policy.ngrams.fit([list(range(5, 25)) * 3])
    policy.tokens.table.normal_()
    torch.nn.init.normal_(policy.to_logit.weight, std=8.0)
    return Compressor(policy.eval(), tokenizer)


def run(compressor: Compressor, num_texts: int, seed: int, batch_size: int = 40, progress: bool = False) -> dict:
    """Compress `num_texts` texts; the shortfall of prose in tokens, by how often it came."""
    missed, seen, by_kind = Counter(), 0, Counter()
    with tqdm(total=num_texts, disable=not progress) as bar:
        while seen < num_texts:
            rng = random.Random(f"{seed}-{seen}")
            kinds = rng.choices(list(KINDS), k=min(batch_size, num_texts - seen))
            texts = [KINDS[kind](rng) for kind in kinds]
            options = arguments(rng)
            failing = None
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    results = compressor.compress(texts, **options)
                for kind, text, result in zip(kinds, texts, results):
                    failing = (kind, text, result.text)
                    by_kind[kind] += 1
                    shortfall = check(text, result, compressor, options, kind == "prose")
                    check_content(kind, text, result, options)
                    if (
                        kind == "prose"
                        and options["unit"] == "token"
                        and "budget" not in options
                        and "protect" not in options
                    ):
                        missed[shortfall] += 1
                if options.get("budget") != "corpus":  # alone as in a batch
                    alone = rng.randrange(len(texts))
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        assert compressor.compress(texts[alone], **options).text == results[alone].text, (
                            "another alone"
                        )
            except Exception:
                print(f"batch {seed}-{seen}: {options}\n{failing!r}", file=sys.stderr)
                raise
            seen += len(texts)
            bar.update(len(texts))
    return {"texts": seen, "kinds": dict(by_kind), "shortfall of prose": dict(sorted(missed.items()))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--model", help="a trained model's folder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    compressor = Compressor.from_pretrained(args.model) if args.model else make_compressor()
    began = time.perf_counter()
    try:
        summary = run(compressor, args.texts, args.seed, progress=None)
    except Exception as error:
        print(f"FAILED: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary | {"seconds": round(time.perf_counter() - began, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

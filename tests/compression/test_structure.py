"""`unit="auto"`: JSON stays JSON, code and logs go by lines, and all else by words."""

import ast
import configparser
import csv
import json
import re
import tomllib
import warnings
from itertools import pairwise

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import packaged_compressor
from tests.support import fuzz_compressor as fuzz
from tokforget import CompressedText, Compressor
from tokforget.compression.compressor import OverBudgetWarning
from tokforget.compression.records import FAILED, PLAIN, TROUBLE, WARNING, csv_rows, find_tables, severities
from tokforget.compression.structure import find_structure


ANY_OPINION = fuzz.make_compressor()
usual = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


NOTE = "The customer called twice because the parcel had not arrived, and the agent promised a refund within ten days unless it turns up."
ORDERS = {
    "customer": {"id": 7731, "name": "Anna Petersen", "vip": False, "email": "a@b.org"},
    "orders": [
        {"order_id": "A-81924", "status": "cancelled", "refundable": True, "total": 84.5, "note": NOTE},
        {"order_id": "A-81930", "status": "shipped", "refundable": False, "total": 12.0, "note": f'Say "{NOTE}"\n\té {NOTE}'},
    ],
}  # fmt: skip
PYTHON = '''import re


@cache
def first(items: list[str]) -> str | None:
    """The first item that holds anything."""
    for item in items:
        if not item or (item is None):
            continue
        elif re.match("x", item):
            return item.strip(
                "x",
            )
        else:
            print(item)
    return None
'''
SCRIPT = """export async function load(path, options = {}) {
  const text = await readFile(path, "utf8");
  if (!text) {
    throw new Error(`No settings in ${path}`);
  } else {
    note(text);
  }
  for (const key of Object.keys(found)) {
    delete found[key];
  }
  return found;
}
"""
BEAT = "2026-11-02T09:14:{:02d}.123Z INFO  payments.worker Heartbeat ok queue=0\n"
LOG = (
    "".join(BEAT.format(second) for second in range(9))
    + "2026-11-02T09:15:01.003Z WARN  payments.gateway Timeout after 3000 ms for order=81924\n"
    + "2026-11-02T09:15:02.003Z ERROR payments.gateway Charge failed code=51 card=7731\n"
    + BEAT.format(59)
)
MIXED = f"""Please find the mistake in this function. It should not return None, but it does when the list is empty:

```python
{PYTHON}```

I have already tried to call it with a tuple, which did not help either. {NOTE}
"""
DISKS = """$ df
Filesystem     Size   Used  Avail  Mounted on
/dev/sda1       50G    12G    38G  /
/dev/sdb1      200G   180G    20G  /srv/data
tmpfs          3.9G      0   3.9G  /dev/shm
/dev/sdc1      100G    99G     1G  /var/log
"""
PING = """PING example.org (93.184.216.34) 56(84) bytes of data.
64 bytes from 93.184.216.34: icmp_seq=1 ttl=59 time=28.7 ms
64 bytes from 93.184.216.34: icmp_seq=2 ttl=59 time=37.2 ms
64 bytes from 93.184.216.34: icmp_seq=3 ttl=59 time=29.7 ms
64 bytes from 93.184.216.34: icmp_seq=4 ttl=59 time=30.1 ms
"""
LINKS = """lo0: flags=8049<UP,LOOPBACK> mtu 16384
\tinet 127.0.0.1 netmask 0xff000000
\tinet6 ::1 prefixlen 128
en0: flags=8863<UP,BROADCAST> mtu 1500
\tether 60:c5:47:0a:ce:0b
\tinet 192.168.1.64 netmask 0xffffff00
"""
OPINIONS = np.linspace(0.2, 0.95, 16)


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return Compressor.from_pretrained("embedded")


def kind_of(text: str) -> str | None:
    found = find_structure(text, np.stack([np.arange(len(text)), np.arange(len(text)) + 1], 1))
    return None if found is None else found.kind


@pytest.mark.parametrize(
    "kind, text",
    [
        ("json", json.dumps(ORDERS, indent=2)),
        ("json", '{"a": 1}\n\n{"a": 2}\n'),
        ("code", PYTHON),
        ("code", SCRIPT),
        ("log", LOG),
        ("fences", MIXED),
        (None, f"{NOTE}\n\n{NOTE}\n- one\n- two; three\n"),
        (None, "[see below] is not JSON"),
        (None, "Dear Anna,\n\nthank you for the call.\n\nBest regards,\nTom;\n"),
        (None, "12"),
        ("rows", DISKS),
        ("rows", PING),
        ("rows", "Status: active\nLogging: on (low)\nDefault: deny\nNew profiles: skip\n"),
        (None, "Anna: Are you there?\nTom: Yes, I am.\nAnna: Did it work for you?\nTom: It did in the end.\n"),
        (None, "We met at 9. It was late.\nAt 10 we left for the sea.\nBy 12 it rained.\nWe were home at 3.\n"),
        ("json", f"The orders are:\n{json.dumps(ORDERS)}"),
        ("json", f"The orders are:\n{json.dumps(ORDERS)}\n\nPlease tell me which of them is late."),
        (None, "The answer is\n{not JSON}\n"),
    ],
)
def test_what_a_text_is_made_of(kind, text):
    assert kind_of(text) == kind


def check_json(before, after) -> None:
    """Keys, numbers, booleans, short strings and counts are the same; long strings have no new word."""
    assert type(before) is type(after)
    if isinstance(before, dict):
        assert list(before) == list(after)
        for key in before:
            check_json(before[key], after[key])
    elif isinstance(before, list):
        assert len(before) == len(after)
        for one, other in zip(before, after):
            check_json(one, other)
    elif isinstance(before, str) and len(before.split()) >= 8:
        words = re.compile(r"[日本]|[^\W日本]+")
        assert set(words.findall(after)) <= set(words.findall(before)), (before, after)
    else:
        assert before == after


@pytest.mark.parametrize("rate", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("options", [{"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}], ids=str)
def test_json_stays_json(compressor, rate, options):
    text = json.dumps(ORDERS, **options)
    result = compressor.compress(text, rate=rate, unit="auto", on_impossible="warn")
    check_json(json.loads(text), json.loads(result.text))
    assert rate < 0.7 or all(order["note"] for order in json.loads(result.text)["orders"])
    assert result.shortfall >= 0 and "cancelled" in result.text and "A-81924" in result.text
    spans = sorted([*map(tuple, result.kept_spans.tolist()), *map(tuple, result.dropped_spans.tolist())])
    assert "".join(text[a:b] for a, b in spans) == text


def test_white_space_goes_before_any_word(compressor):
    text = json.dumps(ORDERS, indent=4)
    minified = json.dumps(ORDERS, separators=(",", ":"))
    budget = len(compressor.tokenizer.encode(minified).ids)
    assert budget < 0.95 * len(compressor.tokenizer.encode(text).ids)
    assert compressor.compress(text, target_tokens=budget, unit="auto").text == minified
    assert compressor.compress(text, rate=1.0, unit="auto").text == text


def test_records_on_lines_keep_their_number(compressor):
    text = "".join(json.dumps({"id": number, "note": NOTE}) + "\n" for number in range(5))
    output = compressor.compress(text, rate=0.7, unit="auto").text
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["id"] for row in rows] == [*range(5)] and all(row["note"] for row in rows)


def _left_out(value) -> int:
    said = re.fullmatch("… ([0-9]+) left out", value) if isinstance(value, str) else None
    return int(said[1]) if said else 0


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("options", [{"indent": 2}, {}, {"separators": (",", ":")}], ids=str)
def test_records_of_json_are_left_out_on_request(packaged, rate, options):
    rows = [
        {"id": number, "tags": [number, "a, b"], "at": {"x": [number]}, "name": f'Row "{number}"'}
        for number in range(30)
    ]
    text = json.dumps({"total": 30, "rows": rows, "next": None}, **options)
    result = packaged.compress(text, rate=rate, omit_records=True)
    value = json.loads(result.text)
    assert list(value) == ["total", "rows", "next"] and value["total"] == 30 and result.shortfall >= 0
    numbers = [row["id"] if isinstance(row, dict) else -_left_out(row) for row in value["rows"]]
    assert all(row == rows[row["id"]] for row in value["rows"] if isinstance(row, dict))
    place = 0
    for number in numbers:  # each note stands where its records were
        assert number != 0 or place == 0
        assert number < 0 or number == place
        place += -number if number < 0 else 1
    assert place == 30 and result.text.count("left out") == sum(number < 0 for number in numbers)
    assert result.shortfall <= 60 or all(isinstance(row, dict) for row in value["rows"])


def test_lines_of_json_are_left_out_on_request(packaged):
    lines = [json.dumps({"id": number, "note": "two words"}) for number in range(20)]
    for text in ("\n".join(lines), "\n".join(lines) + "\n", "Found these:\n" + "\n".join(lines)):
        output = packaged.compress(text, rate=0.4, omit_records=True).text
        values = [json.loads(line) for line in output.strip().splitlines() if not line.startswith("Found")]
        kept = [value["id"] for value in values if isinstance(value, dict)]
        assert kept and kept == sorted(kept) and len(kept) + sum(map(_left_out, values)) == 20
        assert len(json.dumps(output)) < 0.7 * len(json.dumps(text))
    assert json.loads(packaged.compress(text[13:], target_tokens=25, omit_records=True).text.splitlines()[1])


def test_the_record_of_a_failure_is_kept_first(packaged):
    rows = [{"id": number, "state": "Error: out of memory" if number == 17 else "all is well"} for number in range(30)]
    output = json.loads(packaged.compress(json.dumps(rows), rate=0.3, omit_records=True).text)
    assert rows[17] in output
    asked = packaged.compress(json.dumps(rows), rate=0.3, omit_records=True, question="Is id 4 well?")
    assert json.loads(asked.text)


def test_lists_of_other_things_are_never_left_out(packaged):
    value = {"vector": [*range(40)], "mixed": [{"a": 1}, 2, {"b": 3}, {"c": 4}], "pair": [{"a": 1}, {"b": 2}]}
    with pytest.warns(OverBudgetWarning):
        output = packaged.compress(json.dumps(value), rate=0.3, omit_records=True).text
    assert json.loads(output) == value
    nested = [[{"x": [one, two]} for one in range(4)] for two in range(5)]
    short = json.loads(packaged.compress(json.dumps(nested), rate=0.5, omit_records=True).text)
    assert all(row in nested for row in short if not isinstance(row, str))
    with pytest.raises(ValueError, match="`omit_records` needs `unit=.auto.`"):
        packaged.compress(json.dumps(value), omit_records=True, unit="word")
    assert packaged.compress("Not JSON at all, and none in it.", rate=0.5, omit_records=True).text


def test_a_tool_result_loses_records_on_request(packaged):
    rows = [{"id": number, "city": "Bergen", "people": 291_000 + number} for number in range(60)]
    chat = [
        {"role": "user", "content": "List the towns."},
        {"role": "tool", "tool_call_id": "1", "content": json.dumps(rows)},
        {"role": "user", "content": "How many people live in town 12?"},
    ]
    short = packaged.compress_messages(chat, rate=0.4, omit_records=True, min_tokens=0)
    found = json.loads(short.messages[1]["content"])
    assert short.shortfall >= 0 and sum(map(_left_out, found)) + sum(isinstance(row, dict) for row in found) == 60
    assert (
        packaged.compress_messages(short.messages, rate=0.4, omit_records=True, min_tokens=0).messages
        == short.messages
    )


def test_a_model_by_words_sees_structure_by_default(packaged):
    compressor, text = packaged, json.dumps(ORDERS, indent=2)
    assert compressor.policy.unit == "word"
    for one in (text, PYTHON, SCRIPT):
        result = compressor.compress(one, rate=0.8)
        assert result.text == compressor.compress(one, rate=0.8, unit="auto").text and result.kind in ("json", "code")
        by_words = compressor.compress(one, rate=0.8, unit="word")
        assert result.text != by_words.text and by_words.kind is None
        for options in ({"prefix_stable": True}, {"tags": True}):
            words = compressor.compress(one, rate=0.8, unit="word", **options).text
            assert compressor.compress(one, rate=0.8, **options).text == words
    whole = compressor.compress(text, quality=0.7)
    assert whole.text == text and whole.returned_whole == "json"
    assert compressor.compress(text, quality=0.7, unit="word").returned_whole != "json"
    plain = "The harbour was closed on Monday because of the storm, and it opened again on Friday."
    assert compressor.compress(plain).kind is None
    with pytest.raises(ValueError, match="What is protected takes"):  # only structure is returned with a warning
        compressor.compress(plain, target_tokens=3, protect=(0, 60))
    with pytest.warns(OverBudgetWarning):
        assert json.loads(compressor.compress(text, rate=0.1).text)


def test_a_budget_that_json_cannot_meet_is_named(compressor):
    with pytest.raises(
        ValueError, match="What JSON needs to stay whole takes .* pass `omit_records=True` or `unit='word'`"
    ):
        compressor.compress(json.dumps(ORDERS), rate=0.1, unit="auto", on_impossible="raise")
    text = json.dumps(ORDERS, indent=2)
    with pytest.warns(
        OverBudgetWarning, match="JSON needs .* of the packaged GPT-2, the budget is .* Returned are .* of .*"
    ):
        result = compressor.compress(text, rate=0.1, unit="auto")
    check_json(ORDERS, json.loads(result.text))
    assert result.compressed_tokens < result.original_tokens and result.shortfall < 0
    assert f"takes {result.compressed_tokens} tokens" in result.unreached
    assert CompressedText.from_json(result.to_json()).unreached == result.unreached
    assert compressor.compress(text, rate=0.9, unit="auto").unreached is None
    for unit in ("word", "auto"):  # nothing but the protection stands in the way
        with pytest.raises(ValueError, match="is protected takes"):
            compressor.compress("Call 555-0199 or 555-0198 now.", rate=0.2, unit=unit, protect="numbers")
    with pytest.warns(OverBudgetWarning, match="What is protected takes"):
        kept = compressor.compress(
            "Call 555-0199 or 555-0198 now.", rate=0.2, unit="auto", protect="numbers", on_impossible="warn"
        )
    assert "555-0199" in kept.text and "now" not in kept.text


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=12),
        st.lists(st.sampled_from([*fuzz.ENGLISH, '"quoted"', "a\\b", "né", "日本", "👍🏽", "not,", "x\ny", "12,750", "\t"]), min_size=8, max_size=20).map(" ".join),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@usual
@given(st.dictionaries(st.text(max_size=6), VALUES, min_size=1, max_size=4), st.sampled_from([0.4, 0.6, 0.8, 0.95]), st.sampled_from([None, 2]), st.booleans())  # fmt: skip
def test_any_json_stays_json(value, rate, indent, escaped):
    text = json.dumps(value, indent=indent, ensure_ascii=escaped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # most are too small to be shortened so far
        output = ANY_OPINION.compress(text, rate=rate, unit="auto", on_impossible="warn").text
    check_json(json.loads(text), json.loads(output))


def lines_left(text: str, output: str) -> list[int]:
    """Which lines of a text are left, each whole and in its order."""
    lines, found = text.splitlines(keepends=True), []
    for line in output.splitlines(keepends=True):
        found.append(next(at for at in range(found[-1] + 1 if found else 0, len(lines)) if lines[at] == line))
    return found


@pytest.mark.parametrize("rate", OPINIONS)
def test_python_goes_by_lines_with_what_they_stand_in(rate):
    result = ANY_OPINION.compress(PYTHON, rate=rate, unit="auto")
    left = lines_left(PYTHON, result.text)
    shown = {PYTHON.splitlines()[at].strip() for at in left}
    assert result.shortfall >= 0
    for inner, outer in (("continue", "if not item or (item is None):"), ("print(item)", "else:"), ('"x",', "return item.strip("),
                         ("return item.strip(", 'elif re.match("x", item):'), ("else:", "if not item or (item is None):"),
                         ("continue", "for item in items:"), ("return None", "def first(items: list[str]) -> str | None:"),
                         ("@cache", "def first(items: list[str]) -> str | None:")):  # fmt: skip
        assert inner not in shown or outer in shown, result.text
    assert '"x",' in shown or "return item.strip(" not in shown, "a statement was cut"
    assert ("else:" in shown) == ("print(item)" in shown), "an empty block was left"


NESTED = '''import os
import sys


class Store:
    """What is kept of a text, for as long as it is asked for, with a docstring of more than one line.

MORE
    """

    def __enter__(self):
        return self

    def read(self, path, times=3):
        # Nothing to do where there is no file.
        if not os.path.exists(path):
            # Told once.
            print("no such file", path)
        # A folder holds no text.
        elif os.path.isdir(path):
            # Neither is one that is locked.
            return None
        else:
            try:
                with open(path) as file:
                    for line in file:
                        if line.startswith("#"): continue
                        if not line.strip():
                            # An empty line ends it.
                            break
            except OSError:
                # Again, after a while.
                self.read(path, times - 1)
            finally:
                self.close()

    def close(self):
        if self.file is None: return
        self.file = None
'''.replace("MORE", "\n".join(f"    Line {number} of what there is to say of it." for number in range(60)))


@pytest.mark.parametrize("rate", OPINIONS)
def test_no_block_of_python_is_left_without_a_statement(rate):
    for text in (NESTED, NESTED.replace(NESTED[NESTED.index('"""') : NESTED.index("def __enter__")], "")):
        for chosen in (ANY_OPINION, packaged_compressor()):
            assert ast.parse(chosen.compress(text, rate=rate, unit="auto").text).body


@pytest.mark.parametrize("rate", OPINIONS)
def test_no_function_seems_to_do_nothing(rate):
    output = ANY_OPINION.compress(SCRIPT, rate=rate, unit="auto").text
    assert not re.search(r"\{\s*\}(?!\))", output.replace("options = {}", "")), output


@pytest.mark.parametrize("rate", OPINIONS)
def test_brackets_of_blocks_stay_balanced(rate):
    output = ANY_OPINION.compress(SCRIPT, rate=rate, unit="auto").text
    lines_left(SCRIPT, output)
    assert output.count("{") == output.count("}"), output
    assert ("if (!text) {" in output) == ("} else {" in output)


def test_lines_of_a_log_are_whole_and_counted(compressor):
    for rate in (0.3, 0.5, 0.9):
        result = compressor.compress(LOG, rate=rate, unit="auto")
        counts = re.findall(r" \(x(\d+)\)$", result.text, re.MULTILINE)
        lines_left(LOG, re.sub(r" \(x\d+\)$", "", result.text, flags=re.MULTILINE))
        assert counts == ["10"] and len(result.notes) == 1 and result.shortfall >= 0
        assert "WARN  payments.gateway" in result.text and "ERROR payments.gateway" in result.text
        assert CompressedText.from_json(result.to_json()).notes == result.notes
    assert compressor.compress(LOG, rate=1.0, unit="auto").text == LOG


APP_LOG = "".join(
    f"2026-11-02 09:14:{at:02d} WARN  [cache] Slow read of key user:{at * 37}: {at * 11} ms\n"
    f"2026-11-02 09:14:{at:02d} INFO  [worker-{at % 8}] Processed batch {1000 + at} in {at * 13} ms\n"
    for at in range(30)
) + (
    "2026-11-02 09:14:33 ERROR [payments] Charge failed for order 81924: card declined (code 51)\n"
    "Traceback (most recent call last):\n"
    '  File "/app/payments.py", line 88, in charge\n'
    "    raise Declined(code)\n"
    "payments.Declined: code 51\n"
    "2026-11-02 09:14:50 FATAL [db] could not connect to 10.0.0.5:5432, giving up\n"
    "2026-11-02 09:14:51 INFO  [worker-1] Processed batch 1900 in 20 ms\n"
)  # fmt: skip
SIMILAR = re.compile(r" \(… (\d+) similar lines\)$", re.MULTILINE)


@pytest.mark.parametrize("rate", [0.12, 0.3, 0.5])
@pytest.mark.parametrize("opinion", ["trained", "any"])
def test_what_failed_stays_and_similar_lines_give_way_first(rate, opinion):
    chosen = ANY_OPINION if opinion == "any" else packaged_compressor()
    result = chosen.compress(APP_LOG, rate=rate, unit="auto")
    shown = SIMILAR.sub("", result.text).splitlines(keepends=True)
    lines = APP_LOG.splitlines(keepends=True)
    lines_left(APP_LOG, "".join(shown))
    assert all(line in shown for line in lines if re.search("ERROR|FATAL|Traceback|Declined", line)), result.text
    for word in ("cache", "batch"):
        missing = sum(word in line for line in lines) - sum(word in line for line in shown)
        kept = any(word in line for line in shown)
        told = [
            int(match[1])
            for match in SIMILAR.finditer(result.text)
            if word in result.text[: match.start()].splitlines()[-1]
        ]
        assert told == [missing] * kept, result.text
    assert result.shortfall >= 0
    asked = chosen.compress(APP_LOG, rate=0.12, unit="auto", question="batch 1017?") if chosen.takes_question else None
    assert asked is None or "batch 1017 " in asked.text


def test_how_much_a_line_of_a_log_matters():
    lines = {
        "12:00:01 ERROR no route": FAILED, "Traceback (most recent call last):": TROUBLE, '  File "a.py", line 1': TROUBLE,
        "KeyError: 'a'": FAILED, "12:00:02 INFO all good": PLAIN, "12:00:03 WARN slow": WARNING, "12:00:03 WARN connection refused": TROUBLE,
        "goroutine 1: panic: nil map": FAILED, "12:00:04 INFO 0 failed, 12 passed": PLAIN, "ts=1 level=error msg=x": FAILED,
        "12:00:05 INFO login failed for bob": TROUBLE, "Caused by: java.io.IOException: x": FAILED, "E0102 12:00:05 pod": FAILED,
        "12:00:06 INFO terror movie": PLAIN,
    }  # fmt: skip
    assert dict(zip(lines, severities(list(lines)))) == lines


TABLE = """# Results

| Method | Kept | Note |
|:-------|-----:|------|
| head | 0.55 | takes the beginning of the text |
| tokforget | 0.78 | told nothing of the question |
| random | 0.32 | a control that nobody would use |

As one sees, nothing comes close to what is told the question beforehand.
"""
YAML = """# Settings
version: "3.9"
services:
  web: &web
    image: registry.example.org/web:2.4.1
    ports:
      - "8080:80"
      - "8443:443"
    environment: {LOG_LEVEL: info, DEBUG: "no",
      DATABASE_URL: "postgres://shop@db:5432/shop"}
  copy:
    <<: *web
    image: other
jobs:
- name: build
  steps:
  - run: make
    shell: bash
  - run: make test
notes: |
  This file is read by the deployment,
  and nothing else.
"""
TOML = '''title = "shop"
# what it is
[project]
name = "shop"
dependencies = [
    "fastapi>=0.110",
    "sqlalchemy>=2",
]
about = """
Sells things.
"""

[[server]]
host = "a"
[server.limits]
most = 3
[[server]]
host = "b"

[tool.ruff]
line-length = 119
'''
CSV = "id,name,city,amount\n" + "".join(f'{n},Person {n},"City, {n}",{n * 7.5}\n' for n in range(12))


@pytest.mark.parametrize("rate", [*OPINIONS, 0.12])
def test_rows_of_a_table_are_whole_with_their_names(rate):
    assert kind_of(TABLE) == "tables" and [TABLE[a:b][:8] for a, b in find_tables(TABLE)] == ["| Method"]
    output = ANY_OPINION.compress(TABLE, rate=rate, unit="auto").text
    rows = [line for line in output.splitlines() if "|" in line]
    table = [line for line in TABLE.splitlines() if "|" in line]
    if set(rows) <= set(table) and rows:
        assert rows[:2] == table[:2] and len(rows) > 2
        assert rows == [row for row in table if row in rows]
        assert output[output.index(rows[-1]) + len(rows[-1]) :].startswith("\n\n") or output.rstrip().endswith(
            rows[-1]
        )
    else:
        assert not rows or rate < 0.3  # no row fits into the budget: by words
    assert find_tables("a | b\n--- | ---\n1 | 2\n") and not find_tables("a | b\nc | d\n") and not find_tables("|-|\n")


INI = """; of the staging server
[server]
host = 0.0.0.0
port = 8080
debug = false

[client]
; in seconds
timeout = 30
retries = 3
user agent = tests of the client
"""


@pytest.mark.parametrize("rate", OPINIONS)
def test_settings_of_an_ini_file_stay_in_their_section(rate):
    assert kind_of(INI) == "settings" and kind_of("[note]\nDear Anna,\nthe parcel is here.\nYours") != "settings"
    whole, left = configparser.ConfigParser(), configparser.ConfigParser()
    whole.read_string(INI)
    for chosen in (ANY_OPINION, packaged_compressor()):
        left.clear()
        left.read_string(chosen.compress(INI, rate=rate, unit="auto").text)
        for section in left.sections():
            assert left[section].items() <= whole[section].items()


@pytest.mark.parametrize("rate", OPINIONS)
def test_lines_around_a_table_or_a_fence_that_is_gone_stay_apart(rate):
    for block in ("| Region | Q1 |\n|---|---|\n| North | 1,200 |\n| South | 900 |\n", f"```python\n{PYTHON}```\n"):
        text = f"# Plan of the harbour\n\n{block}\n- Call the printer on Monday\n- Book the hall\n"
        for chosen in (ANY_OPINION, packaged_compressor()):
            output = chosen.compress(text, rate=rate, unit="auto").text
            assert not re.search(r"# [^\n]*(?:printer|Monday|Call|hall|Book|- )", output), output


@pytest.mark.parametrize("rate", OPINIONS)
def test_settings_still_parse(rate):
    assert (kind_of(YAML), kind_of(TOML)) == ("settings", "settings")
    left = yaml.safe_load(ANY_OPINION.compress(YAML, rate=rate, unit="auto").text)
    whole = yaml.safe_load(YAML)
    assert left is None or left.keys() <= whole.keys()
    for name, service in ((left or {}).get("services") or {}).items():
        assert service.keys() <= whole["services"][name].keys() and service.items() and None not in service.values()
    left = tomllib.loads(ANY_OPINION.compress(TOML, rate=rate, unit="auto").text)
    whole = tomllib.loads(TOML)
    assert left.keys() <= whole.keys() and all(server in ({"host": "a"}, {"host": "b"}, {"limits": {"most": 3}}, whole["server"][0])
                                               for server in left.get("server", []))  # fmt: skip


def test_a_conversation_is_no_setting_and_prose_no_table_of_values():
    chat = "user: can you tell me when the bridge was built?\nassistant: it was built in 1874, by Favre.\nuser: thank you\n"
    letter = "Dear Anna, dear Tom, dear all,\nwe met, we talked, and we left,\nit rained, it snowed, it froze,\nso long, good bye, all the best,\n"
    assert kind_of(chat * 3) is None and kind_of("to do:\n- call Tom about the car\n- write to Anna\n") is None
    assert csv_rows(CSV.splitlines(keepends=True)) == [1] * 13 and kind_of(CSV) == "csv"
    assert csv_rows(["a,b,c\n", '1,"x\n', 'y",2\n', "3,4,5\n", "6,7,8\n"]) == [1, 2, 1, 1]
    assert csv_rows(letter.splitlines(keepends=True)) is None or kind_of(letter) is None


@pytest.mark.parametrize("rate", OPINIONS)
def test_records_of_a_csv_are_whole_with_the_names_of_their_columns(rate):
    output = ANY_OPINION.compress(CSV, rate=rate, unit="auto").text
    lines_left(CSV, output)
    assert output.startswith("id,name,city,amount\n") and all(len(row) == 4 for row in csv.reader(output.splitlines()))


def test_a_line_that_is_there_twice_is_not_counted_as_gone():
    result = ANY_OPINION.compress(LOG, rate=0.9, unit="auto", protect="numbers")
    assert "(x" not in result.text and result.text.count("Heartbeat") == LOG.count("Heartbeat")


def test_code_in_fences_goes_by_lines_and_prose_by_words(compressor):
    for rate in (0.4, 0.6, 0.8):
        output = compressor.compress(MIXED, rate=rate, unit="auto").text
        if "```" in output:
            code = re.search(r"\n```python\n(.*\n)```\n", output, re.DOTALL)[1]
            lines_left(PYTHON, code)
        assert "not help" in output and "not return" in output
    assert "```" in output


@pytest.mark.parametrize("rate", [0.4, 0.6, 0.8])
def test_rows_go_whole_with_their_header_and_the_line_they_stand_under(rate):
    output = ANY_OPINION.compress(DISKS, rate=rate, unit="auto").text
    lines_left(DISKS, output)
    left = output.splitlines()
    if any(line.startswith("/dev") for line in left):
        assert "Filesystem     Size   Used  Avail  Mounted on" in left
    output = ANY_OPINION.compress(LINKS, rate=rate, unit="auto").text
    lines_left(LINKS, output)
    for line in output.splitlines():
        if line.startswith("\t"):
            above = LINKS[: LINKS.index(line)].splitlines()
            assert next(one for one in reversed(above) if not one.startswith("\t")) in output.splitlines()


def test_an_error_of_a_log_outlives_what_went_well():
    lines = [f"2026-11-02T09:{n // 60:02d}:{n % 60:02d} INFO request {n} took {n * 7 % 90} ms" for n in range(90)]
    for at in (0, 41, 89):
        log = "\n".join([*lines[:at], "2026-11-02T09:05:00 ERROR db-3 refused the connection", *lines[at:]])
        assert "ERROR db-3 refused the connection" in ANY_OPINION.compress(log, rate=0.15, unit="auto").text


def test_json_behind_its_preface_stays_json(compressor):
    text = f"These are the orders that were found:\n{json.dumps(ORDERS, indent=2)}\n\nPlease tell me which of them is late."
    output = compressor.compress(text, rate=0.7, unit="auto").text
    value, end = json.JSONDecoder().raw_decode(output, output.index("\n{") + 1)
    check_json(ORDERS, value)
    assert output[end:].startswith("\n\n") and len(output) < len(text)


def test_structures_beside_each_other_change_nothing():
    texts = [PYTHON, LOG, NOTE, json.dumps({"note": NOTE * 3}), MIXED, "", "{}"]
    together = ANY_OPINION.compress(texts, rate=0.6, unit="auto", on_impossible="warn")
    for text, result in zip(texts, together):
        alone = ANY_OPINION.compress(text, rate=0.6, unit="auto", on_impossible="warn")
        assert alone.text == result.text and np.array_equal(alone.keep_mask, result.keep_mask)
    assert together[2].text == ANY_OPINION.compress(NOTE, rate=0.6, unit="word").text
    corpus = ANY_OPINION.compress(texts[:3], rate=0.6, unit="auto", budget="corpus")
    assert sum(result.compressed_tokens for result in corpus) <= corpus[0].target_tokens


def test_lines_longer_than_the_budget_go_by_words():
    text = "first = second(third, fourth, fifth)\nsixth = seventh(eighth, ninth, tenth)\nreturn eleventh(twelfth, thirteenth);\n"
    assert kind_of(text) == "code"
    assert ANY_OPINION.compress(text, target_tokens=4, unit="auto").text.strip()


@pytest.mark.parametrize(
    "options", [{"prefix_stable": True, "rate": 0.5}, {"tags": True}, {"quality": 0.9}], ids=str
)  # fmt: skip
def test_what_looks_at_parts_is_refused(options):
    with pytest.raises(ValueError, match="looks at a text as a whole"):
        ANY_OPINION.compress(PYTHON, unit="auto", **options)
    with pytest.raises(ValueError, match="a stream comes in blocks"):
        ANY_OPINION.compress_stream([PYTHON], rate=0.5, unit="auto")


HTML = """<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>Harbour ferry timetable</title>
  <script>window.layer = window.layer || []; if (a < b) { track("page"); }</script>
</head>
<body class="page">
  <!-- navigation -->
  <nav class="nav"><a href="/home">Home</a> | <a href="/tickets">Tickets</a></nav>
  <p>The ferry to <b>Skagen</b> leaves at 12:45, but <strong>not</strong> on Sundays.<br>
  Dogs travel for nothing.</p>
  <ul>
    <li>Adults: 12 euros</li>
    <li>Children under 6: free &amp; welcome</li>
  </ul>
  <table>
    <tr><th>Day</th><th>First</th><th>Last</th></tr>
    <tr><td>Monday</td><td>06:15</td><td>21:10</td></tr>
  </table>
  <img src="/img/pier.png" alt="The pier"/>
  <form action="/buy"><input type="hidden" name="csrf" value="9f8e7d6"><button disabled>Buy</button></form>
</body>
</html>
"""
XML = """<?xml version="1.0"?>
<orders xmlns:x="http://example.org/x">
  <order id="A-81924"><status>cancelled</status><total currency="EUR">84.50</total></order>
  <order id="A-81930"><status>shipped</status><total currency="EUR">12.00</total></order>
</orders>
"""


# Without white space between them several tags are one piece.
DENSE = re.sub(r"\s*\n\s*", "", HTML[HTML.index("<body") : HTML.index("</html>")]).replace("06:15", "90 euros")


@pytest.mark.parametrize(
    "text",
    [HTML, XML, DENSE, "Read <document>the <b>old</b> letter of 1874</document> and <i>never</i> <T> a List<String>."],
)
@pytest.mark.parametrize("unit", ["word", "auto"])
def test_tags_are_as_balanced_as_they_were(text, unit):
    for chosen in (ANY_OPINION, packaged_compressor()):
        for rate in (0.3, 0.5, 0.7, 0.9):
            output = chosen.compress(text, rate=rate, unit=unit).text
            open_ = []
            for close, name in re.findall(
                r"<(/?)(\w+)(?![^<>]*/>)[^<>]*>", re.sub(r"<(?:meta|br|input|script|T|String)\b.*?>", "", output)
            ):
                if close and name != "script":
                    assert open_ and open_.pop() == name, output
                elif not close:
                    open_.append(name)
            assert not open_, output
            for row in re.findall(r"<tr>.*?</tr>", output):
                assert len(re.findall(r"<t[hd]>", row)) == 3, output
            assert "Sundays" not in output or "not" in output


@pytest.mark.parametrize("target", [1, 2, 3, 5, 8, 12, 20, 30])
def test_a_tiny_budget_keeps_names_of_columns_and_settings_that_parse(compressor, target):
    for chosen in (ANY_OPINION, compressor):
        result = chosen.compress(CSV, target_tokens=target, unit="auto")
        left = re.findall(r"\w+", result.text.split("\n")[0])
        assert result.shortfall >= 0 and left == [name for name in ("id", "name", "city", "amount") if name in left]
        output = chosen.compress(YAML, target_tokens=target, unit="auto").text
        assert target < 8 or isinstance(yaml.safe_load(output), dict), output


COMMENTED = """/**
 * Creates an array of elements split into groups the length of `size`. If `array` can't be split evenly, the
 * final chunk will be the remaining elements.
 *
 * @param {Array} array The array to process.
 * @param {number} [size=1] The length of each chunk
 * @returns {Array} Returns the new array of chunks.
 */
function chunk(array, size) {
  var length = array == null ? 0 : array.length;
  if (!length || size < 1) {
    return [];
  }
  return result;
}
"""
SHELL = """#!/usr/bin/env bash
# Deploys the site. Asks before it overwrites anything, but for the settings.
set -euo pipefail
cat > /etc/site.conf <<EOF
server {
  listen 80;
}
EOF
if [ ! -f "$1" ]; then
  echo "no such file: $1" >&2
  exit 1
fi
for host in a b c; do
  rsync -a ./site/ "$host:/srv/site/" || exit 1
done
"""
SQL = """-- all customers with a ticket
SELECT c.id, c.name,
       count(*) AS tickets
FROM customers c
JOIN tickets t ON t.customer_id = c.id
WHERE t.cancelled IS NULL
  AND t.bought >= '2025-01-01'
GROUP BY c.id, c.name
ORDER BY tickets DESC;
"""
RUBY = "# A ferry.\nclass Ferry\n  attr_reader :name\n\n  def initialize(name)\n    @name = name\n  end\nend\n"
DOCKERFILE = "# Builds the site\nFROM python:3.11-slim\nWORKDIR /app\nRUN pip install -r requirements.txt \\\n    && rm -rf /root/.cache\nEXPOSE 8080\n"
DIFF = """diff --git a/app.py b/app.py
index 9f8e7d6..1a2b3c4 100644
--- a/app.py
+++ b/app.py
@@ -10,7 +10,8 @@ def charge(order):
     if order.paid:
         return None
-    total = order.total
+    total = order.total * rate
     return send(total)
@@ -40,3 +41,3 @@ def refund(order):
-    if not order.paid:
+    if order.paid:
         raise ValueError
"""


@pytest.mark.parametrize("text", [COMMENTED, SHELL, SQL, RUBY, DOCKERFILE])
def test_programs_of_many_languages_and_with_many_comments_are_programs(text):
    assert kind_of(text) == "code"
    for rate in OPINIONS:
        output = ANY_OPINION.compress(text, rate=rate, unit="auto").text
        if any(line in text.splitlines() for line in output.splitlines() if line.strip()):
            lines_left(text, output)
        assert output.count("/**") == output.count("*/") and output.count("{") == output.count("}"), output
        for begin, end in (
            ("<<EOF", "\nEOF"),
            ("; then", "\nfi"),
            ("; do", "\ndone"),
            ("\\\n", "&& rm"),
            ("class Ferry", "\nend"),
        ):
            assert (begin in output) == (end in output), output
        assert "SELECT" not in output or (
            "WHERE t.cancelled IS NULL\n  AND t.bought" in output and "JOIN" in output
        ), output


def test_a_docker_file_goes_by_lines():
    outputs = [ANY_OPINION.compress(DOCKERFILE, rate=rate, unit="auto").text for rate in (0.4, 0.6, 0.8)]
    assert any(
        ("FROM" not in output and "WORKDIR" in output) or ("FROM" in output and "WORKDIR" not in output)
        for output in outputs
    )
    assert all(line in DOCKERFILE.splitlines() for output in outputs for line in output.splitlines())


def test_lines_of_a_diff_stand_in_their_hunk_and_changes_go_together():
    assert kind_of(DIFF) == "diff" and kind_of(f"Look at this:\n\n{DIFF}") == "diff"
    for rate in OPINIONS[4:]:
        output = ANY_OPINION.compress(DIFF, rate=rate, unit="auto").text
        lines_left(DIFF, output)
        assert ("-    total = order.total\n" in output) == ("+    total = order.total * rate" in output), output
        assert "raise" not in output or "@@ -40,3 +41,3 @@" in output, output
        assert "@@" not in output or "+++ b/app.py" in output, output


def test_json_with_comments_and_last_commas_becomes_plain_json():
    text = (
        '{\n  // the port, not 80\n  "port": 8080, /* "old": 1 */\n  "url": "http://a.b//c,]", "hosts": ["a", "b",],\n  "note": "'
        + NOTE
        + '",\n}\n'
    )
    assert kind_of(text) == "json" and kind_of('["see // here", 1]') == "json" and kind_of("[see // here,]") is None
    for rate in (0.4, 0.7, 0.9):
        value = json.loads(ANY_OPINION.compress(text, rate=rate, unit="auto").text)
        assert (value["port"], value["url"], value["hosts"]) == (8080, "http://a.b//c,]", ["a", "b"])
    assert ANY_OPINION.compress(text, rate=1.0, unit="auto").text == text


def test_records_with_words_behind_them_stay_records():
    rows = "".join(json.dumps({"id": n, "note": NOTE}) + "\n" for n in range(4))
    for text in (
        f"{rows}And that is all that came, 12 rows are missing.\n",
        f"Here they are.\n{rows}\nAnd that is all.",
    ):
        assert kind_of(text) == "json"
        output = ANY_OPINION.compress(text, rate=0.7, unit="auto").text
        assert [json.loads(line)["id"] for line in output.splitlines() if line.startswith("{")] == [*range(4)], output


def test_what_stands_behind_a_table_is_not_joined_to_what_stands_before_it():
    text = "# knows so dog\n\n| a | b |\n|---|---|\n| one | two |\n| three | four |\n\nnobody\n\n the, fox while.\n"
    for target in range(1, 30):
        assert "dognobody" not in ANY_OPINION.compress(text, target_tokens=target, unit="auto").text


# -- faults that a review found ----------------------------------------------------------------------------------------
ROWS = [{"id": number, "name": f"user {number}", "note": "ok"} for number in range(12)]
SENTENCE = "a long line of words about the town and its river"


def _json_lines(output: str) -> list:
    return [json.loads(line) for line in output.split("\n") if line.strip()]


@pytest.mark.parametrize("target", [1, 3, 10, 20, 30, 60])
def test_lines_of_json_are_whole_however_small_the_budget(packaged, target):
    text = "\n".join(json.dumps({"id": number, "text": SENTENCE}) for number in range(3))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = packaged.compress(text, target_tokens=target, omit_records=True)
    values = _json_lines(result.text)
    assert sum(_left_out(value) or 1 for value in values) == 3
    assert (result.compressed_tokens > target) == bool(said) == bool(result.unreached)


@pytest.mark.parametrize("protect", ["numbers", "re:user 4", "last:5", "first:5"])
@pytest.mark.parametrize("separator", [None, "\n"])
def test_what_is_protected_keeps_its_record(packaged, protect, separator):
    text = json.dumps(ROWS) if separator is None else separator.join(map(json.dumps, ROWS))
    output = packaged.compress(text, rate=0.5, omit_records=True, protect=[protect], on_impossible="warn").text
    values = json.loads(output) if separator is None else _json_lines(output)
    assert sum(_left_out(value) or 1 for value in values) == len(ROWS)
    assert all(value in ROWS for value in values if isinstance(value, dict))
    assert protect != "re:user 4" or ROWS[4] in values


def test_signs_that_end_a_line_elsewhere_do_not_in_json(packaged):
    rows = [{"id": number, "text": "a\u2028b\x85c of the harbour"} for number in range(5)]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for one in (text, f"Result:\n{text}"):
        values = _json_lines(packaged.compress(one, rate=0.5, omit_records=True).text.removeprefix("Result:\n"))
        assert all(value in rows for value in values if isinstance(value, dict))
        assert sum(_left_out(value) or 1 for value in values) == 5


@pytest.mark.parametrize("separator", [None, "\n"])
def test_records_are_counted_through_several_calls(packaged, separator):
    text = json.dumps(ROWS) if separator is None else separator.join(map(json.dumps, ROWS))
    for rate in (0.7, 0.7, 0.6):
        text = packaged.compress(text, rate=rate, omit_records=True).text
        values = json.loads(text) if separator is None else _json_lines(text)
        assert sum(_left_out(value) or 1 for value in values) == len(ROWS)
        assert not any(_left_out(one) and _left_out(other) for one, other in pairwise(values))


@pytest.mark.parametrize("rate", [0.25, 0.35, 0.5, 0.65, 0.8])
def test_a_literal_goes_with_all_of_its_lines(packaged, rate):
    code = 'config = {"name": "x",\n          "size": 3}\n\nlimit = len(config)\nprint(config, limit)\nrun(config)\n'
    ast.parse(packaged.compress(code, rate=rate).text)
    script = (
        "const config = { name: 'x',\n  size: 3,\n  more: [1, 2] };\nstart(config);\nconst limit = 4;\nstop(limit);\n"
    )
    output = packaged.compress(script, rate=rate).text
    assert output.count("{") == output.count("}")


@pytest.mark.parametrize(
    "frame", ["\ufeff{}", "tool: {}", "Result: {}", "{}\nThat is all.\n", "tool:\n{}", "\u00a0{}"]
)
def test_json_is_seen_behind_a_label_or_before_words(packaged, frame):
    result = packaged.compress(frame.format(json.dumps(ROWS)), rate=0.7, omit_records=True)
    found = result.text[result.text.index("[") : result.text.rindex("]") + 1]
    assert result.kind == "json" and all(row in ROWS for row in json.loads(found) if isinstance(row, dict))
    assert "tool" not in frame or result.text.startswith("tool:")


def test_json_with_a_comment_before_it_becomes_plain(packaged):
    for text in ("// users\n{}", "/* users */\n{}"):
        assert json.loads(packaged.compress(text.format(json.dumps(ROWS)), rate=0.95).text) == ROWS


def test_json_in_a_fence_keeps_the_fence(packaged):
    block = '```json\n{"a": 1, "b": [1, 2, 3, 4, 5, 6, 7, 8]}\n```'
    for rate in (0.5, 0.7, 0.8, 0.9):
        output = packaged.compress(f"Here it is:\n{block}\nBye for now.", rate=rate, on_impossible="warn").text
        assert output.count("```") == 2, output
    prose = "The settings of the second server were changed on Monday by the night shift, which had been told to. " * 4
    value = json.dumps({"server": {"name": "b", "port": 80, "hosts": ["x", "y"]}}, indent=2)
    for rate in (0.3, 0.5, 0.7, 0.9):
        output = packaged.compress(f"{prose}\n\n```json\n{value}\n```\n\n{prose}", rate=rate).text
        assert output.count("```") in (0, 2)
        assert "```" not in output or json.loads(output.split("```")[1].removeprefix("json"))


def test_a_deep_text_is_not_an_error(packaged):
    assert packaged.compress("[" * 2000 + ",]", rate=0.3).text


def test_a_question_finds_its_record_on_one_line(packaged):
    cities = [
        "Bergen",
        "Tromsø",
        "Oslo",
        "Moss",
        "Hamar",
        "Molde",
        "Narvik",
        "Bodø",
        "Alta",
        "Skien",
        "Larvik",
        "Vardø",
    ]
    rows = [{"id": number, "city": city, "mayor": f"M{number * 7}"} for number, city in enumerate(cities)]
    # `json.dumps` writes "ø" as an escape, and an indented record takes several lines: neither may hide a record.
    for options in ({}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 2}):
        found = [
            row in json.loads(packaged.compress(json.dumps(rows, **options), rate=0.35, omit_records=True,
                                                question=f"Who is the mayor of {row['city']}?").text)
            for row in rows
        ]  # fmt: skip
        assert all(found), (options, found)


POOL = "\n".join(
    [f"2026-11-28T09:{n:02d}:00Z api INFO GET /v1/items/{n} 200 {12 + n}ms" for n in range(14)]
    + [
        "2026-11-28T09:14:03Z db WARN pool exhausted, 40 waiting",
        "2026-11-28T09:14:05Z api ERROR POST /v1/orders 500 30001ms: deadline exceeded while acquiring connection",
        "2026-11-28T09:14:09Z db INFO pool resized from 40 to 80",
        "2026-11-28T09:15:00Z api INFO GET /v1/items/15 200 14ms",
    ]
)


@pytest.mark.parametrize("rate", [0.2, 0.35, 0.5])
@pytest.mark.parametrize(
    "question, kept",
    [("When was the pool resized?", "pool resized from 40"), ("Which deadline was exceeded?", "deadline exceeded"),
     ("How many were waiting?", "40 waiting"), ("Why did the order fail?", "ERROR POST /v1/orders")],
)  # fmt: skip
def test_the_line_that_answers_stays_and_without_one_that_of_the_failure(packaged, rate, question, kept):
    """No line has a word of the last question."""
    assert kept in packaged.compress(POOL, rate=rate, question=question).text


def test_records_that_are_shorter_than_a_note_stay(packaged):
    for text in ("[[],[],[]]", "[[1],[2],[3]]"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert packaged.compress(text, rate=0.9, omit_records=True).text == text


def test_long_records_lose_words_where_none_of_them_fits(packaged):
    rows = [{"id": number, "text": f"{SENTENCE}. " * 8} for number in range(5)]
    text = json.dumps(rows)
    assert packaged.compress(text, rate=0.2, omit_records=True).text == packaged.compress(text, rate=0.2).text
    pages = "\n".join(
        json.dumps({"page": n, "items": [{"id": i, "n": "a name"} for i in range(30)]}) for n in range(2)
    )
    found = _json_lines(packaged.compress(pages, rate=0.4, omit_records=True).text)
    assert [page["page"] for page in found] == [0, 1] and any(map(_left_out, found[0]["items"]))


def test_flat_settings_are_settings(packaged):
    text = (
        "# The run\nmax_steps: 150\nlearning_rate: 2.0e-3\nseed: 0\n\n# Saving\neval_strategy: steps\nsave_steps: 50\n"
    )
    for rate in (0.3, 0.5, 0.7):
        result = packaged.compress(text, rate=rate)
        assert result.kind == "settings" and yaml.safe_load(result.text).items() <= yaml.safe_load(text).items()
    for letter in (
        "Name: Anna Petersen\nTown: Bergen\nPhone: none\nNote: call me\n",
        "user: hi\nbot: hello\nuser: bye\n",
    ):
        assert packaged.compress(letter, rate=0.7).kind != "settings"


PYTHON_TRACE = """Traceback (most recent call last):
  File "/srv/app/main.py", line 88, in <module>
    run(args)
  File "/srv/app/run.py", line 41, in run
    rows = load(path)
           ^^^^^^^^^^
  File "/srv/app/io.py", line 12, in load
    with open(path) as f:
FileNotFoundError: [Errno 2] No such file or directory: '/data/rows.csv'
"""
JAVA_TRACE = """Exception in thread "main" java.lang.IllegalStateException: Failed to load ApplicationContext
\tat org.springframework.test.context.cache.DefaultCache.load(DefaultCache.java:98)
\tat org.springframework.test.context.support.DefaultTestContext.get(DefaultTestContext.java:124)
\tat org.junit.jupiter.engine.Exec.run(Exec.java:55)
Caused by: java.net.ConnectException: Connection refused
\tat java.base/sun.nio.ch.Net.pollConnect(Native Method)
\t... 27 more
"""
TESTS_RUN = """collected 12 items

tests/test_a.py ....F.                                                   [ 50%]
tests/test_b.py ......                                                   [100%]

    def test_total():
>       assert total([1, 2]) == 4
E       assert 3 == 4

tests/test_a.py:14: AssertionError
FAILED tests/test_a.py::test_total - assert 3 == 4
========================= 1 failed, 11 passed in 0.31s =========================
"""
ORDERS_XML = """<?xml version="1.0"?>
<orders>
  <order id="17"><item>Lamp</item><price>12.50</price><state>shipped</state></order>
  <order id="18"><item>Chair</item><price>80.00</price><state>cancelled</state></order>
  <order id="19"><item>Table</item><price>190.00</price><state>shipped</state></order>
</orders>
"""


@pytest.mark.parametrize("rate", [0.3, 0.45, 0.6, 0.8])
def test_a_stack_trace_keeps_what_failed_and_whole_frames(packaged, rate):
    output = packaged.compress(PYTHON_TRACE, rate=rate).text
    assert "FileNotFoundError: [Errno 2] No such file or directory: '/data/rows.csv'" in output
    lines_left(PYTHON_TRACE, output)
    for frame in re.findall(r"  File .*\n    .*\n", PYTHON_TRACE):
        assert (frame.splitlines()[0] in output) == (frame.splitlines()[1] in output)
    output = packaged.compress(JAVA_TRACE, rate=rate).text
    assert "Caused by: java.net.ConnectException: Connection refused" in output
    lines_left(JAVA_TRACE, output)


def test_prose_about_failures_is_no_stack_trace(packaged):
    text = "The first run failed at noon.\nIt was aborted by an error of the driver.\nNobody saw an exception.\nWe try again.\n"
    assert packaged.compress(text, rate=0.5).kind is None


@pytest.mark.parametrize("rate", [0.35, 0.5, 0.7])
def test_of_printed_rows_those_of_failures_come_first(packaged, rate):
    output = packaged.compress(TESTS_RUN, rate=rate).text
    assert "E       assert 3 == 4" in output and "FAILED tests/test_a.py::test_total" in output


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7])
def test_tags_on_lines_of_numbers_stay_balanced(packaged, rate):
    result = packaged.compress(ORDERS_XML, rate=rate)
    fuzz.check_tags(result.text)
    assert result.kind is None and result.text.strip()


def test_words_and_blocks_between_them_keep_the_same_share(packaged):
    prose = (
        "The second server was moved to the cellar in May, because the first floor is too warm in summer. "
        "Nobody has to change anything, but the backup of the night now begins at two instead of one. "
    ) * 3
    table = "".join(f"| host{number} | 10.0.0.{number} | Bergen | {number * 7} GB |\n" for number in range(20))
    code = "```python\n" + "".join(f"start(host={number}, port={8000 + number})\n" for number in range(20)) + "```\n"
    text = f"{prose}\n\n| name | address | town | disk |\n|---|---|---|---|\n{table}\n{prose}\n\n{code}"
    for rate in (0.4, 0.5, 0.6):
        result = packaged.compress(text, rate=rate)
        kept = result.keep_mask
        offsets = np.array(packaged.tokenizer.encode(text, add_special_tokens=False).offsets)[:, 0]
        inside = (offsets >= text.index("| name")) & (offsets < text.index("GB |\n\n")) | (
            offsets >= text.index("```")
        )
        for part in (inside, ~inside):
            assert abs(kept[part].mean() - rate) < 0.17, (rate, kept[inside].mean(), kept[~inside].mean())


CONTRACT = """The supplier shall obtain all licenses that are required by the law;

(c) as of the date of this agreement, the buyer has told the supplier of any letters about the site;

(d) the buyer has the title to the property that it needs to do what it has to under this agreement;
"""
BRIEF = """Your task is to:
- Ensure the dashboard is responsive and user-friendly.
- Implement best practices for security and performance.

Rules:
- Use Next.js for server-side rendering and API routes.
- Utilize Tailwind CSS for styling and responsive design.
"""


@pytest.mark.parametrize("text", [CONTRACT, BRIEF])
def test_sentences_are_no_code_and_no_settings(packaged, text):
    assert packaged.compress(text, rate=0.6).kind is None


def test_of_texts_with_one_budget_a_page_with_a_table_is_not_weighed_by_shares(packaged):
    weak = "Well, it is as it was, and so it is, for all of them. " * 8
    table = "| it | and |\n|---|---|\n" + "| of it | and so |\n" * 12
    facts = "The bridge over the Arve was built in 1874 by Louis Favre. " * 8
    page, prose = packaged.compress([f"{weak}\n\n{table}", facts], rate=0.5, budget="corpus")
    assert page.kind == "tables" and page.compression_rate < 0.4 and prose.compression_rate > 0.9

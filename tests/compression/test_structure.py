"""`unit="auto"`: JSON stays JSON, code and logs go by lines, and all else by words."""

import json
import re
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import fuzz_compressor as fuzz
from tokforget import CompressedText, Compressor
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


def test_a_budget_that_json_cannot_meet_is_named(compressor):
    with pytest.raises(ValueError, match="What JSON needs to stay whole takes .* pass `unit='word'`"):
        compressor.compress(json.dumps(ORDERS), rate=0.1, unit="auto")


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

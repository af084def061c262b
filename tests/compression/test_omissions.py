"""What was left out: by lines, by text, beside what is left, and as marks in the output."""

import io
import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.support import fuzz_compressor as fuzz
from tokforget import CompressedText, Compressor
from tokforget.compression.omissions import Lines, find_omissions


ANY_OPINION = fuzz.make_compressor()
usual = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
LINES = [f"Line {number} tells of the {word} and of nothing else, which is long enough to be worth a mark.\n"
         for number, word in enumerate(["bridge", "river", "tram", "flood", "car", "bicycle", "canton", "city"], 1)]  # fmt: skip
TEXT = "".join(LINES)
MARK = re.compile(r"\[… lines? (\d+)(?:-(\d+))?\][\n ]?|\[…\] ?")


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return Compressor.from_pretrained()


def test_what_is_left_out_is_told_by_lines_and_by_text(compressor):
    result = compressor.compress(TEXT, rate=0.5)
    assert "".join(sorted(one.text for one in result.omitted)) == "".join(
        sorted(TEXT[a:b] for a, b in result.dropped_spans if TEXT[a:b].strip())
    )
    starts = np.cumsum([0, *map(len, LINES)])
    for one in result.omitted:
        assert TEXT[one.start : one.end] == one.text
        said = one.start + len(one.text) - len(one.text.lstrip())
        assert starts[one.first_line - 1] <= said < starts[one.first_line] and one.last_line >= one.first_line


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_are_counted_as_editors_do(newline):
    text = newline.join(["one", "two", "", "four"])
    assert [Lines(text).of(text.index(word)) + 1 for word in ("one", "two", "four")] == [1, 2, 4]
    assert len(Lines(text)) == 4 == len(Lines(text + newline)) and len(Lines("")) == 1
    span = (text.index(newline), text.index("four") + 2)
    (found,) = find_omissions(text, [span])
    assert (found.first_line, found.last_line) == (2, 4)
    assert find_omissions(text, [(3, 3 + len(newline))]) == []  # white space alone says nothing


def test_a_loaded_result_wants_its_original(compressor):
    result = compressor.compress(TEXT, rate=0.5)
    loaded = CompressedText.from_json(result.to_json())
    assert "original" not in json.loads(result.to_json()) and loaded.original is None
    for ask in (lambda: loaded.omitted, loaded.diff):
        with pytest.raises(ValueError, match=r"set `result.original`"):
            ask()
    loaded.original = TEXT[:-1]
    with pytest.raises(ValueError, match=rf"has {len(TEXT) - 1} characters.*with {len(TEXT)}"):
        loaded.omitted  # noqa: B018
    loaded.original = TEXT
    assert loaded.omitted == result.omitted


# -- marks -------------------------------------------------------------------------------------------------------------
def check_marks(text: str, result: CompressedText) -> None:
    """Lines that a mark names are gone, and nothing but marks and spaces was put between what was kept."""
    kept = np.zeros(len(text), dtype=bool)
    for start, end in result.kept_spans.tolist():
        kept[start:end] = True
    lines = Lines(text)
    for _, note in result.notes:
        match = MARK.fullmatch(note.lstrip())
        assert match, note
        for number in range(int(match[1] or 1), int(match[2] or match[1] or 0) + 1):
            assert not kept[slice(*lines.span(number - 1))].any()
    notes, output = sorted(result.notes)[::-1], ""
    for (start, end), apart in zip(result.kept_spans.tolist(), result.separated.tolist()):
        output += " " * apart
        while notes and notes[-1][0] <= end:
            place, note = notes.pop()
            output += text[start:place] + note
            start = place
        output += text[start:end]
    assert output == result.text and not notes


@usual
@given(
    st.lists(st.sampled_from([*fuzz.ENGLISH, "end.\n", "so,", "\n", "(yes)", "\n\n- "]), min_size=20, max_size=200).map(" ".join),
    st.sampled_from([0.1, 0.3, 0.6, 0.9]),
    st.sampled_from(["token", "word", "auto"]),
)  # fmt: skip
def test_marks_are_within_the_budget_and_true(text, rate, unit):
    result = ANY_OPINION.compress(text, rate=rate, unit=unit, mark_omissions=True)
    check_marks(text, result)
    assert result.compressed_tokens == len(ANY_OPINION.tokenizer.encode(result.text).ids) <= result.target_tokens
    whole = ANY_OPINION.compress(text, rate=1.0, unit=unit, mark_omissions=True)
    assert whole.text == text and whole.notes == []


def test_whole_lines_are_marked_on_a_line_of_their_own(compressor):
    code = "".join(
        f"value_{n} = compute(number={n}, name='a long enough name', other={n * 7})\n" for n in range(1, 31)
    )
    result = compressor.compress(code, rate=0.4, unit="auto", mark_omissions=True)
    marks = [line for line in result.text.splitlines() if "…" in line]
    assert marks and all(re.fullmatch(r"\[… lines? [\d-]+\]", mark) for mark in marks)
    gone = [
        n for mark in marks for a, b in re.findall(r"(\d+)(?:-(\d+))?", mark) for n in range(int(a), int(b or a) + 1)
    ]
    left = [line for line in result.text.splitlines(keepends=True) if "…" not in line]
    assert left == [line for n, line in enumerate(code.splitlines(keepends=True), 1) if n not in gone]
    check_marks(code, result)


def test_marks_stay_out_of_json_and_of_budgets_too_small_for_them(compressor):
    value = {"id": 7, "note": TEXT}
    output = compressor.compress(json.dumps(value), rate=0.5, unit="auto", mark_omissions=True).text
    assert json.loads(output)["id"] == 7 and "…" not in output
    for target in (1, 2, 5, 9):
        result = compressor.compress(TEXT, target_tokens=target, mark_omissions=True)
        assert result.compressed_tokens <= target and result.text.strip()
    with pytest.raises(ValueError, match="leave out `mark_omissions`"):
        compressor.compress(TEXT, rate=0.5, prefix_stable=True, mark_omissions=True)


def test_what_is_marked_is_still_restored():
    compressor = Compressor.from_pretrained("embedded")
    result = compressor.compress(TEXT, rate=0.15, unit="word", mark_omissions=True)
    plain = CompressedText.from_json(result.to_json())
    assert result.notes and "[…" in result.text
    restored = compressor.restore(plain)
    assert "[…" not in restored.text and restored.restored_tokens == len(result.scores) - result.kept_tokens


# -- beside each other -------------------------------------------------------------------------------------------------
@usual
@given(st.sampled_from([*fuzz.KINDS]), st.randoms(), st.sampled_from(["token", "word", "auto"]), st.booleans())
def test_a_diff_holds_both_texts(kind, rng, unit, marked):
    text = fuzz.KINDS[kind](rng)
    result = ANY_OPINION.compress(text, rate=0.4, unit=unit, mark_omissions=marked, on_impossible="warn")
    lines = result.diff().lines
    breaks = re.compile(r"[\r\n]")
    assert "".join(part for line in lines for part, _ in line.parts) == breaks.sub("", text)
    if not result.notes:
        assert "".join(line.output for line in lines) == breaks.sub("", result.text)
    for line in lines:
        assert (line.state == "gone") >= (
            not any(kept for _, kept in line.parts) and bool("".join(p for p, _ in line.parts).strip())
        )
    assert "<!doctype html>" in result.diff().to_html()


def test_a_terminal_shows_what_goes(compressor):
    result = compressor.compress(TEXT, rate=0.5)
    plain, coloured = io.StringIO(), io.StringIO()
    Console(file=plain, width=100).print(result.diff())
    Console(file=coloured, width=100, force_terminal=True, color_system="standard").print(result.diff())
    assert "[left out]" in plain.getvalue() and f"-> {result.compressed_tokens} of SmolLM2" in plain.getvalue()
    assert "\x1b[2;9;31m" in coloured.getvalue()  # dim, struck, red
    for number in range(1, 9):
        assert re.search(rf"^ ?{number} ", plain.getvalue(), re.MULTILINE)


def test_a_page_runs_nothing_that_a_text_holds(compressor, tmp_path):
    text = "<script>alert(1)</script> and \x1b[31m words that are long enough to lose some of them & more </del>\n" * 3
    page = compressor.compress(text, rate=0.5).diff().to_html(tmp_path / "diff.html")
    assert (tmp_path / "diff.html").read_text(encoding="utf-8") == page
    assert "<script" not in page and "\x1b" not in page and "&lt;" in page and "<del>" in page
    assert page.count("<del>") == page.count("</del>") and "http" not in page

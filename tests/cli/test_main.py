"""The shell command: what it prints, reads, writes and refuses."""

import gzip
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import make_model
from tokforget import CompressedText, Compressor
from tokforget.cli import main as cli
from tokforget.cli.files import UserError, open_output, read_parts
from tokforget.packaged import base_model_path


ROOT = Path(__file__).parents[2]
TEXT = "the cat sat on the mat 12. a dog ran to the red house 7.\r\nwe saw birds fly over the sea, all day long.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base_folder, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_model(base_folder, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def compressor(folder) -> Compressor:
    return Compressor.from_pretrained(folder)


@pytest.fixture
def shell(folder, monkeypatch, capfdbinary, tmp_path):
    """Runs a command line in this process, in an empty folder: exit code, output, messages."""
    monkeypatch.chdir(tmp_path)

    def run(*words, stdin: bytes = b"", model: bool = True):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = cli.main([*map(str, words), *(["--model", folder] if model else [])])
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return SimpleNamespace(code=code, out=out, err=err.decode())

    return run


def process(*words, **options) -> subprocess.CompletedProcess:
    """The command as its own process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "tokforget", *map(str, words)], capture_output=True, env=environment, **options
    )


# -- compress ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "words, options",
    [
        ([], {}),
        (["--rate", "0.3", "--unit", "word"], {"rate": 0.3, "unit": "word"}),
        (["--target-tokens", "20", "--keep-first", "3", "--keep-last", "2"], {"target_tokens": 20, "protect": ["first:3", "last:2"]}),
        (["--threshold", "0.5"], {"threshold": 0.5}),
        (["--protect", "numbers", "--protect", "/r\\w+d/", "--nested"], {"protect": ["numbers", "re:r\\w+d"], "nested": True}),
        (["--unit", "word", "--protect", "none"], {"unit": "word", "protect": []}),
        (["--unit", "auto", "--rate", "0.6"], {"unit": "auto", "rate": 0.6}),
        (["--prefix-stable", "--min-tokens", "5"], {"prefix_stable": True, "min_tokens": 5}),
    ],
)  # fmt: skip
def test_the_shell_compresses_as_python_does_alone_and_in_a_batch(shell, compressor, words, options):
    done = shell("compress", *words, stdin=TEXT.encode())
    alone = compressor.compress(TEXT, **options)
    batch = compressor.compress(["another text", TEXT, ""], **options)
    assert done.code == 0 and alone.compressed_tokens < alone.original_tokens
    assert done.out.decode() == alone.text == batch[1].text
    assert done.err == (
        f"tokforget: {alone.original_tokens} -> {alone.compressed_tokens} tokens "
        f"of {alone.vocabulary} (rate {alone.compression_rate:.3f}, {alone.compression_ratio:.1f}x), "
        f"{alone.character_rate:.0%} of the characters\n"
    )


def test_tokens_of_another_vocabulary_are_counted_and_named(shell, compressor):
    other = Path(base_model_path())
    done = shell("compress", "--rate", "0.5", "--count-with", other, stdin=TEXT.encode())
    result = compressor.compress(TEXT, rate=0.5, count_tokens=other)
    assert done.code == 0 and done.out.decode() == result.text
    assert f"{result.original_tokens} -> {result.compressed_tokens} tokens of {other.name} (rate" in done.err
    assert f"tokens of {other.name}" in shell("inspect", "--count-with", other, stdin=TEXT.encode()).err
    wrong = shell("compress", "--count-with", "./nowhere.json", stdin=TEXT.encode())
    assert (
        wrong.code == 2 and wrong.err.count("\n") == 1 and "`--count-with`: ./nowhere.json: no such file" in wrong.err
    )
    assert "--count-with" in shell("compress", "--stream", "--count-with", other, stdin=TEXT.encode()).err


def test_what_is_left_out_is_reported_and_shown(shell, compressor):
    result = compressor.compress(TEXT, rate=0.5)
    done = shell("compress", "--rate", "0.5", "--report", "omissions", stdin=TEXT.encode())
    assert done.out.decode() == result.text
    states = [line.state for line in result.diff().lines]
    assert f"of 2 lines {states.count('gone')} are left out and {states.count('part')} in part" in done.err
    for number, state in enumerate(states, 1):
        assert (f"\n{number}{'~' if state == 'part' else ' '} " in done.err) == (state != "kept")
    saved = json.loads(shell("compress", "--rate", "0.5", "--report", "omissions", "--json", stdin=TEXT.encode()).out)
    assert saved["omitted"] == [one.to_dict() for one in result.omitted]
    Path("rows.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    row = json.loads(shell("compress", "rows.jsonl", "--column", "text", "--json", "--report", "omissions").out)
    assert row["compression"]["omitted"] == saved["omitted"]
    shown = shell("diff", "--rate", "0.5", stdin=TEXT.encode())
    assert shown.code == 0 and f"{result.original_tokens} -> {result.compressed_tokens}" in shown.out.decode()
    page = shell("diff", "--rate", "0.5", "--html", "page.html", stdin=TEXT.encode())
    assert page.out == b"" and Path("page.html").read_text() == result.diff().to_html()
    text = "one two three four five six seven eight nine ten eleven twelve\n" * 6
    marked = shell("compress", "--rate", "0.3", "--mark-omissions", stdin=text.encode())
    assert marked.out.decode() == compressor.compress(text, rate=0.3, mark_omissions=True).text
    refused = shell("compress", "--stream", "--report", "omissions", stdin=TEXT.encode())
    assert refused.code == 2 and "--report" in refused.err


def test_tags_and_a_common_budget_reach_the_compressor(shell, compressor):
    tagged = shell("compress", "--tags", "--quiet", stdin=b"<keep>zzz</keep> the cat sat on the mat <drop>qqq</drop>")
    assert tagged.out.startswith(b"zzz") and b"q" not in tagged.out and tagged.err == ""
    Path("a.txt").write_text("the cat")
    Path("b.txt").write_text("a dog ran to the red house and the sea")
    done = shell("compress", "a.txt", "b.txt", "--budget", "corpus", "--target-tokens", "6", "--json")
    got = [json.loads(line)["text"] for line in done.out.splitlines()]
    texts = [Path("a.txt").read_text(), Path("b.txt").read_text()]
    assert got == [r.text for r in compressor.compress(texts, budget="corpus", target_tokens=6)]


HOSTILE = [
    b"",
    b"\n",
    b"one\r\ntwo\rthree\n\n",
    b"no newline at the end",
    b"\xef\xbb\xbfwith a byte order mark",
    b"bytes \xff\xfe that are \xed\xa0\x80 no \xc3 UTF-8 caf\xc3\xa9",
    b"nul \x00 and <|endoftext|> and \x1b[31m",
    "日本語 👩‍👩‍👧 é\u2028".encode(),
]


@pytest.mark.parametrize("mode", [[], ["--stream"], ["--unit", "word"]], ids=" ".join)
def test_at_rate_one_every_byte_comes_back(shell, mode):
    for data in HOSTILE:
        done = shell("compress", "--rate", "1", *mode, stdin=data)
        assert (done.code, done.out) == (0, data), data
        Path("in.txt").write_bytes(data)
        assert shell("compress", "in.txt", "--rate", "1", "--output", "out.txt", *mode).out == b""
        assert Path("out.txt").read_bytes() == data


def test_a_stream_keeps_the_rate_and_splits_no_character(shell, tmp_path):
    data = ("日本語 and the cat sat on the mat. " * 5500).encode()
    assert len(data) > 3 * 65_536
    (tmp_path / "long.txt").write_bytes(data)
    parts, sizes = [], []
    for part in read_parts(str(tmp_path / "long.txt"), sizes.append):
        parts.append(part)
    assert "".join(parts) == data.decode() and sum(sizes) == len(data)
    done = shell("compress", "long.txt", "--stream", "--rate", "0.3", "--json")
    blocks = [json.loads(line) for line in done.out.splitlines()]
    total = sum(block["original_tokens"] for block in blocks)
    assert len(blocks) > 1 and 0.29 * total < sum(block["compressed_tokens"] for block in blocks) <= 0.3 * total
    assert "1 texts" not in done.err and f"{total:,} -> " in done.err


def test_several_files_follow_each_other_or_fill_a_folder(shell, compressor):
    short = {}
    for name, text in {"a.txt": TEXT, "b.txt": TEXT[10:70]}.items():
        Path(name).write_bytes(text.encode())
        short[name] = compressor.compress(text).text
    assert short["a.txt"][-1] != "\n" and shell("compress", "a.txt", "b.txt").out.decode() == "\n".join(short.values())
    assert shell("compress", "a.txt", "b.txt", "-o", "new/").code == 0
    assert {path.name: path.read_bytes().decode() for path in Path("new").iterdir()} == short
    shell("compress", "a.txt", "-o", "new", "--json")
    assert json.loads(Path("new/a.txt.json").read_text())["text"] == short["a.txt"]


def test_the_summary_says_why_a_text_is_whole(shell):
    Path("data.json").write_text(json.dumps({"rows": [{"id": n, "text": "a dog ran"} for n in range(8)]}))
    Path("a.txt").write_text("The meeting is on Tuesday, and the report is due on Friday.\n")
    said = shell("compress", "data.json", "--quality", "0.7", model=False)
    assert "data.json is returned whole: no quality is calibrated for JSON; `--rate` shortens it." in said.err
    assert said.out == Path("data.json").read_bytes()
    said = shell("compress", "a.txt", "data.json", "--min-tokens", "500", model=False).err
    assert "a.txt is returned whole: it has fewer tokens than `--min-tokens`. So is one more." in said
    said = shell("compress", "a.txt", "--quality", "0.999", model=False).err
    assert (
        "a.txt is returned whole: no shorter text is sure to reach the quality; a higher `--risk` allows one." in said
    )
    said = shell("compress", "data.json", "--rate", "0.2", model=False).err
    assert "for less, pass `--omit-records` or `--unit word`." in said
    assert json.loads(shell("compress", "data.json", "--rate", "0.4", "--omit-records", model=False).out)


def test_the_summary_names_a_text_that_is_not_cut_by_words(shell):
    Path("a.txt").write_text("The meeting is on Tuesday, and the report is due on Friday of the same week.\n" * 3)
    Path("data.json").write_text(json.dumps({"rows": [{"id": n, "text": "a dog ran to the house"} for n in range(8)]}))
    Path("mean.py").write_text("def mean(x):\n    total = sum(x)\n    return total / len(x)\n\n\n" * 4)
    Path("t.md").write_text("| town | people |\n|---|---|\n| Bergen | 291,000 |\n| Tromsø | 78,000 |\n")
    said = {name: shell("compress", name, model=False).err for name in ("a.txt", "data.json", "mean.py", "t.md")}
    assert "data.json is JSON: it stays valid. `--unit word` cuts it by words." in said["data.json"]
    assert "mean.py is code: its lines are kept or dropped whole. `--unit word` cuts it by words." in said["mean.py"]
    assert "--unit" not in said["a.txt"] + said["t.md"]
    assert "data.json is JSON" in shell("compress", "a.txt", "data.json", "mean.py", model=False).err
    for words in (
        ["--unit", "word"],
        ["--unit", "auto"],
        ["--quiet"],
        ["--tags"],
        ["--prefix-stable"],
        ["--quality", "0.7"],
    ):
        assert "`--unit word`" not in shell("compress", "mean.py", *words, model=False).err


@pytest.mark.parametrize("mode", [[], ["--stream"]], ids=" ".join)
def test_files_do_not_run_into_each_other(shell, mode):
    Path("a.txt").write_text("there are 12")
    Path("b.txt").write_text("34 people")
    Path("c.txt").write_text("")
    done = shell("compress", "a.txt", "c.txt", "b.txt", "--rate", "1", "--quiet", *mode)
    assert done.out == b"there are 12\n34 people"
    assert shell("compress", "a.txt", "b.txt", "--rate", "1", "--json", "-o", "all.json", *mode).code == 0
    assert shell("restore", "--quiet", "all.json").out == b"there are 12\n34 people"
    Path("a.txt").write_text("there are 12\n")
    assert shell("compress", "a.txt", "b.txt", "--rate", "1", *mode).out == b"there are 12\n34 people"


@pytest.mark.parametrize(
    "words",
    [
        ["compress", "in.txt", "-o", "in.txt"],
        ["compress", "other.txt", "in.txt", "--output", "./in.txt", "--stream"],
        ["compress", "in.txt", "-o", "link.txt"],
        ["compress", "in.txt", "-o", "hard.txt"],
        ["compress", "link.txt", "-o", "nothing/../in.txt"],
        ["compress", "in.txt", "-o", "."],
        ["compress", "in.txt", "--json", "-o", "in.txt"],
        ["compress", "in.txt", "--column", "text", "-o", "in.txt"],
        ["restore", "in.txt", "-o", "in.txt"],
        ["inspect", "in.txt", "--html", "in.txt"],
        ["diff", "in.txt", "--html", "hard.txt"],
        ["compress", "other.txt", "--count-with", "in.txt", "-o", "in.txt"],
        ["restore", "other.txt", "--base-model", "in.txt", "-o", "link.txt"],
        ["compress", "--messages", "in.txt", "-o", "in.txt"],
    ],
    ids=" ".join,
)
def test_an_output_never_takes_the_place_of_its_input(shell, words):
    for name in ("in.txt", "other.txt"):
        Path(name).write_bytes(TEXT.encode())
    Path("link.txt").symlink_to("in.txt")
    os.link("in.txt", "hard.txt")
    done = shell(*words)
    assert done.code == 2 and done.out == b"" and done.err.count("\n") == 1
    assert re.search(
        r"is an input itself \((in|link|hard).txt\), and what is dropped would be lost. Name another file.", done.err
    )
    assert Path("in.txt").read_bytes() == TEXT.encode()


def test_a_result_never_takes_the_place_of_a_model(shell, folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    Path("config.json").write_text(TEXT)
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    for words in (["-o", str(model)], ["-o", str(model / "tokenizer.json")]):
        done = shell("compress", "config.json", "--model", str(model), *words, model=False)
        assert done.code == 2 and "is an input itself" in done.err and done.err.count("\n") == 1
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="no links there")
def test_links_that_lead_to_each_other_are_one_line(shell):
    Path("loop").symlink_to("loop")
    done = shell("compress", "-o", "loop", stdin=TEXT.encode())
    assert done.code == 2 and "`--output` loop: " in done.err and done.err.count("\n") == 1


def test_a_redirected_input_is_no_output_either(folder, tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(TEXT.encode())
    with path.open("rb") as stdin:
        done = process("compress", "--model", folder, "-o", path, stdin=stdin)
    assert (
        done.returncode == 2
        and b"is an input itself (standard input)" in done.stderr
        and path.read_bytes() == TEXT.encode()
    )


UNREADABLE = {
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-32": TEXT.encode("utf-32"),
    "UTF-16 without a mark": TEXT.encode("utf-16-le"),
    "a gzip archive": gzip.compress(TEXT.encode()),
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "a zip archive or an office document": b"PK\x03\x04" + bytes(300),
    "a PDF": b"%PDF-1.7\n",
    "an RTF document": rb"{\rtf1\ansi a letter}",
    "an SQLite database": b"SQLite format 3\0" + b"a row of text " * 50,
    "a pickle": pickle.dumps({"text": TEXT}, protocol=4),
    "an array of NumPy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}" + b" " * 90,
    "UTF-16 of two letters": "Hi".encode("utf-16-le"),
    "UTF-16 the other way round": TEXT.encode("utf-16-be"),
    "another alphabet": "Съешь же ещё этих мягких французских булок".encode("koi8-r"),
    "bytes": bytes(range(256)) * 9,
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize(
    "words",
    [["compress"], ["compress", "--stream"], ["compress", "--column", "text"], ["restore"], ["inspect"]],
    ids=" ".join,
)
def test_what_is_no_text_is_refused_in_one_line(shell, kind, words):
    Path("in.bin").write_bytes(UNREADABLE[kind])
    done = shell(*words, "in.bin", "--quiet")
    assert done.code == 2 and done.out == b"" and done.err.count("\n") == 1 and "UTF-8" in done.err
    assert (f"in.bin is {kind}, and" in done.err) or "in.bin is no UTF-8 text: " in done.err


@pytest.mark.parametrize(("encoding", "named"), [("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE")])
def test_the_order_of_utf_16_without_a_mark_is_told(shell, encoding, named):
    Path("in.txt").write_bytes("Er kam am 3. Mai. ".encode(encoding))
    assert f"iconv -f {named} -t UTF-8" in shell("compress", "in.txt").err


def test_standard_input_is_known_from_its_first_bytes_however_slowly_they_come(folder):
    """What a peek sees of a pipe may be one byte."""
    started = []
    for kind, words in product(["a gzip archive", "UTF-16"], [[], ["--stream"], ["--messages"]]):
        command = [sys.executable, "-m", "tokforget", "compress", "--model", str(folder), *words]
        one = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        os.write(one.stdin.fileno(), UNREADABLE[kind][:1])
        started.append((kind, words, one))
    time.sleep(6)  # all of them have been waiting for a second byte by then
    for kind, words, one in started:
        out, err = one.communicate(UNREADABLE[kind][1:])
        assert one.returncode == 2 and out == b"", (kind, words)
        assert f"- is {kind}, and".encode() in err and err.count(b"\n") == 1, (kind, words)


def test_a_closed_standard_input_is_one_line(folder):
    command = f"{sys.executable} -m tokforget compress --model {folder} <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True)
    assert (
        done.returncode == 2
        and done.stderr == b"tokforget: error: There is no standard input to read from: it is closed. Name a file.\n"
    )


@pytest.mark.parametrize(
    "words", [["compress", "in.txt"], ["compress", "--stream", "in.txt"], ["diff", "in.txt"], ["env"]], ids=" ".join
)
def test_a_closed_standard_output_is_one_line(shell, monkeypatch, words):
    Path("in.txt").write_text(TEXT)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        said = io.StringIO()
        patch.setattr(sys, "stderr", said)
        code = cli.main(words + (["--model", "embedded"] if words != ["env"] else []))
    assert code == 2 and said.getvalue().startswith(
        "tokforget: error: There is no standard output to write to: it is closed."
    )
    assert said.getvalue().count("\n") == 1


def test_with_standard_error_closed_the_result_is_whole(folder, tmp_path):
    (tmp_path / "in.txt").write_text(TEXT * 30)
    command = f"{sys.executable} -m tokforget compress --model {folder} {tmp_path}/in.txt"
    whole = subprocess.run(["sh", "-c", command], capture_output=True)
    closed = subprocess.run(["sh", "-c", f"{command} 2>&-"], stdout=subprocess.PIPE)
    assert (closed.returncode, closed.stdout) == (whole.returncode, whole.stdout) == (0, whole.stdout) and whole.stdout


def test_text_with_some_foreign_bytes_is_read(shell):
    data = "Übergrößen für Straßenfeste, fällig ab März: 12 Stück, später dann öfter.\n".encode("latin1") * 20
    Path("in.txt").write_bytes(data)
    done = shell("compress", "in.txt", "--rate", "1", "--quiet")
    assert (done.code, done.out) == (0, data)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM there")
def test_a_command_that_is_ended_leaves_nothing_half_written(shell, monkeypatch):
    def ended(*args, **kwargs):
        assert [path.suffix for path in Path().iterdir()].count(".part") == 1
        os.kill(os.getpid(), signal.SIGTERM)
        yield

    Path("in.txt").write_text(TEXT)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "read_texts", ended)
    assert shell("compress", "in.txt", "-o", "out.txt").code == 128 + signal.SIGTERM
    assert [path.name for path in Path().iterdir()] == ["in.txt"] and signal.getsignal(signal.SIGTERM) == before


def test_a_failed_run_leaves_the_old_output(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(UserError), open_output(str(tmp_path / "old.txt")) as file:
        file.write(b"half of the n")
        raise UserError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"] and (tmp_path / "old.txt").read_text() == "old"


# -- JSONL -------------------------------------------------------------------------------------------------------------
def test_rows_keep_their_columns_letter_for_letter(shell, compressor):
    rows = [
        '{"b": 1.50, "text": "the cat sat on the mat", "n": 1e400, "a": [1, 2]}',
        '{"text":"a dog ran to the red house","é":null}  \r',
        '{ "text" : "" }',
    ]
    done = shell("compress", "--column", "text", "--rate", "0.4", stdin="\n".join(rows).encode())
    lines = done.out.decode().split("\n")
    assert done.code == 0 and lines.pop() == "" and len(lines) == 3
    for line, row in zip(lines, rows):
        assert line.startswith(row.rstrip()[:-1].rstrip() + ", ")
        text = json.loads(row)["text"]
        result = compressor.compress(text, rate=0.4)
        assert list(json.loads(line))[-4:] == [
            "compressed",
            "original_tokens",
            "compressed_tokens",
            "compression_rate",
        ]
        assert json.loads(line)["compressed"] == result.text
        assert json.loads(line)["original_tokens"] == result.original_tokens
    assert "3 texts" in done.err


def test_bad_lines_are_named_and_the_rest_is_written(shell):
    Path("rows.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "the cat sat"}\nnot json\n\n[1]\n{"txt": "a"}\n{"text": null}\n{"text": "\xff"}\n'
        b'{"text": "<keep>open"}\n' + b"[" * 100_000 + b'\n{"text": "a dog ran"}'
    )
    done = shell("compress", "rows.jsonl", "--column", "text", "--tags")
    assert done.code == 2
    assert [json.loads(line.removeprefix("\ufeff"))["text"] for line in done.out.decode().splitlines()] == [
        "the cat sat",
        "a dog ran",
    ]
    for number, reason in ((2, "not JSON: Expecting value"), (4, "not a JSON object but an array"),
                           (5, "no column 'text'; it has 'txt'"), (6, "column 'text' holds null, not a text"),
                           (7, "not UTF-8"), (8, "Tag <keep> is never closed"), (9, "")):  # fmt: skip
        assert f"tokforget: rows.jsonl:{number}: {reason}" in done.err
    assert "7 lines could not be used and left out" in done.err and "Traceback" not in done.err


def test_of_many_bad_lines_twenty_are_named(shell):
    done = shell("compress", "--column", "text", stdin=b"x\n" * 50)
    assert done.code == 2 and done.out == b"" and done.err.count("not JSON") == 20
    assert "50 lines could not be used and left out, 30 of them not named here, the last at -:50." in done.err


@pytest.mark.parametrize("words", [[], ["--json"]], ids=" ".join)
def test_the_rows_written_are_read_by_those_who_read_json_lines(shell, compressor, words):
    """A key twice is read in as many ways as there are readers, and by some not at all."""
    rows = [
        '{"id": 1, "text": "the cat sat on the mat"}',
        '{"id": 2, "text": "a\\u2028dog \\"ran\\" to 日本\\n"}',
        '{"id": 3, "text": ""}',
    ]
    taken = ['{"text": "a", "compressed": "b"}', '{"text": "a", "original_tokens": 1, "compression_rate": 2}',
             '{"text": "a", "text": "b"}', '{"text": "a", "x": {"y": 1, "y": 2}}']  # fmt: skip
    Path("rows.jsonl").write_text("\n".join(rows + taken))
    done = shell("compress", "rows.jsonl", "--column", "text", "-o", "short.jsonl", *words)
    assert done.code == 2
    for line, reason in (
        (4, "it has 'compressed' already, which would stand there twice: rename or remove it"),
        (5, "it has 'original_tokens', 'compression_rate' already"),
        (6, "the key 'text' stands twice in it"),
        (7, "the key 'y' stands twice in it"),
    ):
        assert f"tokforget: rows.jsonl:{line}: {reason}" in done.err
    texts = [json.loads(row)["text"] for row in rows]
    expected = [result.text for result in compressor.compress(texts)]
    import pandas
    import pyarrow.json

    for read in (pandas.read_json(Path("short.jsonl"), lines=True), pyarrow.json.read_json("short.jsonl").to_pandas()):
        assert (read["id"].tolist(), read["text"].tolist(), read["compressed"].tolist()) == (
            [1, 2, 3],
            texts,
            expected,
        )
    # What was written once has its columns; it is not written again.
    again = shell("compress", "short.jsonl", "--column", "text", *words)
    assert again.code == 2 and again.out == b"" and "3 lines could not be used" in again.err


def test_the_compressed_text_goes_where_the_output_column_says(shell, compressor):
    row = '{"a": {"text": "x", "n": [1.50, "text\\""]}, "text" : "the cat sat on the mat", "b":1e400 }'
    result = compressor.compress("the cat sat on the mat", rate=0.4)
    words = ["compress", "--column", "text", "--rate", "0.4", "--output-column"]
    line = shell(*words, "short é", stdin=row.encode()).out.decode()
    assert line.startswith(row[:-1].rstrip() + ', "short é": "') and json.loads(line)["short é"] == result.text
    assert list(json.loads(line))[3:] == ["short é", "original_tokens", "compressed_tokens", "compression_rate"]
    # The column itself: every other letter of the row stays, and the text stands where the original stood.
    done = shell(*words, "text", "--json", stdin=row.encode())
    line = done.out.decode()
    assert line.startswith(
        row.replace(json.dumps("the cat sat on the mat"), json.dumps(result.text))[:-1].rstrip() + ', "or'
    )
    saved = json.loads(line)
    assert list(saved)[3:] == ["original_tokens", "compressed_tokens", "compression_rate", "compression"]
    assert (
        shell("restore", "-q", stdin=done.out).out.decode() == compressor.restore(result, progress=False).text + "\n"
    )
    # With other names than the usual ones a row may have these.
    assert shell(*words, "short", stdin=b'{"text": "a cat", "compressed": 1}').code == 0


def test_an_output_column_that_is_taken_is_refused(shell):
    words = ["compress", "--column", "text", "--output-column"]
    done = shell(*words, "id", stdin=b'{"text": "a cat", "id": 1}\n{"text": "a dog"}')
    assert done.code == 2 and "tokforget: -:1: it has 'id' already, which would stand there twice" in done.err
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == ["a dog"]
    done = shell("compress", "--column", "compressed", stdin=b'{"compressed": "a cat"}')
    assert done.code == 2 and "it has 'compressed' already" in done.err and done.out == b""  # replaced only if asked


# -- restore -----------------------------------------------------------------------------------------------------------
def test_what_was_compressed_to_json_is_restored_from_the_file(shell, compressor):
    data = TEXT.encode() + b" \xff\xfe end"
    Path("in.txt").write_bytes(data)
    assert shell("compress", "in.txt", "--json", "-o", "saved.json", "--protect", "/\\xff?end/").code == 0
    saved = json.loads(Path("saved.json").read_text())
    text = data.decode("utf-8", "surrogateescape")
    expected = compressor.compress(text, protect="re:end")
    assert saved["text"] == expected.text and saved["source"] == "in.txt"
    assert CompressedText.from_dict(saved).kept_ids.tolist() == expected.kept_ids.tolist()
    done = shell("restore", "saved.json")
    wanted = compressor.restore(expected, progress=False)
    assert done.out == wanted.text.encode("utf-8", "surrogateescape") and done.out.endswith(b"end")
    assert done.err == f"tokforget: saved.json: {wanted.label}\n" and "not the original" in done.err
    parsed = json.loads(shell("restore", "saved.json", "--json", "--abstain-below", "1", "--gap", "<?>").out)
    assert parsed["is_restoration"] and parsed["abstained"] == expected.original_tokens - expected.kept_tokens
    assert "<?>" in parsed["text"] and parsed["label"].startswith("Restoration, not the original")


def test_at_rate_one_the_round_trip_gives_the_bytes_back(shell):
    for data in HOSTILE:
        saved = shell("compress", "--rate", "1", "--json", stdin=data).out
        assert shell("restore", "--quiet", stdin=saved).out == data, data
        saved = shell("compress", "--rate", "1", "--json", "--stream", stdin=data).out
        assert shell("restore", "--quiet", stdin=saved).out == data, data


def test_rows_and_pretty_objects_are_restored_and_damaged_ones_named(shell):
    rows = b'{"text": "the cat sat on the mat"}\n{"text": "a dog ran"}\n'
    saved = shell("compress", "--column", "text", "--json", "--rate", "1", stdin=rows).out
    assert shell("restore", "-q", stdin=saved).out == b"the cat sat on the mat\na dog ran\n"
    assert [json.loads(line)["line"] for line in shell("restore", "-q", "--json", stdin=saved).out.splitlines()] == [
        1,
        2,
    ]
    good = json.loads(saved.splitlines()[0])["compression"]
    assert shell("restore", "-q", stdin=json.dumps(good, indent=1).encode()).out == b"the cat sat on the mat"
    damaged = [
        good | {"original_tokens": 10**12},
        good | {"kept_ids": [10**6] * len(good["kept_ids"])},
        good | {"kept_indices": good["kept_indices"][::-1]},
        good | {"text": "shorter"},
        good | {"kept_ids": "abc"},
        good | {"tokenizer": "0000", "model": "some/where"},
        {"text": "the cat"},
        [1],
    ]
    done = shell("restore", "-q", stdin="\n".join(map(json.dumps, [good, *damaged])).encode())
    assert (done.code, done.out) == (2, b"the cat sat on the mat")
    for number in range(2, 10):
        assert f"tokforget: -:{number}: " in done.err
    assert "written with --model some/where" in done.err and "it lacks" in done.err and "Traceback" not in done.err


# -- inspect and env ---------------------------------------------------------------------------------------------------
def test_inspect_shows_the_heat_map_here_or_as_a_page(shell, compressor):
    done = shell("inspect", stdin=TEXT.encode())
    assert done.code == 0 and "dropped [so]" in done.out.decode() and " -> " in done.err
    assert "".join(done.out.decode().split()).replace("[", "").replace("]", "").find("12.adog") > 0
    assert shell("inspect", "--html", "page.html", stdin=TEXT.encode()).out == b""
    assert Path("page.html").read_text() == compressor.explain(TEXT).to_html()


def test_env_is_ready_to_paste_and_imports_nothing_heavy():
    code = ("import sys; from tokforget.cli.main import main; main(['env', '--json']); "
            "print([m for m in ('torch', 'transformers', 'numpy', 'rich') if m in sys.modules])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    facts, imported = done.stdout.splitlines()
    import torch
    import transformers

    # CUDA builds from a registry say `+cu130` of themselves, which their installed name leaves out.
    assert imported == "[]" and torch.__version__.startswith(json.loads(facts)["torch"])
    assert json.loads(facts)["transformers"] == transformers.__version__


def test_env_can_ask_torch(shell):
    import torch

    done = shell("env", "--torch", model=False)
    lines = dict(line.split(":", 1) for line in done.out.decode().splitlines())
    assert done.code == 0 and lines["torch threads"].strip().startswith(f"{torch.get_num_threads()} within")
    assert {"python", "platform", "packaged model", "trl", "peft", "accelerate", "datasets", "devices"} <= lines.keys()


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "words, message",
    [
        (["compress", "--rate", "4"], "must lie in (0, 1], got 4.0"),
        (["compress", "--rate", "0.5", "--target-tokens", "3"], "not allowed with argument"),
        (["compress", "--rate", "50"], "`--rate` must lie in (0, 1], got 50.0. It is the fraction of tokens kept; for 50 % pass 0.5."),
        (["compress", "--rat", "0.5"], "unrecognized arguments: --rat"),
        (["compress", "--units", "word"], "tokforget compress: error: unrecognized arguments: --units. Did you mean --unit? (`tokforget compress --help`"),
        (["inspect", "--htm=a.html"], "Did you mean --html? (`tokforget inspect --help` lists"),
        (["compress", "--unit", "wrod"], "invalid choice: 'wrod' (choose from token, word, auto). Did you mean 'word'?"),
        (["compress", "no such file"], "no such file: no such file."),
        (["compress", "."], ". is a folder: name its files"),
        (["compress", "-", "-"], "can be read only once"),
        (["compress", "--protect", "nubmers"], "knows no 'nubmers'"),
        (["compress", "--protect", "/(/"], "broken regular expression"),
        (["compress", "--keep-first", "-1"], "at least 0, got -1"),
        (["compress", "--stream", "--target-tokens", "5", "--keep-last", "3"], "does not go with --target-tokens, --keep-last"),
        (["compress", "--stream", "--column", "text"], "does not go with --column"),
        (["compress", "--stream", "--risk", "0.3"], "does not go with --risk"),
        (["compress", "--risk", "0.3"], "`--risk` says how often a `--quality` may be missed: pass both"),
        (["compress", "--output-column", "short"], "`--output-column` is for the rows of --column"),
        (["compress", "--column", "text", "--output-column", "original_tokens"], "original_tokens is written beside the text"),
        (["compress", "--messages", "--output-column", "short"], "does not go with --output-column"),
        (["compress", "--prefix-stable", "--nested"], "does not nest"),
        (["compress", "--target-tokens", "2", "--keep-first", "9"], "The smallest feasible budget is"),
        (["compress", "--output", "no/such/file"], "no such folder"),
        (["compress", "--output", ""], "`--output` got an empty name: name a file."),
        pytest.param(["compress", "--output", "/proc/short.txt"], "/proc/short.txt: ", marks=pytest.mark.skipif(sys.platform != "linux", reason="a folder in which nobody can write")),
        (["compress", "--output", "no\0file"], "`--output` no\0file: "),
        (["compress", "--column", ""], "`--column` got an empty name: name a column."),
        (["compress", "--column", "text", "--output-column", ""], "`--output-column` got an empty name"),
        (["compress", "--column", "text", "--question-column", ""], "`--question-column` got an empty name"),
        (["inspect", "--html", ""], "`--html` got an empty name"),
        (["inspect", "--html", "no/such/page.html"], "`--html` no/such/page.html: no such folder."),
        (["diff", "--html", "."], "`--html` . is a folder: name a file in it."),
        (["compress", ""], "A file's name is empty"),
        (["compress", "--protect", "numbers,urls"], "knows no 'numbers,urls'. Several are passed one by one."),
        (["compress", "--protect", "number"], "knows no 'number'. Did you mean 'numbers'?"),
        (["compress", "--min-tokens", "-1"], "`--min-tokens` must be a whole number of at least 0, got -1"),
        (["compress", "--output", "."], "standard input has no name"),
        (["compress", "--device", "nonsense"], "`--device` 'nonsense' cannot be used"),
        (["restore", "--abstain-below", "7"], "probability in (0, 1], got 7.0"),
        (["restore", "--batch-size", "0"], "at least 1, got 0"),
        (["inspect", "--unit", "letter"], "invalid choice: 'letter'"),
        (["restore"], "- is no output of `tokforget compress --json`"),
        ([], "are required: compress | restore | inspect | diff | serve | export | env"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line_and_exit_code_two(shell, words, message):
    done = shell(
        *words, stdin=TEXT.encode() if words[:1] != ["restore"] or len(words) == 1 else b"", model=bool(words)
    )
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1 and done.out == b"", done.err


def test_a_command_that_does_not_exist_is_told_the_nearest(shell):
    done = shell("compres", "a.txt", model=False)
    assert done.code == 2 and done.err.count("\n") == 1 and "Did you mean 'compress'?" in done.err


def test_a_model_that_is_not_there_offline_speaks_of_no_connection(shell):
    done = shell("compress", "--model", "nobody/none", stdin=b"a", model=False)
    assert done.code == 2 and "HF_HUB_OFFLINE is set. Unset that variable" in done.err and "connection" not in done.err


def test_of_a_file_that_is_no_result_one_line_is_said(shell):
    Path("readme.md").write_text("# A file\n\nwith many lines\n" * 30)
    done = shell("restore", "readme.md")
    assert (
        done.code == 2
        and done.err.count("\n") == 1
        and "readme.md is no output of `tokforget compress --json`" in done.err
    )


def test_an_impossible_budget_can_be_a_warning(shell):
    done = shell(
        "compress", "--target-tokens", "2", "--keep-first", "9", "--on-impossible", "warn", stdin=TEXT.encode()
    )
    assert done.code == 0 and done.out and done.err.startswith("tokforget: warning: -: What is protected takes")
    assert done.err.count("warning") == 1 and "Returned are" in done.err
    Path("rows.jsonl").write_text('{"text": "the cat"}')
    assert "--column NAME" in shell("compress", "rows.jsonl").err


@pytest.mark.parametrize("mode", [[], ["--stream"]], ids=" ".join)
def test_a_bar_is_shown_where_someone_looks(shell, monkeypatch, mode):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(cli, "_BAR_BYTES", 10)
    for words, expected in ((mode, True), ([*mode, "--quiet"], False)):
        monkeypatch.setattr(sys, "stderr", seen := Terminal())
        Path("in.txt").write_text(TEXT)
        done = shell("compress", "in.txt", "-o", "out.txt", *words)
        assert (done.code, done.out) == (0, b"") and Path("out.txt").read_text()
        assert ("compressing" in seen.getvalue()) == expected


def test_interruption_and_bugs_have_their_exit_codes(shell, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Compressor, "from_pretrained", interrupt)
    assert shell("compress").code == 130

    def bug(*args, **kwargs):
        raise ZeroDivisionError("some bug")

    monkeypatch.setattr(Compressor, "from_pretrained", bug)
    done = shell("compress")
    assert (
        done.code == 1 and "ZeroDivisionError: some bug" in done.err and "tokforget env" in done.err.splitlines()[-1]
    )


@pytest.mark.slow
def test_as_a_process_bytes_pipes_and_exit_codes_are_right(folder, tmp_path):
    data = TEXT.encode() * 1500 + b"\xff\r\n"
    done = process("compress", "--rate", "1", "--model", folder, "--quiet", input=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")
    wrong = process("compress", tmp_path / "none.txt")
    assert (wrong.returncode, wrong.stdout) == (2, b"") and wrong.stderr.count(b"\n") == 1
    # A reader that leaves early is no error and no noise.
    (tmp_path / "in.txt").write_bytes(data)
    command = [sys.executable, "-m", "tokforget", "compress", tmp_path / "in.txt", "--stream", "--model", folder]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as running:
        assert running.stdout.read(3)
        running.stdout.close()
        assert running.stderr.read() == b"" and running.wait() == 0

"""`tokforget compress --messages`: the shape of what comes in, the summary, and mistakes."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tokforget import Compressor
from tokforget.cli import main as cli
from tokforget.packaged import base_model_path


NOTE = (
    "The harbour of Nordby was rebuilt by Anna Lund after the storm of 1902. It rained for most of the following summer. "
    "Ships of the Petersen line call there every Monday, and the ferry to Skagen leaves at 12:45 from the second pier. "
)
CHAT = [
    {"role": "system", "content": "You are a guide. é"},
    {"role": "user", "content": "Look up the town."},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"a":  1.10}'}}]},
    {"role": "tool", "tool_call_id": "c", "content": NOTE * 12},
    {"role": "user", "content": "When does the ferry leave?"},
]  # fmt: skip
REQUEST = {"model": "x", "system": "You are a guide.", "messages": CHAT[1:], "max_tokens": 9}


@pytest.fixture
def shell(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words, stdin: str = ""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            code = cli.main(["compress", *map(str, words)])
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_a_list_of_messages_is_written_as_it_was_read(shell, tmp_path, indent):
    (tmp_path / "chat.json").write_text(json.dumps(CHAT, indent=indent))
    done = shell("--messages", "chat.json", "--rate", 0.5)
    expected = Compressor.from_pretrained().compress_messages(CHAT, rate=0.5)
    assert done.code == 0 and json.loads(done.out) == expected.messages != CHAT and "12:45" in done.out
    assert done.out == json.dumps(expected.messages, indent=indent, ensure_ascii=False) + "\n"
    before, after = expected.original_tokens, expected.compressed_tokens
    assert (
        done.err
        == f"tokforget: {before:,} -> {after:,} tokens of SmolLM2-135M-Instruct (rate {after / before:.3f}, {before / after:.1f}x)\n"
    )


def test_lines_of_chats_and_of_requests(shell, tmp_path):
    lines = [json.dumps(CHAT), "", json.dumps(REQUEST), '{"role": "user"}', "[1]", json.dumps(CHAT[:1])]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    done = shell("chats.jsonl", "--messages", "--rate", 0.5, "--output", "short.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "short.jsonl").read_text().splitlines()]
    assert done.code == 2 and len(rows) == 3 and rows[2] == CHAT[:1]
    assert {**rows[1], "messages": 0} == {**REQUEST, "messages": 0} and list(rows[1]) == list(REQUEST)
    assert len(rows[1]["messages"][2]["content"]) < len(CHAT[3]["content"])
    assert "chats.jsonl:4: " in done.err and "an object with 'role'" in done.err
    assert "chats.jsonl:5: Message 0 must be a dictionary" in done.err and "3 chats, " in done.err
    assert "2 lines could not be used" in done.err.splitlines()[-1]


def test_options_reach_the_messages(shell):
    told = json.dumps(CHAT)
    stable = json.loads(shell("--messages", "--stable", "--rate", 0.5, stdin=told).out)
    assert stable == Compressor.from_pretrained().compress_messages(CHAT, rate=0.5, stable=True).messages
    asked = shell("--messages", "--rate", 0.3, "--question", "Who rebuilt the harbour?", stdin=told)
    assert "Anna Lund" in asked.out
    assert (
        json.loads(
            shell("--messages", "--rate", 0.3, "--roles", "assistant,user", "--on-impossible", "warn", stdin=told).out
        )
        == CHAT
    )
    assert json.loads(shell("--messages", "--min-message-tokens", 5000, "--rate", 1, stdin=told).out) == CHAT
    assert json.loads(shell("--messages", "--min-tokens", 5000, "--rate", 0.5, stdin=told).out) == CHAT
    row = json.loads(shell("--messages", "--target-tokens", 200, "--no-question", "--json", stdin=told).out)
    assert row["question"] is None and row["compressed_tokens"] <= row["target_tokens"] == 200
    assert [record["whole"] for record in row["records"]][:1] == ["system"]


def test_a_budget_is_counted_in_the_vocabulary_that_is_named(shell):
    folder = base_model_path()
    done = shell("--messages", "--rate", 0.5, "--count-with", folder, "--json", stdin=json.dumps(CHAT))
    row = json.loads(done.out)
    assert row["vocabulary"] == Path(folder).name and f"tokens of {Path(folder).name} (" in done.err
    assert row["compressed_tokens"] <= row["target_tokens"] == row["original_tokens"] // 2
    wrong = shell("--messages", "--count-with", "./nowhere.json", stdin="[]")
    assert wrong.code == 2 and "`--count-with`: nowhere.json: no such file" in wrong.err.replace("./", "")


@pytest.mark.parametrize("words, stdin, message", [
    (["--messages", "--threshold", 0.5], "[]", "does not go with --threshold"),
    (["--messages", "--column", "text", "--tags"], "[]", "does not go with --tags, --column"),
    (["--stable"], "hello", "--stable: only with --messages"),
    (["--messages", "--no-question", "--question", "Why?"], "[]", "does not go with --question"),
    (["--messages", "--roles", "system"], "[]", "`--roles` must be a list out of"),
    (["--messages", "--stable", "--target-tokens", 9], "[]", "one budget for all moves"),
    (["--messages"], "hello", "- holds no messages, neither as JSON nor as JSON Lines: Expecting value"),
    (["--messages"], '{"text": "a"}', "there is an object with 'text'"),
    (["--messages"], '[{"role": "user", "role": "user"}]', "the key 'role' stands twice"),
    (["--messages"], '[{"content": "a"}]', "-: Message 0 has no `role`"),
    (["--messages", "--rate", 0.1], json.dumps(CHAT), "smallest feasible budget"),
    (["--messages", "nowhere.json"], "", "nowhere.json: no such file"),
    (["--messages", "--question", "Why?", "--model", "embedded"], "[]", "trained without questions"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_two(shell, words, stdin, message):
    done = shell(*words, stdin=stdin)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1 and done.out == ""

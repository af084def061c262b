"""Growing chats: how they are made, how a knob is turned, and a whole run on a corpus of this page."""

import json

import pytest

from tests.support.recipes import call
from tokforget import Compressor
from tokforget.evaluation import transcripts
from tokforget.evaluation.transcript_arguments import TranscriptArguments
from tokforget.evaluation.transcripts import Method, Rows, make_transcripts, speakers_turns, truncated, turned
from tokforget.readers.tasks import split_of_source


TALK = "User: Is the ferry to {0} still sailing today, or has the storm stopped it again?\n" + (
    "Assistant: It leaves {0} at 12:45 from the second pier, and the last one sails at {1}:10 in the evening.\n"
    "User: And what about the library over there, when does it close?\nAssistant: At {1} on weekdays, and it is shut on Sundays.\n"
)
RESULT = "The harbour of {0} was rebuilt by Anna Lund in 19{1} after the storm. Ships of the Petersen line call there every Monday. "


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    names = ["Nordby", "Skagen", "Esbjerg", "Aarhus", "Odense", "Kolding", "Vejle", "Ribe"]
    sources = [name for name in map(str, range(2000)) if split_of_source(name) == "test"][:24]
    train = next(name for name in map(str, range(2000)) if split_of_source(name) == "train")
    for kind, text in (("talks", TALK * 2), ("results", RESULT * 4)):
        rows = [{"text": text.format(names[n % 8], 10 + n), "source": source} for n, source in enumerate(sources)]
        rows.append({"text": text.format("Herning", 17), "source": train})
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return Compressor.from_pretrained()


def test_two_speakers_are_a_user_and_an_assistant():
    turns = speakers_turns(TALK.format("Ribe", 18))
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert turns[3]["content"] == "At 18 on weekdays, and it is shut on Sundays."
    named = speakers_turns("Anna: Hello.\nTom: Hi.\nstill Tom\nAnna: Well?\nTom: Yes.")
    assert [(t["role"], t["content"]) for t in named][:2] == [("user", "Hello."), ("assistant", "Hi.\nstill Tom")]
    for text in (
        "no speakers",
        "A: one\nB: two\nC: three\nA: four",
        "preface\nA: one\nB: two\nA: three\nB: four",
        "A: one\nB: two",
    ):
        assert speakers_turns(text) is None


def test_a_chat_grows_by_requests_that_do_not_end_in_the_assistants_words():
    chats = make_transcripts([RESULT.format("Ribe", n) for n in range(40)], 2, 60, lambda text: len(text.split()))
    assert len(chats) == 2 and chats[0].messages[2:] != chats[1].messages[2:]
    for chat in chats:
        assert chat.requests == sorted(set(chat.requests)) and chat.requests[-1] == len(chat.messages)
        assert {prompt[-1]["role"] for prompt in chat.prompts()} == {"user", "tool"}
        assert all(later[: len(earlier)] == earlier for earlier, later in zip(chat.prompts(), chat.prompts()[1:]))
        calls = [call["id"] for message in chat.messages for call in message.get("tool_calls", [])]
        assert calls == [message["tool_call_id"] for message in chat.messages if message["role"] == "tool"]
    assert make_transcripts(["a b"], 2, 60, lambda text: len(text.split())) == []


def test_a_knob_is_turned_to_its_rate():
    smooth, steps = Method("a", None, 0.0, 1.0), Method("b", None, 1, 400, whole=True)
    assert abs(turned(lambda knob: knob**2, 0.49, smooth) - 0.7) < 0.01
    assert turned(lambda knob: min(knob / 200, 1), 0.25, steps) in range(48, 53)
    assert turned(lambda knob: 0.9, 0.5, smooth) == 0.5  # cannot be reached: nothing is nearer


def test_rules_cut_what_they_say(compressor):
    text = RESULT.format("Ribe", 2)
    assert truncated(text, 5, compressor) == f"{text[: compressor.tokenizer.encode(text).offsets[4][1]]} [...]"
    assert truncated(text, 500, compressor) == text
    args = TranscriptArguments(corpus="")
    by_name = {method.name: method.shorten for method in transcripts.methods(compressor, args, ("tool",))}
    prompt = [{"role": "system", "content": "s"}, *({"role": "tool", "content": RESULT * n} for n in (1, 2, 4)), {"role": "user", "content": "Why?"}]  # fmt: skip
    assert by_name["last N messages"](prompt, 2) == [prompt[0], *prompt[-2:]]
    sizes = [Rows(compressor).count(m["content"]) for m in by_name["old ones to a percentile"](prompt, 50)]
    middle = Rows(compressor).count(RESULT * 2)
    assert sizes[2] == middle and sizes[3] == Rows(compressor).count(RESULT * 4)  # the last one is not an old one
    each = by_name["each to N tokens"](prompt, 10)
    assert [message["content"].endswith(" [...]") for message in each] == [False, True, True, True, False]


def test_the_run_shows_that_stable_is_stable(corpus, tmp_path):
    out = tmp_path / "out"
    done = call("cache_cost", "--corpus", corpus, "--kinds", "talks", "results", "--transcripts_per_kind", 1,
                "--transcript_tokens", 350, "--rates", 0.7, "--min_message_tokens", 8, "--min_cached_tokens", 100,
                "--output_dir", out)  # fmt: skip
    assert done.returncode == 0 and done.stdout == (out / "report.md").read_text() + "\n"
    rows = json.loads((out / "transcripts.json").read_text())["rows"]
    found = {(row["kind"], row["method"]): row for row in rows}
    assert len(rows) == len(found) == 14
    for kind in ("talks", "results"):
        for method in ("nothing", "stable", "each to N tokens"):
            assert found[kind, method]["prefix_churn"] == found[kind, method]["changed_turns"] == 0
        for method in ("one budget, question", "last N messages"):
            assert found[kind, method]["prefix_churn"] > 0
        stable, told = found[kind, "stable"], found[kind, "one budget, question"]
        assert (
            stable["rate"] < 0.9 and stable["cost"] < told["cost"] and stable["cost"] < found[kind, "nothing"]["cost"]
        )
    assert found["results", "stable"]["rate"] == pytest.approx(0.7, abs=0.05)


def test_a_reader_is_asked_what_earlier_messages_said(corpus, tmp_path, monkeypatch):
    """A reader that only knows whether an answer stands in what it is shown."""

    class Finder:
        def counts(self, texts):
            return [len(text.split()) for text in texts]

    monkeypatch.setattr(transcripts.Reader, "from_pretrained", lambda name: Finder())
    monkeypatch.setattr(transcripts, "target_bits", lambda reader, items, passages: transcripts.np.array(
        [2.0 if item.target.strip() in passage else 10.0 for item, passage in zip(items, passages)]))  # fmt: skip
    args = TranscriptArguments(corpus=corpus, kinds=["results"], transcripts_per_kind=1, transcript_tokens=300, rates=[0.6],
                               min_message_tokens=8, reader_name_or_path="finder", reader_transcripts=3, reader_tokens=200,
                               lookups_per_transcript=3, output_dir=str(tmp_path))  # fmt: skip
    rows = {row["method"]: row for row in transcripts.run_transcripts(args)}
    assert "retention" not in rows["nothing"] and rows["stable"]["lookups"] == 9
    assert all(0 <= row["retention"] <= 1 for name, row in rows.items() if name != "nothing")
    assert rows["one budget, question"]["retention"] >= rows["last N messages"]["retention"]
    assert " at 0." in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("words, message", [
    (["--rates", 2], "`rates` must lie in (0, 1]"),
    (["--input_price", -1], "`input_price` must be a price of at least 0"),
    (["--transcript_tokens", 0], "`transcript_tokens` must be at least 1"),
    (["--kinds", "books"], "holds no .jsonl or .jsonl.gz file of these kinds"),
    (["--transcript_tokens", 100000], "too few documents of kind 'talks'"),
])  # fmt: skip
def test_what_cannot_be_measured_is_one_line(corpus, tmp_path, words, message):
    done = call("cache_cost", "--corpus", corpus, "--kinds", "talks", "--output_dir", tmp_path, *words)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1] and done.stdout == ""

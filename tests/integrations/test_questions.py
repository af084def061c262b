"""A question, from every door to the packaged model: it steers what is kept, and a model without is told so."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from tokforget import Compressor
from tokforget.cli import main as cli
from tokforget.integrations.huggingface import compress_column
from tokforget.integrations.langchain import ForgetDocumentCompressor
from tokforget.integrations.llama_index import ForgetNodePostprocessor
from tokforget.integrations.llmlingua import PromptCompressor


TEXT = (
    "The harbour of Nordby was rebuilt by Anna Lund after the storm. It rained for most of the following summer. "
    "Ships of the Petersen line call there every Monday, and the ferry to Skagen leaves at 12:45. "
    "The library of the town holds some four thousand volumes, most of them gifts of its merchants."
)
ASKED = {
    "When does the ferry leave?": "12:45",
    "Who rebuilt the harbour?": "Lund",
    "How many volumes does the library hold?": "four thousand",
}


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return Compressor.from_pretrained()


@pytest.mark.parametrize("question", ASKED)
def test_what_answers_the_question_is_kept(compressor, question):
    result = compressor.compress(TEXT, rate=0.3, question=question)
    assert ASKED[question] in result.text and result.compression_rate <= 0.3
    others = [answer for asked, answer in ASKED.items() if asked != question]
    assert not all(answer in result.text for answer in others)


def test_each_text_of_a_call_may_have_its_own(compressor):
    results = compressor.compress([TEXT] * 3, rate=0.3, question=list(ASKED))
    assert [result.text for result in results] == [compressor.compress(TEXT, rate=0.3, question=q).text for q in ASKED]


def test_a_stream_and_an_explanation_take_it(compressor):
    (result,) = compressor.compress_stream([TEXT], rate=0.3, question="When does the ferry leave?")
    assert "12:45" in result.text
    assert (
        compressor.explain(TEXT, rate=0.3, question="When does the ferry leave?").result.text
        == compressor.compress(TEXT, rate=0.3, question="When does the ferry leave?").text
    )


def test_langchain_and_llama_index_pass_the_query_on(compressor):
    query = "When does the ferry leave?"
    expected = compressor.compress(TEXT, rate=0.3, question=query).text
    (document,) = ForgetDocumentCompressor(compressor, rate=0.3).compress_documents([Document(TEXT)], query)
    assert document.page_content == expected
    nodes = [NodeWithScore(node=TextNode(text=TEXT), score=1.0)]
    (node,) = ForgetNodePostprocessor(compressor, rate=0.3).postprocess_nodes(nodes, QueryBundle(query))
    assert node.node.text == expected
    (plain,) = ForgetNodePostprocessor(compressor, rate=0.3).postprocess_nodes(nodes)
    assert plain.node.text == compressor.compress(TEXT, rate=0.3).text


def test_the_drop_in_keeps_the_answer_and_the_question(compressor):
    done = PromptCompressor(compressor).compress_prompt(TEXT, question="When does the ferry leave?", rate=0.4)
    assert "12:45" in done["compressed_prompt_list"][0] and done["compressed_prompt"].endswith(
        "When does the ferry leave?"
    )


def test_a_column_of_questions(compressor):
    rows = Dataset.from_dict({"text": [TEXT] * 3, "question": list(ASKED)})
    done = rows.map(compress_column(compressor, rate=0.3, question_column="question"), batched=True)
    assert all(ASKED[row["question"]] in row["compressed"] for row in done)
    one = compress_column(compressor, rate=0.3, question_column="question")(rows[0])
    assert one["compressed"] == done[0]["compressed"]
    with pytest.raises(ValueError, match="No column 'asked'"):
        compress_column(compressor, question_column="asked")(rows[0])
    with pytest.raises(ValueError, match="trained without"):
        compress_column(Compressor.from_pretrained("embedded"), question_column="question")


@pytest.fixture
def shell(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words, stdin: str = ""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            code = cli.main([*map(str, words)])
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def test_the_shell_takes_a_question_and_a_column_of_them(shell, tmp_path):
    done = shell("compress", "--rate", 0.3, "--question", "When does the ferry leave?", stdin=TEXT)
    assert done.code == 0 and "12:45" in done.out
    rows = "".join(json.dumps({"text": TEXT, "asked": question}) + "\n" for question in ASKED)
    (tmp_path / "rows.jsonl").write_text(rows + json.dumps({"text": TEXT}) + "\n")
    done = shell("compress", "rows.jsonl", "--column", "text", "--question-column", "asked", "--rate", 0.3)
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [ASKED[row["asked"]] in row["compressed"] for row in found] == [True] * 3
    assert done.code == 2 and "rows.jsonl:4" in done.err and "no column 'asked'" in done.err


@pytest.mark.parametrize("words, message", [
    (["--question", "Who?", "--model", "embedded"], "without questions"),
    (["--question-column", "asked"], "for the rows of --column"),
    (["--column", "text", "--question-column", "asked", "--model", "embedded"], "without questions"),
    (["--quality", "0.9", "--model", "embedded"], "calibration.json"),
    (["--quality", "0.9", "--rate", "0.5"], "not allowed with argument"),
])  # fmt: skip
def test_what_cannot_be_asked_is_one_line_and_exit_code_2(shell, words, message):
    done = shell("compress", *words, stdin=TEXT)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1 and done.out == ""

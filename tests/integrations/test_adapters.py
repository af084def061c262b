"""tokforget inside other libraries: each test runs against the real one, where it is installed."""

import asyncio
import pickle
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pyarrow
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tests.conftest import make_model
from tokforget import Compressor
from tokforget.integrations.huggingface import CompressionPipeline, compress_column
from tokforget.integrations.llmlingua import PromptCompressor


ROOT = Path(__file__).parents[2]
TEXTS = [
    "the cat sat on the mat 12. a dog ran to the red house.",
    "it rained all day long, 7 birds fly over the sea.\n\nwe saw the dog.",
    "the red house.",
]
COLUMNS = ["compressed", "original_tokens", "compressed_tokens", "compression_rate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base_folder, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_model(base_folder, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def compressor(folder) -> Compressor:
    return Compressor.from_pretrained(folder)


@pytest.mark.slow
def test_importing_the_package_brings_no_other_library():
    names = ("langchain_core", "llama_index", "datasets", "transformers")
    code = (f"import sys, tokforget.integrations.huggingface, tokforget.integrations.llmlingua; "
            f"print([name for name in {names} if name in sys.modules])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


# -- LLMLingua ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def lingua(compressor) -> PromptCompressor:
    return PromptCompressor(compressor)


def count(compressor: Compressor, text: str) -> int:
    return len(compressor.tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("unit", ["word", "token"])
@pytest.mark.parametrize(
    "call", [{"rate": 0.6}, {"target_token": 50}, {"target_token": 50.0, "rate": 0.9, "iterative_size": 100}]
)
def test_a_prompt_keeps_its_budget_and_what_is_around_the_contexts(compressor, unit, call):
    answer = PromptCompressor(compressor, unit=unit).compress_prompt(
        TEXTS, instruction="Sit.", question="Who ran?", **call
    )
    prompt, parts = answer["compressed_prompt"], answer["compressed_prompt_list"]
    assert prompt == "\n\n".join(["Sit.", *parts, "Who ran?"]) and len(parts) == 3
    before, after = answer["origin_tokens"], answer["compressed_tokens"]
    assert before == count(compressor, "\n\n".join(["Sit.", *TEXTS, "Who ran?"])) and after == count(
        compressor, prompt
    )
    budget = int(0.6 * before) if "target_token" not in call else 50
    assert budget - (1 if unit == "token" else 8) <= after <= budget
    assert (answer["ratio"], answer["rate"]) == (f"{before / after:.1f}x", f"{100 * after / before:.1f}%")
    assert answer["saving"] == f", Saving ${(before - after) * 0.06 / 1000:.1f} in GPT-4."
    assert list(answer) == ["compressed_prompt", "compressed_prompt_list", "origin_tokens", "compressed_tokens", "ratio", "rate", "saving", "vocabulary"]  # fmt: skip


def test_a_prompt_is_what_the_compressor_makes_of_its_context(lingua, compressor):
    for rate in (0.3, 0.8, 1.0):
        assert (
            lingua(TEXTS[0], rate=rate)["compressed_prompt"]
            == compressor.compress(TEXTS[0], rate=rate, unit="word").text
        )
    assert lingua.compress_prompt_llmlingua2(TEXTS, rate=0.5) == lingua.compress_prompt(TEXTS, rate=0.5)
    hidden = lingua.compress_prompt(TEXTS[0], question="Who ran?", concate_question=False)
    assert "Who" not in hidden["compressed_prompt"] and hidden["origin_tokens"] > count(compressor, TEXTS[0])


def test_forced_tokens_digits_and_labels(lingua):
    answer = lingua.compress_prompt(TEXTS[:2], rate=0.7, force_tokens=["dog", ".", "\n"], force_reserve_digit=True,
                                    return_word_label=True)  # fmt: skip
    for part, text in zip(answer["compressed_prompt_list"], TEXTS):
        for pattern in (r"\bdog\b", r"\.", r"\n", r"\d+"):
            assert re.findall(pattern, part) == re.findall(pattern, text)
    labels = [word.rsplit(" ", 1) for word in answer["fn_labeled_original_prompt"].split("\t\t|\t\t")]
    assert [word for word, _ in labels] == " ".join(TEXTS[:2]).split()
    kept = [word for word, label in labels if label == "1"]
    assert {"12.", "7", "dog"} <= set(kept) < {word for word, _ in labels}


def test_a_forced_string_that_follows_itself_is_dropped_on_request(lingua):
    text = "the cat sat, on the mat, a dog ran, to the house."
    plain = lingua.compress_prompt(text, target_token=3, force_tokens=[","], on_impossible="warn")
    dense = lingua.compress_prompt(
        text, target_token=3, force_tokens=[","], drop_consecutive=True, on_impossible="warn"
    )
    assert plain["compressed_prompt"].count(",") == 3 and re.search(r",\s*,", plain["compressed_prompt"])
    assert not re.search(r",\s*,", dense["compressed_prompt"]) and "," in dense["compressed_prompt"]
    assert dense["compressed_tokens"] < plain["compressed_tokens"]


def test_empty_prompts_are_defined(lingua):
    for context in ("", [], [""]):
        answer = lingua.compress_prompt(context)
        assert (answer["compressed_prompt"], answer["compressed_tokens"], answer["ratio"]) == ("", 0, "1.0x")
    assert (
        lingua.compress_prompt(["", ""], question="Who?", rate=0.9, on_impossible="warn")["compressed_prompt"]
        == "Who?"
    )
    texts = [" the cat\n", "", "sat. \n\n"]
    whole = lingua.compress_prompt(texts, rate=1.0)
    assert whole["compressed_prompt"] == " the cat\n\n\nsat. \n\n" and whole["compressed_prompt_list"] == texts


def test_segments_with_tags(lingua):
    context = "<llmlingua, compress=False>Sam 4:</llmlingua><llmlingua, rate=0.4> the cat sat on the mat all day</llmlingua> the <drop>sea</drop>"
    answer = lingua.structured_compress_prompt([context, TEXTS[2]], instruction="Sit.", question="Who?", rate=0.6)
    prompt = answer["compressed_prompt"]
    assert (
        prompt.startswith("Sit.\n\nSam 4:")
        and prompt.endswith("\n\nWho?")
        and "<" not in prompt
        and "sea" not in prompt
    )
    assert prompt == "\n\n".join(["Sit.", *answer["compressed_prompt_list"], "Who?"])
    assert answer["compressed_tokens"] < answer["origin_tokens"]
    with pytest.raises(ValueError, match="`question` holds tags"):
        lingua.structured_compress_prompt(context, question="<keep>a</keep>")


def test_what_cannot_be_followed_is_refused(lingua):
    for name, value in (("rank_method", "longllmlingua"), ("use_sentence_level_filter", True), ("keep_split", True),
                        ("reorder_context", "sort"), ("context_level_rate", 0.5)):  # fmt: skip
        with pytest.raises(ValueError, match=f"`{name}=.*not supported"):
            lingua.compress_prompt(TEXTS, **{name: value})
    with pytest.raises(TypeError, match="no argument 'ratio'"):
        lingua.compress_prompt(TEXTS, ratio=0.5)
    with pytest.raises(ValueError, match="What is protected takes"):
        lingua.compress_prompt(TEXTS[2], instruction=TEXTS[0], target_token=5)
    with pytest.raises(ValueError, match="in \\(0, 1\\], got 2"):
        lingua.compress_prompt(TEXTS, rate=2.0)
    with pytest.raises(ValueError, match="is a model of LLMLingua"):
        PromptCompressor("microsoft/llmlingua-2-xlm-roberta-large-meetingbank", use_llmlingua2=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"context": {"text": "a b"}}, "sequence of strings, got a dict"),
        ({"context": b"a b"}, "sequence of strings, got a bytes"),
        ({"context": ["a", None]}, "Context 1 must be a string, got a NoneType, None"),
        ({"instruction": None}, "`instruction` must be a string, got a NoneType, None; leave it out for none"),
        ({"question": ["when?"]}, "`question` must be a string, got a list"),
        ({"target_token": 0}, "`target_token` must be at least 1, or -1 to go by `rate`, got 0"),
        ({"target_token": float("nan")}, "`target_token` must be at least 1, .* got nan"),
        ({"target_token": "20"}, "`target_token` must be a number, got '20'"),
        ({"force_tokens": "not"}, "`force_tokens` takes a list of strings, got 'not': for one of them pass"),
    ],
    ids=str,
)
def test_what_is_of_the_wrong_type_is_named(lingua, words, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        lingua.compress_prompt(**({"context": TEXTS} | words))
    assert "\n" not in str(error.value)


def test_no_context_is_an_empty_one(lingua):
    assert lingua.compress_prompt(None)["compressed_prompt"] == lingua.compress_prompt([])["compressed_prompt"] == ""


def test_a_unit_that_is_none_is_refused_before_the_first_prompt(compressor):
    with pytest.raises(ValueError, match="`unit` must be one of"):
        PromptCompressor(compressor, unit="words")


# -- LangChain ---------------------------------------------------------------------------------------------------------
def test_a_langchain_pipeline_compresses_what_it_retrieves(compressor, folder):
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import RunnableLambda

    from tokforget.integrations.langchain import ForgetDocumentCompressor

    class Shelf(BaseRetriever):
        documents: list

        def _get_relevant_documents(self, query, *, run_manager):
            return self.documents

    shelf = Shelf(
        documents=[Document(text, id=str(i), metadata={"source": f"{i}.txt"}) for i, text in enumerate(TEXTS)]
    )
    shorten = ForgetDocumentCompressor(folder, rate=0.5, unit="word")
    chain = shelf | RunnableLambda(shorten.transform_documents)
    found = chain.invoke("who ran?")
    for index, (document, result) in enumerate(zip(found, compressor.compress(TEXTS, rate=0.5, unit="word"))):
        assert document.page_content == result.text and document.id == str(index)
        assert document.metadata == {
            "source": f"{index}.txt",
            "tokforget_original_tokens": result.original_tokens,
            "tokforget_compressed_tokens": result.compressed_tokens,
            "tokforget_compression_rate": round(result.compression_rate, 4),
        }
    assert [document.page_content for document in shelf.documents] == TEXTS  # the retriever's own are untouched
    assert shorten.compress_documents(shelf.documents, "who ran?") == found
    assert asyncio.run(shorten.acompress_documents(shelf.documents, "who ran?")) == found
    assert shorten.compress_documents([], "who ran?") == []


def test_what_are_no_documents_is_one_clear_error(compressor):
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document

    from tokforget.integrations.langchain import ForgetDocumentCompressor

    for documents in (["a text"], Document("a text"), "a text", [None]):
        with pytest.raises(TypeError, match="`documents` must be a list of LangChain's documents"):
            ForgetDocumentCompressor(compressor).transform_documents(documents)


def test_a_common_budget_may_leave_documents_out(compressor):
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document

    from tokforget.integrations.langchain import ForgetDocumentCompressor

    shorten = ForgetDocumentCompressor(compressor, target_tokens=2, budget="corpus")
    documents = [Document(text) for text in TEXTS]
    found = shorten.compress_documents(documents, "")
    assert 1 <= len(found) <= 2 and sum(d.metadata["tokforget_compressed_tokens"] for d in found) <= 2
    assert len(shorten.transform_documents(documents)) == 3
    with pytest.raises(ValueError, match="in \\(0, 1\\], got 3"):
        ForgetDocumentCompressor(compressor, rate=3)
    with pytest.raises(TypeError, match="ratio"):
        ForgetDocumentCompressor(compressor, ratio=0.5)


SHORT = ["Yes", "No.", "", "  ", TEXTS[0]]
BUDGETS = [
    {"rate": 0.5, "unit": "word"},
    {"rate": 0.01, "unit": "word"},
    {"target_tokens": 1, "unit": "word"},
    {"rate": 0.2},
]


@pytest.mark.parametrize("options", BUDGETS, ids=str)
def test_no_document_is_lost_for_being_short(options):
    """By words half of "Yes", three pieces of this vocabulary, is nothing: what was retrieved is then passed on as it is."""
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from tokforget.integrations.langchain import ForgetDocumentCompressor
    from tokforget.integrations.llama_index import ForgetNodePostprocessor

    compressor = Compressor.from_pretrained("embedded")
    expected = [result.text for result in compressor.compress(SHORT, **options)]
    assert "" in expected[:2] or options == {"rate": 0.2}
    expected = [text if text.strip() else before for text, before in zip(expected, SHORT)]
    found = ForgetDocumentCompressor(compressor, **options).compress_documents([Document(text) for text in SHORT], "q")
    assert [document.page_content for document in found] == [text for text in expected if text.strip()]
    assert found[0].metadata["tokforget_compressed_tokens"] == len(compressor.tokenizer.encode(expected[0]).ids)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in SHORT]
    assert [n.text for n in ForgetNodePostprocessor(compressor, **options).postprocess_nodes(nodes)] == expected


# -- LlamaIndex --------------------------------------------------------------------------------------------------------
def test_llama_index_nodes_are_shortened_and_stay_themselves(compressor):
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

    from tokforget.integrations.llama_index import ForgetNodePostprocessor

    nodes = [NodeWithScore(node=TextNode(id_=str(i), text=text, metadata={"source": "s"}), score=0.5 - i / 10)
             for i, text in enumerate([*TEXTS, ""])]  # fmt: skip
    shorten = ForgetNodePostprocessor(compressor, rate=0.5)
    found = shorten.postprocess_nodes(nodes, query_str="who ran?")
    for node, before, result in zip(found, nodes, compressor.compress(TEXTS, rate=0.5)):
        assert (node.text, node.score, node.node_id) == (result.text, before.score, before.node_id)
        assert (
            node.metadata["source"] == "s" and node.metadata["tokforget_compressed_tokens"] == result.compressed_tokens
        )
        # The figures are for people: what is sent to a model holds no more than it did.
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert node.get_content(mode) == f"source: s\n\n{result.text}"
    assert [node.text for node in nodes] == [*TEXTS, ""] and found[3] == nodes[3]
    assert asyncio.run(shorten.apostprocess_nodes(nodes)) == found
    assert shorten.class_name() in shorten.to_json() and "0.5" in shorten.to_json()


# -- Hugging Face ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", [{}, {"batched": True, "batch_size": 2}, {"batched": True, "num_proc": 2}], ids=str)
def test_a_data_set_is_mapped(compressor, how):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"article": TEXTS, "n": [1, 2, 3]})
    mapped = dataset.map(compress_column(compressor, "article", rate=0.5), **how)
    assert mapped.column_names == ["article", "n", *COLUMNS]
    for row, result in zip(mapped, compressor.compress(TEXTS, rate=0.5)):
        assert row["compressed"] == result.text
        assert (row["original_tokens"], row["compressed_tokens"]) == (result.original_tokens, result.compressed_tokens)


@pytest.mark.parametrize("told", [None, "2"])
def test_processes_of_a_map_do_not_take_each_other_s_cores(compressor, monkeypatch, told):
    datasets = pytest.importorskip("datasets")
    function = compress_column(compressor, rate=0.5)
    monkeypatch.setenv("OMP_NUM_THREADS", told) if told else monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def threads(rows: dict) -> dict:
        function(rows)
        found = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        return {"threads": [max(found)] * len(rows["text"])}

    with threadpool_limits(2):
        dataset = datasets.Dataset.from_dict({"text": TEXTS})
        limited = dataset.map(threads, batched=True, num_proc=2)["threads"][:]
        alone = dataset.map(threads, batched=True)["threads"][:]
    assert limited == [2 if told else 1] * len(TEXTS) and alone == [2] * len(TEXTS)


def test_a_row_that_is_no_text_is_named(compressor):
    function = compress_column(compressor, column="n")
    for rows, message in (({"n": 5}, "Column 'n' must hold strings, and holds a int, 5"), ({"n": b"a"}, "and holds a bytes"),
                          ({"n": [1, 2]}, "Text 0 of `texts` must be a string, got a int, 1")):  # fmt: skip
        with pytest.raises(TypeError, match=message):
            function(rows)
    table = pyarrow.table({"n": ["a text"]})
    with pytest.raises(TypeError, match=r"Rows came as a table .* map `dataset.with_format\(None\)`"):
        function(table)


def test_the_output_column_of_a_data_set_is_chosen(compressor):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"article": TEXTS, "compressed": [1, 2, 3]})
    short = [result.text for result in compressor.compress(TEXTS, rate=0.5)]
    with pytest.raises(ValueError, match="already has compressed: rename.*or name another `output_column`"):
        dataset.map(compress_column(compressor, "article", rate=0.5), batched=True)
    mapped = dataset.map(compress_column(compressor, "article", rate=0.5, output_column="short"), batched=True)
    assert mapped.column_names == ["article", "compressed", "short", *COLUMNS[1:]]
    assert (mapped["article"][:], mapped["short"][:]) == (TEXTS, short)
    function = pickle.loads(pickle.dumps(compress_column(compressor, "article", rate=0.5, output_column="article")))
    mapped = dataset.map(function, batched=True)
    assert mapped.column_names == ["article", "compressed", *COLUMNS[1:]] and mapped["article"][:] == short
    assert function({"article": TEXTS[0]})["article"] == short[0]
    with pytest.raises(ValueError, match="'compressed_tokens' is written beside the text"):
        compress_column(compressor, output_column="compressed_tokens")


@pytest.mark.slow
def test_the_map_function_hashes_alike_in_every_process(folder, compressor):
    Hasher = pytest.importorskip("datasets.fingerprint").Hasher
    code = ("import sys; from datasets.fingerprint import Hasher; from tokforget.integrations.huggingface import compress_column; "
            "f = compress_column(sys.argv[1], rate=0.5, protect=['numbers', 'urls']); print(Hasher.hash(f)); "
            "f({'text': ['the cat', 'a dog']}); print(Hasher.hash(f)); "
            "print(Hasher.hash(compress_column(sys.argv[1], rate=0.4)))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=ROOT)
    fresh, used, other = done.stdout.split()
    # This process has another hash seed, and its compressor has a past.
    compressor.restore(compressor.compress("the cat sat"), progress=False)
    assert fresh == used == Hasher.hash(compress_column(compressor, rate=0.5, protect=["numbers", "urls"])) != other
    again = pickle.loads(pickle.dumps(compress_column(compressor, rate=0.5)))
    assert again({"text": TEXTS}) == compress_column(compressor, rate=0.5)({"text": TEXTS})


def test_a_column_that_is_missing_or_would_be_lost_is_named(compressor):
    function = compress_column(compressor, rate=0.5)
    with pytest.raises(ValueError, match="No column 'text'; there are 'txt'"):
        function({"txt": "a"})
    with pytest.raises(ValueError, match="already has compressed: rename"):
        function({"text": "a", "compressed": "b"})
    for rows, count in (({"text": ["a", None, "b"]}, "1 of 3 rows"), ({"text": None}, "1 of 1 rows")):
        with pytest.raises(
            ValueError, match=f"'text' holds None in {count}. Leave these rows out first: `dataset.filter"
        ):
            function(rows)
    with pytest.raises(ValueError, match="in \\(0, 1\\], got 5"):
        compress_column(compressor, rate=5)
    assert function({"text": []}) == {name: [] for name in COLUMNS}


def test_the_pipeline_takes_texts_lists_and_streams(compressor, folder):
    pipe = CompressionPipeline(folder, rate=0.5, unit="word", batch_size=2)
    assert pipe.task == "prompt-compression"
    for options in ({}, {"rate": 0.3}, {"target_tokens": 4}, {"unit": "token"}):
        expected = compressor.compress(
            TEXTS, **({"unit": "word"} | (options if "target_tokens" in options else {"rate": 0.5} | options))
        )
        done = pipe(TEXTS, **options)
        assert [row["compressed"] for row in done] == [result.text for result in expected]
        assert all(list(row) == COLUMNS for row in done)
        assert pipe(TEXTS[0], **options) == done[:1]
        assert list(pipe(iter(TEXTS), **options)) == done

    def endless():
        while True:
            yield TEXTS[0]

    assert list(islice(pipe(endless()), 3)) == pipe([TEXTS[0]] * 3)
    with pytest.raises(ValueError, match="got 9"):
        pipe(endless(), rate=9)
    with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1, got 0"):
        CompressionPipeline(compressor, batch_size=0)
    with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1, got '2'"):
        CompressionPipeline(compressor, batch_size="2")
    for rows, kind in (({"text": TEXTS}, "dict"), (b"abc", "bytes"), (None, "None"), ({"a"}, "set")):
        with pytest.raises(TypeError, match=f"`texts` must be a string or a sequence of strings, got .*{kind}"):
            pipe(rows)  # keys and bytes would be taken for texts

"""Budgets in another vocabulary's tokens: met on the output string, and named."""

import builtins
import copy
import pickle
from pathlib import Path

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer

from tests.conftest import packaged_compressor
from tests.support import fuzz_compressor as fuzz
from tokforget import CompressedText, Compressor
from tokforget.compression import counting
from tokforget.compression.counting import CandidateCounter, TokenCounter
from tokforget.integrations.huggingface import compress_column
from tokforget.integrations.langchain import Document, ForgetDocumentCompressor
from tokforget.integrations.llmlingua import PromptCompressor
from tokforget.packaged import base_model_path, reader_model_path


OTHER = Path(base_model_path())  # another vocabulary than that of the packaged model
TEXT = (
    "The bridge over the Arve was built in 1874 by the engineer Louis Favre. It carried a tram line until 1956. "
    "Since the flood of 1902 the pillars stand on concrete. Today some 14,000 cars cross it every day."
)
ANY_OPINION = fuzz.make_compressor()
usual = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return Compressor.from_pretrained()


@pytest.fixture(scope="module")
def other() -> Tokenizer:
    return Tokenizer.from_file(str(OTHER / "tokenizer.json"))


@pytest.fixture
def byte_encoding(monkeypatch) -> tiktoken.Encoding:
    """An encoding of tiktoken that needs no network: bytes, and two pairs of them."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b" t": 257}
    made = tiktoken.Encoding(
        "o200k_base", pat_str=r"\s?\w+|\W", mergeable_ranks=ranks, special_tokens={"<|end|>": 258}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: made)
    counting._from_tiktoken.cache_clear()
    yield made
    counting._from_tiktoken.cache_clear()


def letters(text: str) -> int:
    return len(text)


def quarters(text: str) -> int:
    return -(-len(text) // 4)


@pytest.mark.parametrize("unit", ["word", "token", "auto"])
@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8])
def test_a_budget_is_met_in_the_tokens_that_are_counted(compressor, other, unit, rate):
    result = compressor.compress(TEXT, rate=rate, unit=unit, count_tokens=OTHER)
    total, found = (len(other.encode(text).ids) for text in (TEXT, result.text))
    assert (result.original_tokens, result.compressed_tokens) == (total, found)
    assert result.target_tokens == int(rate * total) and 0 <= result.shortfall == result.target_tokens - found
    assert result.shortfall <= 1 and result.vocabulary == OTHER.name
    assert len(result.scores) == len(result.keep_mask) == len(compressor.tokenizer.encode(TEXT).ids) != total
    again = CompressedText.from_json(result.to_json())
    assert (again.compressed_tokens, again.vocabulary, again.compression_rate) == (found, OTHER.name, found / total)
    assert again.character_rate == len(result.text) / len(TEXT)


def test_a_budget_of_all_is_the_text_and_a_threshold_is_told_in_other_tokens(compressor, other):
    total = len(other.encode(TEXT).ids)
    assert compressor.compress(TEXT, rate=1.0, count_tokens=OTHER).text == TEXT
    assert compressor.compress(TEXT, target_tokens=total, count_tokens=OTHER).text == TEXT
    by_score = compressor.compress(TEXT, threshold=0.5, count_tokens=OTHER)
    assert by_score.text == compressor.compress(TEXT, threshold=0.5).text
    assert by_score.compressed_tokens == len(other.encode(by_score.text).ids)
    assert compressor.compress(TEXT, min_tokens=total + 1, count_tokens=OTHER).returned_whole == "min_tokens"
    assert compressor.compress(TEXT, min_tokens=total, count_tokens=OTHER).returned_whole is None


def test_a_common_budget_and_a_batch_are_counted_too(compressor, other):
    texts = [TEXT, TEXT[:70].upper(), "", "one"]
    results = compressor.compress(texts, rate=0.5, count_tokens=OTHER)
    for text, result in zip(texts, results):
        assert result.text == compressor.compress(text, rate=0.5, count_tokens=OTHER).text
    corpus = compressor.compress(texts, rate=0.5, count_tokens=OTHER, budget="corpus")
    total = sum(len(other.encode(text).ids) for text in texts)
    assert 0 <= int(0.5 * total) - sum(len(other.encode(result.text).ids) for result in corpus) <= 1


@usual
@given(st.sampled_from([*fuzz.KINDS]), st.randoms(), st.integers(1, 80), st.sampled_from(["token", "word", "auto"]), st.sampled_from([letters, quarters, OTHER]))  # fmt: skip
def test_no_budget_is_exceeded_in_any_vocabulary(kind, rng, target, unit, count):
    text = fuzz.KINDS[kind](rng)
    try:
        result = ANY_OPINION.compress(text, target_tokens=target, unit=unit, count_tokens=count, on_impossible="raise")
    except ValueError as error:  # JSON that cannot be so small
        assert unit == "auto" and "JSON" in str(error)
        return
    counter = TokenCounter.of(count)
    assert counter([result.text])[0] == result.compressed_tokens <= target
    assert result.original_tokens == counter([text])[0]


@usual
@given(
    st.lists(st.sampled_from(fuzz.ENGLISH), min_size=8, max_size=80).map(" ".join), st.sampled_from([0.2, 0.5, 0.8])
)
def test_what_could_still_be_put_in_is(text, rate):
    result = ANY_OPINION.compress(text, rate=rate, unit="token", count_tokens=letters)
    tokens = ANY_OPINION.tokenizer.encode(text).offsets
    dropped = [end - start for (start, end), kept in zip(tokens, result.keep_mask) if not kept]
    assert 0 <= result.shortfall <= max(dropped, default=0)  # and the space that sets it apart


def test_a_vocabulary_comes_from_what_people_have(compressor, other, byte_encoding, tmp_path):
    total = len(other.encode(TEXT).ids)
    host = AutoTokenizer.from_pretrained(str(OTHER))
    for given_ in (str(OTHER), OTHER, OTHER / "tokenizer.json", other, host, TokenCounter.of(OTHER)):
        assert TokenCounter.of(given_)([TEXT]) == [total]
    for given_ in ("o200k_base", "gpt-4o", byte_encoding):
        counter = TokenCounter.of(given_)
        assert counter(["the tea", "<|end|>"]) == [5, 7] and counter.name == "o200k_base"
    assert TokenCounter.of(None) is None
    result = compressor.compress(TEXT, target_tokens=60, count_tokens="gpt-4o")
    assert len(byte_encoding.encode(result.text)) == result.compressed_tokens <= 60


def test_special_tokens_in_a_text_are_text(compressor):
    text = "a <|endoftext|> b <|im_start|>"
    for place in (OTHER, reader_model_path()):
        assert TokenCounter.of(place)([text])[0] > 8


def test_a_counter_travels(byte_encoding):
    for given_ in (OTHER, "o200k_base", letters):
        counter = TokenCounter.of(given_)
        for other_one in (pickle.loads(pickle.dumps(counter)), copy.deepcopy(counter)):
            assert other_one([TEXT, "<|endoftext|>"]) == counter([TEXT, "<|endoftext|>"])
    assert pickle.dumps(TokenCounter.of(OTHER)) == pickle.dumps(TokenCounter.of(OTHER / "tokenizer.json"))


@pytest.mark.parametrize(
    "given_, kind, message",
    [
        ("./no.json", ValueError, "no such file or folder.*tokenizer.json"),
        ("", ValueError, "empty name"),
        (5, TypeError, "got a int, 5"),
        (Path(__file__), ValueError, "is no tokenizer.json"),
        (Path(__file__).parent, ValueError, "holds no tokenizer that Transformers reads"),
        ("nobody/has-this", ValueError, "no file or folder here, and could not be found on the Hub"),
        (lambda text: "many", ValueError, "must return a whole number of at least 0 for a text, got 'many'"),
        (lambda text: -1, ValueError, "must return a whole number"),
        (lambda text: True, ValueError, "must return a whole number"),
    ],
)
def test_what_is_no_vocabulary_is_told(given_, kind, message):
    with pytest.raises(kind, match=message):
        ANY_OPINION.compress(TEXT, count_tokens=given_)


def test_tiktoken_is_named_where_it_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tiktoken":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    counting._from_tiktoken.cache_clear()
    for name in ("o200k_base", "cl100k_base", "gpt-4o-mini"):
        with pytest.raises(ValueError, match=r"pip install tokforget\[tiktoken\]"):
            TokenCounter.of(name)


def test_what_grows_is_decided_in_the_models_own_tokens(compressor):
    with pytest.raises(ValueError, match="leave out `count_tokens`"):
        compressor.compress(TEXT, rate=0.5, prefix_stable=True, count_tokens=letters)
    with pytest.raises(ValueError, match="does not take count_tokens"):
        compressor.compress_stream([TEXT], rate=0.5, count_tokens=letters)


def test_the_default_names_its_own_vocabulary(compressor):
    assert compressor.compress(TEXT).vocabulary == "SmolLM2-135M-Instruct"
    assert Compressor.from_pretrained("embedded").compress("the cat").vocabulary == "the packaged GPT-2"
    assert ANY_OPINION.compress("the cat").vocabulary == "the model"
    assert "of SmolLM2-135M-Instruct" in compressor.explain(TEXT).to_html()


def test_adapters_count_with_it(compressor, other):
    budget = int(0.5 * len(other.encode(TEXT).ids))
    adapter = ForgetDocumentCompressor(compressor, rate=0.5, count_tokens=OTHER)
    (document,) = adapter.transform_documents([Document(TEXT)])
    mapped = compress_column(compressor, rate=0.5, count_tokens=OTHER)
    row = mapped({"text": TEXT})
    again = pickle.loads(pickle.dumps(mapped))({"text": TEXT})
    assert row == again and row["compressed"] == document.page_content
    assert row["compressed_tokens"] == document.metadata["tokforget_compressed_tokens"]
    assert budget - 1 <= row["compressed_tokens"] == len(other.encode(row["compressed"]).ids) <= budget
    lingua = PromptCompressor(compressor, count_tokens=OTHER).compress_prompt([TEXT, TEXT], target_token=60)
    assert lingua["compressed_tokens"] == len(other.encode(lingua["compressed_prompt"]).ids) <= 60
    assert lingua["vocabulary"] == OTHER.name and lingua["origin_tokens"] == len(other.encode(f"{TEXT}\n\n{TEXT}").ids)
    assert PromptCompressor(compressor)(TEXT)["vocabulary"] == "SmolLM2-135M-Instruct"


@usual
@given(st.lists(st.text(st.sampled_from("ab1.,()\n\t \u00a0\u3000é’'日<|>"), max_size=40), max_size=4))
def test_candidates_have_the_tokens_of_their_words(texts):
    for model in (packaged_compressor(), ANY_OPINION):
        counter = CandidateCounter(model.tokenizer)
        assert CandidateCounter.fits(model.tokenizer)
        for _ in range(2):  # the second time from what is held
            expected = [len(one) for one in model.tokenizer.encode_batch(texts, add_special_tokens=False)]
            assert [len(one) for one in counter(texts)] == expected


def test_a_count_that_does_not_add_up_is_searched_again(monkeypatch):
    model = Compressor.from_pretrained()
    texts = ["The bridge was built in 1874, and it carried a tram line until 1956.", "It is closed on Mondays."] * 3
    expected = [result.text for result in model.compress(texts, rate=0.5)]
    wrong = lambda texts: [range(len(text) % 7) for text in texts]  # noqa: E731
    monkeypatch.setattr(model, "_candidate_counter", wrong)
    assert [result.text for result in model.compress(texts, rate=0.5)] == expected
    monkeypatch.setattr(model, "_candidate_counter", None)
    assert [result.text for result in model.compress(texts, rate=0.5)] == expected


def test_other_tokenizers_encode_their_candidates():
    for tokenizer in (
        Tokenizer(models.BPE()),
        Tokenizer.from_str(Compressor.from_pretrained().tokenizer.to_str()),
    ):
        tokenizer.normalizer = normalizers.Prepend("▁")
        assert not CandidateCounter.fits(tokenizer)

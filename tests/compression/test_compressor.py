"""The compressor as its users see it: loading, arguments, protection, streams, restoring, explaining."""

import doctest
import random
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise

import datasets
import numpy as np
import pandas
import pyarrow
import pytest
import torch
from rich.console import Console

from tests.conftest import make_model
from tests.support.fuzz_compressor import make_compressor
from tokforget import CompressedText, Compressor, packaged
from tokforget.compression import compressor as compressor_module
from tokforget.compression.fences import Place, scan_fences
from tokforget.compression.pieces import Pieces, cut
from tokforget.compression.protection import BUILT_IN, Segment, parse_tags
from tokforget.compression.search import Ranked, run_searches, search_budget, search_nested
from tokforget.masking import top_k_mask
from tokforget.models.policy import _gelu


TEXT = "The ship left at 12:30 with 3,000 crates (see https://example.org/list?id=7). Ask bob@example.com about `run()`, please."


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return make_compressor()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base_folder, tokenizer) -> str:
    """A model folder as a run leaves it: tiny, untrained, real."""
    folder = tmp_path_factory.mktemp("model")
    make_model(base_folder, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# -- loading -----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_loading_and_compressing_need_no_host_library(folder):
    code = (
        f"import sys; from tokforget import Compressor; c = Compressor.from_pretrained({folder!r}); "
        "assert c.compress('the cat sat on the mat').compressed_tokens; "
        "print([m for m in ('transformers', 'peft', 'trl', 'datasets', 'huggingface_hub', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_a_loaded_policy_scores_like_the_model_it_was_saved_from(folder, base_folder, tokenizer):
    loaded = Compressor.from_pretrained(folder, backend="torch").policy
    saved = make_model(base_folder, tokenizer).policy.state_dict()
    for name, tensor in loaded.state_dict().items():
        if name != "tokens.table":  # written when saved
            assert (tensor == saved[name]).all(), name
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ranks_alike(folder, texts, dtype):
    whole, half = Compressor.from_pretrained(folder), Compressor.from_pretrained(folder, dtype=dtype)
    a, b = (one.compress(texts[0], rate=0.5) for one in (whole, half))
    assert half.policy.inputs.weight.dtype == dtype and half.policy.ngrams.total.dtype == torch.int64
    assert np.corrcoef(a.scores, b.scores)[0, 1] > 0.99 and b.compressed_tokens <= b.target_tokens


def test_without_an_argument_the_packaged_model_is_meant(monkeypatch):
    monkeypatch.setattr(packaged, "READER_MODEL", "no_such_folder")
    with pytest.raises(FileNotFoundError, match="carries no trained model.*pass the folder"):
        Compressor.from_pretrained()


def test_folders_that_are_no_model_are_named(tmp_path, folder, base_folder):
    with pytest.raises(ValueError, match="lacks config.json"):
        Compressor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type 'gpt2', not 'tokforget'"):
        Compressor.from_pretrained(base_folder)


def test_the_examples_of_the_docstrings_run(folder):
    examples = doctest.DocTestFinder().find(
        compressor_module, extraglobs={"compressor": Compressor.from_pretrained(folder)}
    )
    results = [doctest.DocTestRunner().run(example) for example in examples]
    assert sum(result.attempted for result in results) >= 10 and not any(result.failed for result in results)


# -- the policy's plan -------------------------------------------------------------------------------------------------
def test_the_first_plan_ranks_as_a_single_window_is_decided(base_folder, tokenizer, batch):
    policy = make_model(base_folder, tokenizer, window=64).eval().policy
    ids, valid = batch
    rate, counts = torch.full((3,), 0.5), torch.tensor([6, 3, 1])
    with torch.no_grad():
        decided = policy.decide(ids, valid, rate, counts).actions.bool()
        planned = policy.first_plan(ids, valid, rate)
    assert torch.equal(top_k_mask(planned, counts, valid), decided)


def test_gelu_without_a_gradient_is_gelu():
    x = torch.linspace(-12, 12, 10_001)
    with torch.no_grad():
        found = _gelu(x)
    assert torch.allclose(found, torch.nn.functional.gelu(x, approximate="tanh"), atol=1e-6, rtol=1e-6)


# -- units -------------------------------------------------------------------------------------------------------------
def pieces_of(compressor: Compressor, text: str, unit: str) -> list[str]:
    """Pieces of a text; `~` before those that are bound to the piece before."""
    item = compressor._encode([text], tags=False)[0]
    pieces = cut(text, item.offsets, unit)
    chars = pieces.chars.tolist()
    return ["~" * bool(b) + text[x:y] for x, y, b in zip(chars, chars[1:], pieces.bound)]


@pytest.mark.parametrize(
    "text, words",
    [
        ("Fuel Dilution isn't 3.14, e-mail", ["Fuel", " Dilution", " isn't", " 3.14", ",", " e-mail"]),
        ("foo\nbar", ["foo", "\n", "~bar"]),
        ("foo  \n\n  bar\n", ["foo", "  \n\n ", " bar", "\n"]),
        ("f(x)\r\n\r\n y", ["f", "~(", "~x", ")", "\r\n\r\n", " y"]),
        ("日本語のGPTテ", ["日本語", "の", "~GPT", "テ"]),
        ("한국어 텍스트", ["한국어", " 텍스트"]),
        ("e\u0301te\u0301 👩‍👩‍👧🇩🇪 क्षत्रिय", ["e\u0301te\u0301", " 👩‍👩‍👧", "🇩🇪", " क्षत्रिय"]),
        ("   ", ["   "]),
        ("", []),
    ],
)
def test_words(compressor, text, words):
    found = pieces_of(compressor, text, "word")
    assert found == words


def test_a_fragment_never_fuses_with_the_word_before_it(compressor):
    """Every choice of two pieces of "Fuel Dilution, 1, 2", as the output joins them."""
    text = "Fuel Dilution, 1, 2"
    item = compressor._encode([text], tags=False)[0]
    pieces = cut(text, item.offsets, "token")
    for first in range(len(pieces)):
        for second in range(first + 1, len(pieces)):
            ranks = np.where(np.isin(np.arange(len(pieces)), [first, second]), -np.inf, np.inf)
            output = Ranked([text], [pieces], ranks).render(ranks < 0)[0]
            left, right = (text[pieces.chars[i] : pieces.chars[i + 1]] for i in (first, second))
            assert (
                output == left + right
                if second == first + 1 or not right[0].isalnum()
                else output == f"{left} {right}"
            )


# -- budgets -----------------------------------------------------------------------------------------------------------
def ranked_words(num_words: int, seed: int) -> Ranked:
    """Words of one letter, cut so that each is a piece; scores at random."""
    text = "".join(np.random.default_rng(seed).choice(list("abcd"), num_words))
    starts = np.arange(num_words + 1)
    nothing = np.zeros(num_words, dtype=bool)
    return Ranked(
        [text], [Pieces(starts, starts, nothing, nothing)], np.random.default_rng(seed + 1).random(num_words)
    )


def merging(texts: list[str]) -> list[list[str]]:
    """A tokenizer whose merges depend on what stands side by side: "ab" and "cd" are one token, "da" is three."""
    return [re.findall("ab|cd|da|.", text.replace("da", "dxxa")) for text in texts]


@pytest.mark.parametrize("seed", range(12))
def test_search_against_all_prefixes_of_the_ranking(seed):
    """The best that keeping the k best can reach, for each k; the search may do better by passing over a piece."""
    ranked = ranked_words(25, seed)
    counts = [len(merging(ranked.render(ranked.best(k)))[0]) for k in range(26)]
    for target in range(1, 26):
        choice = run_searches([search_budget(ranked, target)], merging)[0]
        assert choice.count == len(merging(choice.outputs)[0]) <= target
        assert (
            choice.count >= min(target - 1, max(counts)) or choice.count >= max(c for c in counts if c <= target) - 1
        )


@pytest.mark.parametrize("seed", range(12))
def test_nested_search_nests_where_counts_are_not_monotone(seed):
    ranked = ranked_words(40, seed)
    kept = [run_searches([search_nested(ranked, target)], merging)[0] for target in range(1, 41)]
    assert all(choice.count <= target for target, choice in enumerate(kept, 1))
    assert all(not (a.keep & ~b.keep).any() for a, b in pairwise(kept))


def test_scores_decide(compressor):
    result = compressor.compress(TEXT, rate=0.5)
    worst_kept = np.sort(result.scores[result.keep_mask])
    passed_over = (result.scores[~result.keep_mask] > worst_kept[0]).sum()
    assert passed_over <= 2 and result.shortfall <= 1


def test_threshold_keeps_what_scores_at_least_that(compressor):
    loose, strict = (compressor.compress(TEXT, threshold=t) for t in (0.2, 0.7))
    assert np.array_equal(loose.keep_mask, loose.scores >= 0.2) and np.array_equal(
        strict.keep_mask, strict.scores >= 0.7
    )
    assert loose.target_tokens is None and 0 < strict.kept_tokens < loose.kept_tokens


def test_defaults_and_single_texts(compressor):
    result = compressor.compress(TEXT)
    assert isinstance(result, CompressedText) and str(result) == result.text
    assert result.target_tokens == result.original_tokens // 2
    assert result.compression_rate * result.compression_ratio == pytest.approx(1)
    assert compressor.compress([]) == [] and len(compressor.compress([TEXT])) == 1
    assert result.seconds > 0


@pytest.mark.parametrize("text", ["", "a", " ", "\x00", "\ud800", "<|endoftext|>", "\n\n\n", "好", "👩‍👩‍👧"])
def test_short_texts_are_defined(compressor, text):
    result = compressor.compress(text, rate=0.5)
    assert result.compressed_tokens <= max(1, result.original_tokens // 2)
    assert compressor.compress(text, rate=1.0).text == text
    assert (result.returned_whole == "no tokens") == (text == "")


def test_special_tokens_in_a_text_are_text(compressor):
    result = compressor.compress("a <|endoftext|> b", rate=1.0)
    assert 0 not in result.kept_ids and result.text == "a <|endoftext|> b"


def test_small_texts_can_be_left_alone(compressor):
    small, large = compressor.compress(["two words", TEXT], rate=0.3, min_tokens=20)
    assert small.text == "two words" and small.returned_whole == "min_tokens" and small.compression_rate == 1
    assert large.returned_whole is None and large.compression_rate < 0.31


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rate": 0.5, "target_tokens": 3}, "one of `rate`, `target_tokens`, `threshold` and `quality`"),
        ({"rate": 4.0}, "for four times smaller pass 0.25"),
        ({"target_tokens": 0}, "at least 1, got 0"),
        ({"threshold": 1.5}, "in (0, 1)"),
        ({"unit": "sentence"}, "`unit` must be one of ('token', 'word', 'auto')"),
        ({"budget": "all"}, "`budget` must be one of"),
        ({"protect": "number"}, "knows no 'number'. Did you mean 'numbers'? It takes code_fences, emails"),
        ({"protect": "re:("}, "broken regular expression"),
        ({"protect": (5, 900)}, "ends at character 900"),
        ({"nested": True, "prefix_stable": True}, "does not nest"),
        ({"prefix_stable": True, "target_tokens": 5}, "pass `rate`"),
        ({"prefix_stable": True, "protect": "last:3"}, "leave out 'last:n'"),
        ({"budget": "corpus", "threshold": 0.5}, "is no budget"),
        ({"tags": True, "target_tokens": 9}, "pass `rate`"),
        ({"min_tokens": -1}, "at least 0"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(compressor, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compressor.compress(TEXT, **options)


def test_wrong_types_are_refused(compressor):
    with pytest.raises(TypeError, match="Decode bytes first"):
        compressor.compress([b"bytes"])
    with pytest.raises(ValueError, match="Protected spans belong to one text"):
        compressor.compress([TEXT, TEXT], protect=(0, 3))


# -- protection --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, text, found",
    [
        ("numbers", "It cost $9.99, 50 % of 1,000 at 12:30 on 2024-05-01 for GPT2.", ["$9.99", "50 %", "1,000", "12:30", "2024-05-01", "GPT2"]),
        ("urls", "(see http://a.b/c_(d)), www.x.org. https://y.z/?q=1!", ["http://a.b/c_(d)", "www.x.org", "https://y.z/?q=1"]),
        ("emails", "Write to a.b+c@d-e.co.uk, or @nobody.", ["a.b+c@d-e.co.uk"]),
        ("paths", "In /usr/lib, ~/x.py, ./a/b, src/main.c and C:\\a b, either/or.", ["/usr/lib", "~/x.py", "./a/b", "src/main.c", "C:\\a"]),
        ("inline_code", "Use `x y` or ``a`b``, not ` alone.", ["`x y`", "``a`b``"]),
        ("identifiers", "my_var, camelCase, HTTPServer, NASA, os.path, f(), --flag, $HOME, 0xFF, plain", ["my_var", "camelCase", "HTTPServer", "NASA", "os.path", "f()", "--flag", "$HOME", "0xFF"]),
        ("code_fences", "1. a:\n    ```sh\n    rm\n    ```\n- b\n\t~~~\n\tx\nend", ["    ```sh\n    rm\n    ```", "\t~~~\n\tx\n"]),
        ("code_fences", "> ```\n> x\n> ```\n> ~~~\n> y\nout", ["> ```\n> x\n> ```", "> ~~~\n> y\n"]),
        ("code_fences", "```x``` text\n    ```\nno fence", []),
        ("code_fences", "```md\n> ```\n> x\n> ```\ny\n```\nz", ["```md\n> ```\n> x\n> ```\ny\n```"]),
        ("code_fences", "> ```\n> > ```\n> x\n> ```\nz", ["> ```\n> > ```\n> x\n> ```"]),
        ("code_fences", "```\nx\n    ```\ny\n   ```\nz", ["```\nx\n    ```\ny\n   ```"]),
        ("code_fences", "> ```\n> x\n~~~\ny\n~~~\nz", ["> ```\n> x\n", "~~~\ny\n~~~"]),
        ("code_fences", "a\n```py\nx\n~~~\n```\nb\n~~~\nopen", ["```py\nx\n~~~\n```", "~~~\nopen"]),
    ],
)  # fmt: skip
def test_built_in_protectors(name, text, found):
    assert [text[a:b] for a, b in BUILT_IN[name](text)] == found


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "1",
        "-",
        ".",
        "/",
        "`",
        "``x",
        "a_",
        "a.",
        "1,",
        "http://)",
        "@",
        "a@",
        "a@b.",
        "(",
        "~~~\n",
        "\\\\",
        "x://",
    ],
)
def test_protectors_take_linear_time(name, unit):
    """Ten times the text takes some ten times as long; a pattern that backtracks over the whole text takes a hundred times."""

    def seconds(repeats: int) -> float:
        began = time.process_time()
        for _ in BUILT_IN[name](unit * repeats):
            pass
        return time.process_time() - began

    assert seconds(50_000) < 40 * seconds(5_000) + 0.2  # 0.2 s: where the shorter one is too fast to be measured


def test_what_is_protected_survives_byte_for_byte(compressor):
    protect = ["numbers", "urls", "emails", "inline_code", re.compile("crates"), lambda text: [(0, 8)], "last:2"]
    result = compressor.compress(TEXT, rate=0.9, protect=protect)
    for piece in (
        "12:30",
        "3,000",
        "https://example.org/list?id=7",
        "bob@example.com",
        "`run()`",
        "crates",
        "The ship",
    ):
        assert piece in result.text
    assert result.text.endswith(TEXT[result.kept_spans[-1][0] :]) and result.compressed_tokens <= result.target_tokens


def test_impossible_budgets_name_the_smallest_feasible_one(compressor):
    with pytest.raises(
        ValueError, match=r"protected takes \d+ tokens of .*, the budget is 3. The smallest feasible budget is \d+"
    ) as error:
        compressor.compress(TEXT, target_tokens=3, protect="urls")
    smallest = int(re.search(r"feasible budget is (\d+)", str(error.value))[1])
    assert compressor.compress(TEXT, target_tokens=smallest, protect="urls").shortfall == 0
    with pytest.warns(UserWarning, match="Returned are"):
        result = compressor.compress(TEXT, target_tokens=3, protect="urls", on_impossible="warn")
    assert result.compressed_tokens == smallest and result.shortfall == 3 - smallest


def test_tags_are_read():
    text = "a<keep>b</keep>c<drop>d</drop><llmlingua, rate=0.4>e</llmlingua><llmlingua rate='0.2', compress=False>f</llmlingua><keep rate=0.8>g</keep><llmlingua>h</llmlingua>"
    plain, segments = parse_tags(text)
    assert plain == "abcdefgh"
    assert segments == [
        Segment(1, 2, 1.0),
        Segment(3, 4, 0.0),
        Segment(4, 5, 0.4),
        Segment(5, 6, 1.0),
        Segment(6, 7, 0.8),
    ]


@pytest.mark.parametrize(
    "text, message",
    [("<keep>a", "never closed"), ("a</keep>", "closes nothing"), ("<keep><drop>", "do not nest"), ("<keep rate=x></keep>", "got x"),
     ("<drop rate=1></drop>", "takes no attributes"), ("<llmlingua, squash>", "cannot be read"), ("<keep rate=2>", "in [0, 1]")],
)  # fmt: skip
def test_broken_tags_are_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_tags(text)


def test_segments_have_rates_of_their_own(compressor):
    body = "the quick brown fox jumps over a lazy dog while it rains and nobody at all knows why " * 3
    text = f"<keep>Exactly   this.</keep> {body}<drop> not this </drop><keep rate=0.8>{body}</keep><llmlingua, rate=0.2>{body}</llmlingua>"
    result = compressor.compress(text, rate=0.5, tags=True)
    plain = parse_tags(text)[0]
    assert result.text.startswith("Exactly   this.") and "not" not in result.text
    dense, sparse = (plain.index(" not this ") + 10, plain.index(" not this ") + 10 + len(body))
    item = compressor._encode([plain], tags=False)[0]
    inside = [
        (item.offsets[:, 0] >= a) & (item.offsets[:, 1] <= b) for a, b in ((dense, sparse), (sparse, len(plain)))
    ]
    assert result.keep_mask[inside[0]].mean() == pytest.approx(0.8, abs=0.06)
    assert result.keep_mask[inside[1]].mean() == pytest.approx(0.2, abs=0.06)
    assert 0 <= result.shortfall <= 1


# -- streams -----------------------------------------------------------------------------------------------------------
def test_streams_are_lazy_exact_and_join(compressor):
    lines = [f"line {i}: the quick brown fox jumps over lazy dog number {i * i}\n" for i in range(400)]
    read = []
    stream = compressor.compress_stream((read.append(line) or line for line in lines), rate=0.4, block_chars=2000)
    first = next(stream)
    assert len(read) < 150, "the first block came before the stream was read"
    results = [first, *stream]
    text, total = "".join(lines), 0
    for result in results:
        end = result.start + max(result.kept_spans.max(), result.dropped_spans.max())
        total += result.compressed_tokens
        assert total <= 0.4 * len(compressor.tokenizer.encode(text[:end]).ids) + 1
        assert text[result.start :].startswith(text[result.start : end])
    assert end == len(text)
    joined = "".join(result.text for result in results)
    assert len(compressor.tokenizer.encode(joined).ids) <= total
    assert all(result.text[0].isspace() for result in results[1:]), "blocks join like words"
    with pytest.raises(ValueError, match="does not take target_tokens"):
        compressor.compress_stream(lines, target_tokens=3)
    assert list(compressor.compress_stream([], rate=0.5)) == []


@pytest.mark.parametrize("unit", ["token", "word"])
def test_a_stream_protects_over_the_ends_of_its_blocks(compressor, unit):
    code = "".join(f"    value_{i} = function(value_{i - 1}, {i})  # a line of code\n" for i in range(120))
    prose = "the quick brown fox jumps over a lazy dog while it rains 30 September 2027 and so on " * 20
    text = f"{prose}\n```python\n{code}```\n{prose}"
    results = list(
        compressor.compress_stream(
            [text], rate=0.9, unit=unit, protect="code_fences", block_chars=700, on_impossible="warn"
        )
    )
    assert len(results) > 8
    output = "".join(result.text for result in results)
    assert code in output
    assert len(output) < len(text) - 200, "prose behind the fence was kept too"
    if unit == "word":
        assert set(re.findall(r"\S* ?September ?\S*", output)) == {"30 September 2027"}


@pytest.mark.parametrize("parted", ["lines", "words"])
def test_fences_of_a_text_in_parts_are_those_of_the_whole(parted):
    """Whatever a part begins with: the middle of a line, the code of a list item, a mark that closes nothing."""
    draw = random.Random(0)
    lines = [
        "```",
        "~~~",
        "```py",
        "a ``` b",
        "1. a:",
        "    ```sh",
        "    ```",
        "> ```",
        "> x",
        "> > ```",
        "- b",
        "  ```",
        "",
        "word ```",
        "x",
    ]
    cut_at = {"lines": r"[^\n]*\n", "words": r"\s*\S+\s?|\s+"}[parted]
    for _ in range(400):
        text = "\n".join(draw.choices(lines, k=draw.randrange(1, 12))) + "\n"
        whole = np.zeros(len(text), dtype=bool)
        for start, end in scan_fences(text)[0]:
            whole[start:end] = True
        found, place, at = np.zeros(len(text), dtype=bool), Place(), 0
        for part in re.findall(cut_at, text):
            spans, place = scan_fences(part, place)
            for start, end in spans:
                found[at + start : at + end] = True
            at += len(part)
        assert at == len(text)
        missing = "".join(np.array(list(text))[whole & ~found])
        assert not missing.strip(" >`~"), (text, missing)  # of a line whose fence did not show yet
        if parted == "lines":
            assert (found == whole).all(), text


def test_a_block_of_a_stream_may_begin_with_a_mark_in_the_middle_of_a_line(compressor):
    code = "".join(f"say ``` value {i} and more of it\n" for i in range(200))
    text = f"before it\n```\n{code}```\nbehind it\n"
    for size in (60, 75, 90):
        done = compressor.compress_stream(
            [text], rate=0.5, protect="code_fences", block_chars=size, on_impossible="warn"
        )
        assert code in "".join(result.text for result in done)


# -- restoring ---------------------------------------------------------------------------------------------------------
def test_saved_results_restore_like_the_original(folder, texts, tmp_path):
    compressor = Compressor.from_pretrained(folder)
    results = compressor.compress(texts[:3], rate=0.5)
    results[0].to_json(tmp_path / "result.json")
    loaded = CompressedText.from_json(tmp_path / "result.json")
    restored = compressor.restore([loaded, *results[1:]])
    assert restored[0].text == compressor.restore(results[0]).text, "alone and in a batch, saved and not"
    ids = compressor._encode(texts[:1], tags=False)[0].ids
    pair = compressor.restore((ids, results[0].keep_mask))
    assert np.array_equal(pair.input_ids, restored[0].input_ids)
    for text, result, whole in zip(texts, results, restored):
        assert whole.is_restoration and whole.label.startswith("Restoration, not the original")
        assert whole.restored_tokens == result.original_tokens - result.kept_tokens
        assert len(whole.confidence) == result.original_tokens and (whole.confidence[result.keep_mask] == 1).all()
        kept = [text[a:b] for a, b in result.kept_spans]
        outside = np.ones(len(whole.text), dtype=bool)
        for a, b in whole.restored_spans:
            outside[a:b] = False
        assert "".join(np.array(list(whole.text))[outside]) == "".join(kept), "kept text stands letter for letter"


def test_unsure_tokens_leave_visible_gaps(folder, texts):
    compressor = Compressor.from_pretrained(folder)
    result = compressor.compress(texts[0], rate=0.5)
    restored = compressor.restore(result, abstain_below=1.0, gap="<?>")
    assert restored.abstained == result.original_tokens - result.kept_tokens and restored.restored_tokens == 0
    assert (
        restored.text.count("<?>") == len(result.dropped_spans)
        and (restored.input_ids == -1).sum() == restored.abstained
    )
    assert "left open" in restored.label
    with pytest.raises(ValueError, match="in \\(0, 1\\]"):
        compressor.restore(result, abstain_below=2)


def test_long_texts_are_restored_in_windows(folder, texts):
    compressor = Compressor.from_pretrained(folder)
    text = " ".join(texts[:4])
    result = compressor.compress(text, rate=0.6)
    assert result.original_tokens > compressor.reconstructor.max_tokens
    restored = compressor.restore(result, batch_size=3)
    assert len(restored.input_ids) == result.original_tokens
    assert np.array_equal(restored.input_ids[result.keep_mask], result.kept_ids)


def test_a_foreign_tokenizer_is_noticed(folder, compressor):
    with pytest.raises(ValueError, match="compressed with another tokenizer"):
        Compressor.from_pretrained(folder).restore(compressor.compress(TEXT))
    with pytest.raises(ValueError, match="Got 2 ids for a mask of 3 with 1 kept"):
        Compressor.from_pretrained(folder).restore(([1, 2], [True, False, False]))
    with pytest.raises(ValueError, match="lacks kept_ids"):
        CompressedText.from_dict({"text": "a", "original_tokens": 1, "compressed_input_ids": [], "kept_indices": [],
                                  "scores": [], "kept_spans": [], "dropped_spans": [], "separated": []})  # fmt: skip


# -- explaining --------------------------------------------------------------------------------------------------------
class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.spans, self.inside = [], [], None

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("class") if tag == "span" and "title" in dict(attrs) else None
        if self.inside:
            self.spans.append([self.inside, ""])

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.spans[-1][1] += data


def test_the_page_shows_the_text_and_nothing_from_outside(compressor, tmp_path):
    text = "A <script>alert(1)</script> &amp; \x1b[31m日本 é\ud800 " + TEXT
    explanation = compressor.explain(text, rate=0.5)
    page = _Page()
    page.feed(explanation.to_html(tmp_path / "page.html"))
    assert "".join(part for _, part in page.spans) == text.replace("\x1b", "␛").replace("\ud800", "\ufffd")
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    kept = "".join(part for state, part in page.spans if state == "kept")
    spans = explanation.result.kept_spans
    assert kept == "".join(text[a:b] for a, b in spans).replace("\x1b", "␛").replace("\ud800", "\ufffd")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_terminal_shows_what_was_dropped_with_and_without_colours(compressor):
    explanation = compressor.explain(TEXT, rate=0.5)
    plain = Console(width=300, record=True, force_terminal=False, file=StringIO())
    plain.print(explanation)
    shown = plain.export_text()
    for piece, score, kept in explanation:
        assert 0 < score < 1 and (kept or f"[{piece}]" in shown)
    coloured = Console(width=300, force_terminal=True, color_system="truecolor", record=True, file=StringIO())
    coloured.print(explanation)
    assert TEXT in coloured.export_text(clear=False) and "\x1b[" in coloured.export_text(styles=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"texts": None}, "`texts` must be a string or a sequence of strings, got None. Leave out what is missing"),
        ({"texts": {"text": ["a"], "id": [1]}}, "got a dict, .* Pass one of its columns, there are 'text', 'id'"),
        ({"texts": pandas.DataFrame({"text": ["a"], "id": [1]})}, "got a DataFrame, .* Pass one of its columns, there are 'text', 'id'"),
        ({"texts": pyarrow.table({"text": ["a"]})}, "got a Table, .* Pass one of its columns, there are 'text'"),
        ({"texts": datasets.Dataset.from_dict({"text": ["a"]})}, "got a Dataset, .* Pass one of its columns, there are 'text'"),
        ({"texts": 5}, "sequence of strings, got a int, 5"),
        ({"texts": b"abc"}, "got a bytes, b'abc'. Decode bytes first"),
        ({"texts": {"a"}}, "Pass a list: a set has no order"),
        ({"texts": ["a", None]}, "Text 1 of `texts` must be a string, got None"),
        ({"texts": ["a", b"b"]}, "Text 1 of `texts` must be a string, got a bytes, b'b'. Decode bytes first"),
        ({"rate": "0.5"}, "`rate` must be a number, got '0.5', a str"),
        ({"rate": True}, "`rate` must be a number, got True, a bool"),
        ({"rate": 50}, r"`rate` must lie in \(0, 1\], got 50. .* for 50 % pass 0.5"),
        ({"rate": float("nan")}, r"`rate` must lie in \(0, 1\], got nan"),
        ({"threshold": "x"}, "`threshold` must be a number"),
        ({"quality": "high"}, "`quality` must be a number"),
        ({"min_tokens": "x"}, "`min_tokens` must be a whole number of at least 0, got 'x'"),
        ({"min_tokens": None}, "`min_tokens` must be a whole number of at least 0, got None"),
        ({"min_tokens": float("nan")}, "`min_tokens` must be a whole number of at least 0, got nan"),
        ({"min_tokens": 2.5}, "`min_tokens` must be a whole number"),
        ({"nested": "no"}, "`nested` must be True or False, got 'no', a str"),
        ({"prefix_stable": "false"}, "`prefix_stable` must be True or False"),
        ({"tags": 1}, "`tags` must be True or False, got 1, a int"),
        ({"mark_omissions": None}, "`mark_omissions` must be True or False, got None"),
        ({"unit": 0}, "`unit` must be one of"),
        ({"unit": ""}, "`unit` must be one of"),
        ({"question": 5}, "`question` must be a string, .* got a int, 5"),
        ({"question": b"a"}, "`question` must be a string, .* got a bytes"),
        ({"question": {"q": "a"}}, "`question` must be a string, .* got a dict"),
        ({"protect": b"numbers"}, "`protect` takes names, .* got a bytes: b'numbers'"),
        ({"protect": re.compile(b"x")}, "a regular expression for bytes, b'x': compile it from a string"),
        ({"protect": lambda text: None}, "A function in `protect` gave a NoneType, None; it must give spans"),
        ({"protect": lambda text: 5}, "A function in `protect` gave a int, 5; it must give spans"),
        ({"target_tokens": True}, "`target_tokens` must be a whole number of at least 1, got True"),
        ({"protect": 5}, "`protect` takes names, .* got a int: 5"),
        ({"protect": [None]}, "`protect` takes names"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),  # an address is another one in every process
)  # fmt: skip
def test_what_is_of_the_wrong_type_is_named_in_one_line(compressor, words, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        compressor.compress(**({"texts": "the cat sat"} | words))
    assert "\n" not in str(error.value)


def test_a_column_of_a_table_is_a_row_of_texts(compressor):
    texts = ["the cat sat on the mat", "a dog ran to the red house"]
    expected = [result.text for result in compressor.compress(texts)]
    for column in (
        pandas.Series(texts),
        np.array(texts),
        datasets.Dataset.from_dict({"text": texts})["text"],
        tuple(texts),
    ):
        assert [result.text for result in compressor.compress(column)] == expected


def test_a_span_may_be_of_numpy(compressor):
    span = (np.int64(0), np.int64(7))
    assert compressor.compress("the cat sat on the mat", rate=0.5, protect=[span]).text.startswith("the cat")


@pytest.mark.parametrize("parts", [None, 5, b"abc", {"text": "the cat"}, {"the cat"}], ids=str)
def test_what_is_no_stream_is_named_before_it_is_read(compressor, parts):
    with pytest.raises(TypeError, match="`parts` must be strings that follow each other, .* got a ") as error:
        compressor.compress_stream(parts, rate=0.5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, -1, 1.5, "5", None, True], ids=str)
def test_blocks_of_no_size_do_not_go_on_for_ever(compressor, size):
    with pytest.raises(ValueError, match="`block_chars` must be a whole number of at least 1, got "):
        compressor.compress_stream([TEXT], rate=0.5, block_chars=size)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"abstain_below": "x"}, "`abstain_below` must be a number, got 'x'"),
        ({"gap": None}, "`gap` must be a string, got a NoneType"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, got 0"),
        ({"batch_size": "3"}, "`batch_size` must be a whole number of at least 1, got '3'"),
    ],
    ids=str,
)
def test_what_restoring_cannot_use_is_named_in_one_line(compressor, words, message):
    with pytest.raises((TypeError, ValueError), match=message):
        compressor.restore(compressor.compress(TEXT), **words)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        (5, {}, "A model is named by its folder or its id on the Hub, got a int, 5"),
        (b"x", {}, "A model is named by .* got a bytes"),
        ("", {}, "A model is named by .* got an empty name"),
        (__file__, {}, "is a file: pass the model's folder"),
        ("embeded", {}, "Did you mean 'embedded'"),
        ("embedded", {"revsion": "x"}, "Loading a model takes no option 'revsion'. Did you mean 'revision'"),
        (None, {"chache_dir": "x"}, "takes no option 'chache_dir'. Did you mean 'cache_dir'"),
        ("embedded", {"base_model": 5}, "A model is named by .* got a int, 5"),
        ("embedded", {"device": "cud"}, "`device` 'cud' cannot be used: Expected one of"),
        ("embedded", {"device": "cuda:99"}, "`device` 'cuda:99' cannot be used: "),
        ("embedded", {"dtype": "float61"}, "`dtype` must be a floating type such as torch.bfloat16, got 'float61'"),
        ("embedded", {"dtype": "int8"}, "`dtype` must be a floating type"),
    ],
    ids=str,
)
def test_a_model_that_cannot_be_loaded_so_is_named_in_one_line(name, words, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        Compressor.from_pretrained(name, **words)
    assert "\n" not in str(error.value)


# -- what users' own functions and texts bring -------------------------------------------------------------------------
@pytest.mark.parametrize("given", [(-1, 4), (0, 10**9), (5, 3), "ab", (1.5, 2), 7, (1, 2, 3)], ids=str)
@pytest.mark.parametrize("how", [{}, {"prefix_stable": True}], ids=str)
def test_a_function_that_gives_no_spans_is_one_clear_error(compressor, given, how):
    """A span before the text voided the protection of everything else; one behind it was an IndexError."""
    with pytest.raises(ValueError, match=r"A function in `protect` gave .*; a span is \(start, end\) in characters"):
        compressor.compress("it is 12 o'clock now", rate=0.9, protect=["numbers", lambda text: [given]], **how)


def test_a_function_protects_beside_names_and_an_empty_span_protects_nothing(compressor):
    text = "it is 12 o'clock now, and 7 is gone"
    find = lambda text: [(0, 0), np.array([0, 2]), (len(text), len(text))]  # noqa: E731
    result = compressor.compress(text, rate=0.6, protect=["numbers", find], on_impossible="warn")
    assert result.text.startswith("it") and "12" in result.text and "7" in result.text
    assert (
        compressor.compress(text, rate=0.4, protect=lambda text: [(3, 3)]).text
        == compressor.compress(text, rate=0.4).text
    )


def test_what_only_begins_like_a_tag_is_text(compressor):
    text = "send <keep-alive> and <drop.column> and <llmlinguatool> on"
    assert compressor.compress(text, rate=1.0, tags=True).text == text
    assert (
        "<keep-alive>"
        in compressor.compress(f"<keep>{text}</keep> now", rate=0.9, tags=True, on_impossible="warn").text
    )


def test_flags_in_a_row_are_kept_or_dropped_one_by_one(compressor):
    for text in ("🇩🇪🇫🇷🇮🇹🇪🇸", "in 🇩🇪🇫🇷 or 🇮🇹🇪🇸🇵🇹!", "🇩🇪🇫🇷a🇮🇹", "\U0001f1e9🇫"):
        (item,) = compressor._encode([text], tags=False)
        edges = cut(text, item.offsets, "token").chars
        pieces = [text[a:b] for a, b in pairwise(edges)]
        assert [piece for piece in pieces if piece >= "\U0001f1e6"] == re.findall("[\U0001f1e6-\U0001f1ff]{1,2}", text)
    assert 0 < compressor.compress("🇩🇪🇫🇷🇮🇹🇪🇸" * 5, rate=0.5).kept_rate < 1

"""Documents, splits and blocks."""

import gzip
import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict
from transformers import ByT5Tokenizer

from tokforget.data.blocks import BlockCollator, data_fingerprint, load_blocks, load_documents
from tokforget.data.duplicates import NearDuplicates, shingles, signature
from tokforget.data.embedded_corpus import embedded_documents
from tokforget.data.sources import Document, Source, join_articles, open_source
from tokforget.data.splits import DocumentSplits, SplitPlan, plan_splits, split_of


def test_the_embedded_corpus_is_divided_by_document():
    documents = embedded_documents()
    assert open_source("embedded").divided_by_id, "by name, as the packaged model was trained, whatever the seed"
    assert sum(map(len, documents.values())) > 1_500_000
    splits = load_documents("embedded")
    assert 0.98 * len(documents) < sum(map(len, splits.values())) <= len(documents), "near copies go"
    texts = [text for split in splits.values() for text in split]
    assert len(set(texts)) == len(texts), "a document stands in one split only"
    shares = {name: len(split) / len(texts) for name, split in splits.items()}
    assert shares["train"] > 0.75 and 0.04 < shares["validation"] < 0.13 and 0.04 < shares["test"] < 0.13


def test_a_split_depends_on_the_name_alone():
    assert split_of("topic/assert") == "train"  # as the packaged model was trained
    assert len({split_of(f"document {n}") for n in range(100)}) == 3


@pytest.mark.parametrize("streaming", [False, True], ids=["held", "streamed"])
@pytest.mark.parametrize(
    "kind",
    ["list.json", "rows.json", "columns.json", "lines.json", "rows.jsonl", "rows.jsonl.gz", "strings.jsonl", "table.csv",
     "table.csv.gz", "table.parquet", "marked.txt", "folder"],
)  # fmt: skip
def test_local_sources(tmp_path, kind, streaming):
    texts = [f'document number {n}, "and" some\nmore words' for n in range(60)]
    path = tmp_path / kind
    lines = "\n".join(json.dumps({"text": text, "other": 1}) for text in texts)
    if kind == "folder":
        path.mkdir()
        for n, text in enumerate(texts):
            (path / f"{n:02d}.txt").write_text(text)
    elif kind == "table.parquet":
        pa.parquet.write_table(pa.table({"other": range(60), "text": texts}), path, row_group_size=7)
    else:
        content = {
            "list": json.dumps(texts),
            "rows.json": json.dumps([{"text": text} for text in texts]),
            "columns": json.dumps({"text": texts}),
            "lines": lines,
            "rows.jsonl": lines + "\n\n",
            "strings": "\n".join(map(json.dumps, texts)),
            "table": "other,text\n" + "\n".join('1,"{}"'.format(t.replace('"', '""')) for t in texts),
            "marked": "<|endoftext|>\n".join(texts) + "<|endoftext|>",
        }[next(k for k in (kind, kind.removesuffix(".gz"), kind.split(".")[0]) if k in
               ("list", "rows.json", "columns", "lines", "rows.jsonl", "strings", "table", "marked"))]  # fmt: skip
        (gzip.open if kind.endswith(".gz") else open)(path, "wt", encoding="utf-8").write(content)
    documents = open_source(str(path), streaming=streaming).splits["train"]
    assert [document.text for document in documents] == texts
    assert [document.text for document in documents] == texts, "can be gone through again"
    assert len({document.id for document in documents}) == 60
    splits = load_documents(str(path))
    assert sorted(text for split in splits.values() for text in split) == sorted(texts)
    assert splits["train"] and splits["validation"] and splits["test"]


def test_files_that_name_their_split_are_splits_of_the_source(tmp_path):
    for name, words in (("wiki.train.tokens", "red"), ("wiki.valid.tokens", "blue"), ("test/part1.txt", "green")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(words)
    assert load_documents(str(tmp_path)) == {"train": ["red"], "validation": ["blue"], "test": ["green"]}
    (tmp_path / "notes.txt").write_text("names no split")
    assert list(open_source(str(tmp_path)).splits) == ["train"], "one file without a split: none is trusted"


def test_wiki_lines_are_joined_where_it_is_safe(tmp_path):
    lines = [" \n", " = One = \n", " \n", " a line \n", " = = Part = = \n", " = Two = \n", " more \n"]
    articles = ["= One = \n \n a line \n = = Part = =", "= Two = \n more"]
    (tmp_path / "wiki.valid.tokens").write_text("".join(lines))
    (tmp_path / "mywiki.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    (tmp_path / "other.txt").write_text("".join(lines))
    (tmp_path / "wiki_of_paragraphs.json").write_text(json.dumps(["= One = \n a line", "= Two = \n more"]))

    def read(name):
        return [document.text for document in open_source(str(tmp_path / name)).splits["train"]]

    assert read("wiki.valid.tokens") == read("mywiki.jsonl") == articles
    assert read("other.txt") == ["".join(lines).strip()], "nothing says that this is WikiText"
    assert read("wiki_of_paragraphs.json") == ["= One = \n a line", "= Two = \n more"]


@pytest.mark.parametrize(
    ("available", "wanted", "own", "shares"),
    [
        (["train"], {}, {"train": "train"}, {"validation": 0.08, "test": 0.08}),
        (["all"], {}, {"train": "all"}, {"validation": 0.08, "test": 0.08}),
        (["validation"], {}, {"train": "validation"}, {"validation": 0.08, "test": 0.08}),
        (["train", "dev"], {}, {"train": "train", "validation": "dev"}, {"test": 0.08}),
        (["test", "train", "validation"], {}, {"train": "train", "validation": "validation", "test": "test"}, {}),
        (["train", "validation"], {"val_split": "0.1", "test_split": "validation"},
         {"train": "train", "test": "validation"}, {"validation": 0.1}),
        (["train"], {"train_split": "0.5", "val_split": "0.25", "test_split": "0.25"}, {"train": "train"},
         {"train": 0.5, "validation": 0.25, "test": 0.25}),
        (["a", "b", "c"], {"train_split": "c", "val_split": "a", "test_split": "b"},
         {"train": "c", "validation": "a", "test": "b"}, {}),
    ],
)  # fmt: skip
def test_where_the_splits_come_from(available, wanted, own, shares):
    assert plan_splits(available, **wanted) == SplitPlan(own, shares)


@pytest.mark.parametrize(
    ("available", "wanted", "message"),
    [
        (["a", "b"], {}, "no training split; it has `a`, `b`. Name one as `train_split`"),
        (["train"], {"val_split": "dev"}, "`val_split` 'dev' is neither a split of the source, which has `train`, nor a share"),
        (["train"], {"test_split": "1.5"}, "must lie in (0, 1), got 1.5"),
        (["train"], {"train_split": "0.9"}, "must sum to 1 at most"),
        (["train"], {"val_split": "0.5", "test_split": "0.5"}, "must sum to 1 at most"),
        (["train", "test"], {"val_split": "test", "test_split": "test"}, "must differ"),
    ],
)  # fmt: skip
def test_splits_that_cannot_be_are_refused(available, wanted, message):
    with pytest.raises(ValueError) as refused:
        plan_splits(available, **wanted)
    assert message in str(refused.value)


def test_shares_are_kept_and_the_seed_moves_documents():
    names = [f"document {n}" for n in range(4000)]
    for seed in (0, 1):
        found = Counter(split_of(name, 0.2, 0.1, 0.5, seed) for name in names)
        for split, share in (("validation", 0.2), ("test", 0.1), ("train", 0.5), (None, 0.2)):
            assert abs(found[split] / 4000 - share) < 0.03
    assert any(split_of(name, seed=1) != split_of(name) for name in names[:100])


# -- duplicates --------------------------------------------------------------------------------------------------------
def story(seed: int, words: int = 120) -> list[str]:
    vocabulary = [f"word{n}" for n in range(500)]
    return random.Random(seed).choices(vocabulary, k=words)


def test_shingles_are_word_5_grams():
    assert len(shingles("a b c d e f g")) == 3 and len(shingles("A  b\nC d e f g")) == 3
    assert set(shingles("a b c d e f g")) == set(shingles("A  b\nC d e f g"))
    assert len(set(shingles("a b c d e")) & set(shingles("b a c d e"))) == 0, "order counts"
    assert len(shingles("only three words")) == 1 and len(shingles(" ")) == 0


@pytest.mark.parametrize("changes", [0, 2, 5, 12, 40])
def test_signatures_estimate_the_jaccard_similarity(changes):
    words = story(1, 400)
    other = list(words)
    for at in range(changes):
        other[7 + 9 * at] = "changed"
    sets = [{tuple(text[at : at + 5]) for at in range(len(text) - 4)} for text in (words, other)]
    exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    one, two = signature(" ".join(words)), signature(" ".join(other))
    assert abs((one == two).mean() - exact) < 4 * (exact * (1 - exact) / 128) ** 0.5 + 1e-9
    index = NearDuplicates(0.7)
    index.add(one)
    assert index.match(two) == ((one == two).mean() >= 0.7)
    assert not index.match(signature(" ".join(story(2, 400))))


def copies() -> dict[str, list[Document]]:
    test, validation = story(1), story(2)
    near_test, near_validation = list(test), list(validation)
    near_test[60] = near_validation[60] = "changed"
    texts = {
        "train": [test, story(3), near_validation, story(4), story(3), validation, ["short", "one"], ["short", "two"]],
        "validation": [near_test, validation, test, validation, ["short", "one"]],
        "test": [test, story(5), story(5)],
    }
    return {
        split: [Document(f"{split}#{at}", " ".join(words)) for at, words in enumerate(some)]
        for split, some in texts.items()
    }


def test_held_out_copies_stay_and_training_copies_go():
    source = Source(copies())
    splits = DocumentSplits(source, plan_splits(source.splits))
    for _ in range(2):
        staying = [document.id for _, document in splits.without_near_duplicates()]
        assert staying == ["train#1", "train#3", "train#7", "validation#1", "validation#4", "test#0", "test#1"]
        assert splits.dropped == {
            ("exact_duplicate_across_splits", "train"): 3,  # of test, of validation, and the short one
            ("near_duplicate_across_splits", "train"): 1,
            ("exact_duplicate_within_split", "train"): 1,
            ("near_duplicate_across_splits", "validation"): 1,
            ("exact_duplicate_across_splits", "validation"): 1,
            ("exact_duplicate_within_split", "validation"): 1,
            ("exact_duplicate_within_split", "test"): 1,
        }


def test_at_threshold_1_only_exact_copies_go():
    source = Source(copies())
    splits = DocumentSplits(source, plan_splits(source.splits), duplicate_threshold=1.0)
    staying = [document.id for _, document in splits.without_near_duplicates()]
    assert "train#2" in staying and "validation#0" in staying and "train#0" not in staying


def test_no_document_of_the_embedded_corpus_has_a_near_copy_in_training():
    """Against a slow search by exact similarity; 0.85 leaves room for the error of an estimate around 0.7."""
    splits = {split: [set(shingles(t).tolist()) for t in texts] for split, texts in load_documents("embedded").items()}
    for held_out in (*splits["validation"], *splits["test"]):
        for train in splits["train"]:
            assert len(held_out & train) < 0.85 * max(len(held_out | train), 1)


def test_a_document_that_occurs_twice_stands_in_one_split(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([f"text {n % 70}" for n in range(210)]))
    assert sum(len(split) for split in load_documents(str(tmp_path / "a.json")).values()) == 70


@pytest.mark.parametrize("name", ["one.txt", "notes.md"])
def test_one_long_text_is_divided_by_place(tmp_path, name):
    text = " ".join(f"word{n}" for n in range(2000))
    (tmp_path / name).write_text(text)
    splits = load_documents(str(tmp_path / name))
    assert "".join(part for split in splits.values() for part in split) == text
    assert [len(split) for split in splits.values()] == [1, 1, 1]
    assert 0.83 < len(splits["train"][0]) / len(text) < 0.85 and splits["test"][0].startswith(" word")


def test_an_end_mark_divides_a_text_file(tmp_path):
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join(f"story {n}" for n in range(80)))
    splits = load_documents(str(tmp_path / "stories.txt"))
    assert sorted(t for split in splits.values() for t in split) == sorted(f"story {n}" for n in range(80))


def test_articles_begin_at_first_level_headings():
    lines = ["", " = One = \n", "text of one\n", " = = Part = = \n", "more\n", " = Two = \n", "text of two\n"]
    assert list(join_articles(lines)) == ["= One = \ntext of one\n = = Part = = \nmore", "= Two = \ntext of two"]


@pytest.mark.parametrize("max_length", [1, 3, 20])
def test_blocks_lose_nothing_and_know_their_characters(tmp_path, tokenizer, texts, max_length):
    texts = [f"{n} {' '.join(story(n, 30))}. {text}" for n, text in enumerate(texts)]
    (tmp_path / "a.json").write_text(json.dumps(texts))
    blocks = load_blocks(str(tmp_path / "a.json"), tokenizer, max_length, min_length=1)
    documents = load_documents(str(tmp_path / "a.json"))
    for name, split in blocks.items():
        joined: dict[str, list[int]] = {}
        for row in split:
            joined.setdefault(row["document"], []).extend(row["input_ids"])
            text = texts[int(row["document"].removeprefix("a.json#"))]
            assert tokenizer.decode(row["input_ids"]) == text[row["start"] : row["end"]]
            assert 1 <= len(row["input_ids"]) <= max_length
        assert [tokenizer.decode(ids) for ids in joined.values()] == documents[name]


def test_short_blocks_are_left_out(tmp_path, tokenizer, texts):
    (tmp_path / "a.json").write_text(json.dumps([f"{n} {text}" for n, text in enumerate(texts)]))
    every, long = (load_blocks(str(tmp_path / "a.json"), tokenizer, 20, least)["train"] for least in (1, 15))
    assert long["input_ids"][:] == [ids for ids in every["input_ids"] if len(ids) >= 15] and len(long) < len(every)


def test_a_cut_inside_a_character_goes_behind_it(tmp_path, tokenizer):
    """Each sign is four byte tokens: after 6 of them the cut is inside the second sign."""
    (tmp_path / "a.json").write_text(json.dumps([f"😀😁😂{n:02d}" for n in range(99)]))
    rows = list(load_blocks(str(tmp_path / "a.json"), tokenizer, 6)["train"])[:3]
    assert [len(row["input_ids"]) for row in rows][:2] == [6, 6]
    assert [(row["start"], row["end"]) for row in rows] == [(0, 2), (2, 3), (3, 5)]


def test_parts_of_a_document_count_from_its_beginning(tmp_path, tokenizer):
    text = " ".join(story(0, 2000))
    (tmp_path / "one.txt").write_text(text)
    for split in load_blocks(str(tmp_path / "one.txt"), tokenizer, 50).values():
        for row in split:
            assert (
                tokenizer.decode(row["input_ids"]) == text[row["start"] : row["end"]]
                and row["document"] == "one.txt#0"
            )


def test_a_fingerprint_is_of_ids_and_order():
    def of(rows, columns=None):
        train = Dataset.from_dict({"input_ids": rows})
        return data_fingerprint(DatasetDict(train=train if columns is None else train.add_column("x", columns)))

    assert of([[1, 2], [3]]) == of([[1, 2], [3]], columns=[7, 8])
    assert len({of([[1, 2], [3]]), of([[1], [2, 3]]), of([[3], [1, 2]]), of([[1, 2]]), of([[1, 2], [3], []])}) == 5
    rows = [[n, n + 1] for n in range(2500)]
    pieces = Dataset.from_dict({"input_ids": rows[:999] + rows[:7]}).select([*range(999)])
    assert data_fingerprint(DatasetDict(train=pieces)) == of(rows[:999]), "whatever lies behind a selection"
    assert of(rows) == data_fingerprint(
        DatasetDict(train=Dataset.from_dict({"input_ids": rows[::-1]}).select(range(2499, -1, -1)))
    )


def test_a_text_that_spells_the_end_token_is_text(tmp_path, tokenizer):
    (tmp_path / "a.json").write_text(json.dumps([f"{n} says <|endoftext|> and goes on" for n in range(60)]))
    blocks = load_blocks(str(tmp_path / "a.json"), tokenizer, 64)
    assert all(tokenizer.eos_token_id not in row for row in blocks["train"]["input_ids"])


def test_collating_pads_on_the_right():
    batch = BlockCollator(9)([{"input_ids": [1, 2, 3]}, {"input_ids": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


# -- refused: nothing takes the place of what is missing ---------------------------------------------------------------
def test_what_cannot_be_loaded_is_named(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl"):
        load_documents("missing.jsonl")
    with pytest.raises(ValueError, match="'nobody/nothing'.*is no local path and could not be loaded from the Hub"):
        load_documents("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds none of \.txt"):
        load_documents(str(tmp_path / "empty"))
    (tmp_path / "rows.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(ValueError, match=r"no column 'text'; its columns are \['body'\]"):
        load_documents(str(tmp_path / "rows.jsonl"))
    (tmp_path / "image.bin").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ValueError, match="no UTF-8 text and none of"):
        load_documents(str(tmp_path / "image.bin"))
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(ValueError, match=r"The train split of .* is empty"):
        load_blocks(str(tmp_path / "none.json"), tokenizer, 16)
    with pytest.raises(ValueError, match="ByT5Tokenizer does not tell which characters"):
        load_blocks("embedded", ByT5Tokenizer(), 16)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"data": [], "version": 1}', r"list of texts or of objects, got dict with the keys \['data', 'version'\]"),
        ("a.json", "[1, 2]", "must hold text, got int '1'"),
        ("a.json", "[", "is not JSON"),
        ("a.jsonl", '{"text": "x"}\n{"text"', "line 2, is not JSON"),
        ("a.jsonl", '{"text": ["x"]}', "the column 'text' must hold text, got list"),
        ("a.csv", "text,other\na\nb,c,d,e,f\n", "is not CSV"),
        ("a.parquet", "no table", "is not Parquet"),
        ("dataset_dict.json", "{}", "without a `manifest.json`"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_documents(str(tmp_path if name == "dataset_dict.json" else tmp_path / name))


def texts_of(path) -> list[str]:
    return [document.text for document in open_source(str(path)).splits["train"]]


@pytest.mark.parametrize(
    "name, content",
    [
        ("rows.ndjson", '{"text": "one"}\n{"text": "two"}\n'),
        ("rows.JSONL", '{"text": "one"}\n{"text": "two"}\n'),
        ("rows.Json", '["one", "two"]'),
        ("rows.tsv", "id\ttext\n1\tone\n2\ttwo\n"),
        ("rows.CSV", "id,text\n1,one\n2,two\n"),
        ("rows.TXT", "one<|endoftext|>two"),
        ("rows.NDJSON.GZ", gzip.compress(b'"one"\n"two"\n', mtime=0)),
        ("rows", "one<|endoftext|>two"),
        ("rows.md", "one<|endoftext|>two"),
    ],
)
def test_a_file_is_read_by_its_kind_however_its_name_is_written(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert texts_of(tmp_path / name) == ["one", "two"]


@pytest.mark.parametrize("name", ["rows", "rows.dat", "rows.jsonlines"])
@pytest.mark.parametrize("content", ['{"text": "x"}\n', '["x"]', '{\n "text": "x"\n}'])
def test_rows_that_do_not_say_so_are_not_learnt_as_one_text(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="holds JSON, and its name does not say so"):
        texts_of(tmp_path / name)
    (tmp_path / "rows.txt").write_text(content)
    assert texts_of(tmp_path / "rows.txt") == [content.strip()]


def test_files_of_a_folder_that_are_left_out_are_named(tmp_path, caplog):
    for name, content in {
        "a.TXT": "one",
        "b.md": "two",
        "c.JSONL": '"three"',
        ".hidden": "x",
        ".git/config": "x",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert texts_of(tmp_path) == ["one", "three"]
    assert "are left out, of no kind that is read: b.md. Read are .txt" in caplog.text

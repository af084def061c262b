"""Documents, splits and blocks."""

import json

import pytest

from tokforget.data import BlockCollator, embedded_documents, join_articles, load_blocks, load_documents, split_of


def test_the_embedded_corpus_is_divided_by_document():
    documents = embedded_documents()
    assert sum(map(len, documents.values())) > 1_500_000
    splits = load_documents("embedded")
    assert sum(map(len, splits.values())) == len(documents)
    texts = [text for split in splits.values() for text in split]
    assert len(set(texts)) == len(texts), "a document stands in one split only"
    shares = {name: len(split) / len(texts) for name, split in splits.items()}
    assert shares["train"] > 0.75 and 0.04 < shares["validation"] < 0.13 and 0.04 < shares["test"] < 0.13


def test_a_split_depends_on_the_name_alone():
    assert split_of("topic/assert") == "train"  # as the packaged model was trained
    assert len({split_of(f"document {n}") for n in range(100)}) == 3


@pytest.mark.parametrize("kind", ["list.json", "rows.json", "rows.jsonl", "table.csv", "folder"])
def test_local_sources(tmp_path, kind):
    texts = [f"document number {n}, and some more words" for n in range(60)]
    path = tmp_path / kind
    if kind == "list.json":
        path.write_text(json.dumps(texts))
    elif kind == "rows.json":
        path.write_text(json.dumps([{"text": text} for text in texts]))
    elif kind == "rows.jsonl":
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    elif kind == "table.csv":
        path.write_text("text\n" + "\n".join(f'"{text}"' for text in texts))
    else:
        path.mkdir()
        for n, text in enumerate(texts):
            (path / f"{n:02d}.txt").write_text(text)
    splits = load_documents(str(path))
    assert sorted(text for split in splits.values() for text in split) == sorted(texts)
    assert splits["train"] and splits["validation"] and splits["test"]


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
    assert join_articles(lines) == ["= One = \ntext of one\n = = Part = = \nmore", "= Two = \ntext of two"]


def test_blocks_lose_nothing_but_what_is_too_short(tmp_path, tokenizer, texts):
    (tmp_path / "a.json").write_text(json.dumps([f"{n} {text}" for n, text in enumerate(texts)]))
    blocks = load_blocks(str(tmp_path / "a.json"), tokenizer, max_length=20, min_length=1)
    documents = load_documents(str(tmp_path / "a.json"))
    for name, split in blocks.items():
        joined: dict[int, list[int]] = {}
        for row in split:
            joined.setdefault(row["document"], []).extend(row["input_ids"])
        assert [tokenizer.decode(ids) for ids in joined.values()] == documents[name]
    assert (
        min(len(row) for row in load_blocks(str(tmp_path / "a.json"), tokenizer, 20, 15)["train"]["input_ids"]) >= 15
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

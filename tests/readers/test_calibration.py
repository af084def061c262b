"""A model's calibration from a corpus, through the recipe, and what it then promises."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

from tests.conftest import make_gpt2
from tokforget.compression.compressor import Compressor
from tokforget.compression.quality import RISKS, Calibration
from tokforget.packaged import forget_model_path
from tokforget.readers.calibration import LookupTexts
from tokforget.readers.language_model import Reader
from tokforget.readers.word_counts import WordCounts


ROOT = Path(__file__).parents[2]


def test_the_recipe_calibrates_and_checks(base_folder, texts, tmp_path, capsys, monkeypatch):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [
        {"text": f"Nordby{i} " + " ".join(texts[(i + j) % 60] for j in range(3)), "source": f"s{i}"}
        for i in range(400)
    ]
    (corpus / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A random reader learns little from any text: let all texts count.
    monkeypatch.setattr("tokforget.readers.calibration._LEAST_WORTH", 1e-9)
    model = shutil.copytree(forget_model_path(), tmp_path / "model")
    line = ["--model_path", str(model), "--reader_name_or_path", base_folder, "--corpus", str(corpus), "--texts_per_kind", "30",
            "--passage_characters", "100", "--lookups_per_text", "2", "--levels", "0.8", "0.5", "--check_risks", "0.01", "0.3", "--use_cpu", "true"]  # fmt: skip
    runpy.run_path(str(ROOT / "recipes/calibrate_quality.py"))["main"](line)
    out = capsys.readouterr().out
    assert "Calibrated on" in out and "quality 0.9, risk 0.3: rate" in out and "'news'" in out
    found = Calibration.load(model)
    assert found.thresholds.keys() <= set(RISKS) and 0.3 in found.thresholds and found.reader == Path(base_folder).name
    assert "risk 0.01: " in out and "take more" in out
    result = Compressor.from_pretrained(model).compress(rows[0]["text"], quality=0.5)
    assert result.returned_whole == "quality" or result.predicted_retention is not None


def test_retention_of_a_text_is_one_whole_and_zero_without(tokenizer, texts, monkeypatch):
    monkeypatch.setattr("tokforget.readers.calibration._LEAST_WORTH", 1e-9)
    reader = Reader(make_gpt2(len(tokenizer), n_positions=1024), tokenizer)
    known = LookupTexts(reader, [("a", text) for text in texts[:30]], WordCounts.of_texts(texts), 3, 0)
    assert len(known.texts) > 3
    assert known.retention(known.texts) == pytest.approx(1.0) and known.retention(
        [""] * len(known.texts)
    ) == pytest.approx(0.0)

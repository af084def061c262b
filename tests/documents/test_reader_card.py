"""The card of a policy trained on the losses of a reader."""

import json
import shutil

from tokforget.hub.cards import write_card
from tokforget.packaged import reader_model_path


def test_a_card_shows_the_intervals_that_the_reader_benchmark_writes(tmp_path):
    for name in ("config.json", "training_config.json"):
        shutil.copy(reader_model_path() / name, tmp_path / name)
    row = {"task": "xquad", "kind": "all", "compressor": "policy_words", "rate": 0.5, "retention": 0.75}
    rows = [
        row | {"interval": [0.7, 0.8]},
        row | {"rate": 0.7, "interval": None},
        row | {"rate": 0.3, "retention": None},
    ]
    (tmp_path / "reader_results.json").write_text(json.dumps({"rows": rows}))
    write_card(tmp_path, template="reader_policy.md")
    card = (tmp_path / "README.md").read_text()
    assert "| xquad | all | policy_words | 0.5 | 0.750 [0.700, 0.800] |" in card
    assert "| xquad | all | policy_words | 0.7 | 0.750 |" in card and "| 0.3 | " not in card

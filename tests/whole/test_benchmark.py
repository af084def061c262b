"""The benchmark's counter of launches: by hand, and on a step in both settings."""

import json
from argparse import Namespace

import torch

from recipes.benchmark import LaunchCounter, launch_rows


def test_what_computes_is_a_launch_and_what_depends_on_numbers_is_a_wait():
    x = torch.arange(6.0).view(2, 3).requires_grad_()
    counter = LaunchCounter()
    with counter:
        with counter.part("forward"):
            y = (x.T * 2)[torch.tensor([True, False, True])]  # a view, a product, and a mask for indices
        torch.empty(3)
        with counter.part("backward"):
            y.sum().backward()
    assert counter.launches["forward"] == 2
    assert counter.operations["forward"] > counter.launches["forward"] and counter.waits["forward"] == 1
    assert counter.operations["the rest"] == 1 and counter.launches["the rest"] == 0
    assert counter.launches["backward"] >= 3 and counter.waits["backward"] == 1


def test_one_pass_takes_fewer_launches_than_groups(base_folder, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": " ".join(f"{n * m % 997}" for m in range(40))}) + "\n" for n in range(60))
    )
    args = Namespace(reconstructor_name_or_path=base_folder, dataset_name=str(texts), max_length=32, batch_size=16)
    rows = {row[0].strip(): [cell.replace(",", "") for cell in row[1:]] for row in launch_rows(args)}
    groups, one = (
        rows[f"joint step, rows {setting}"] for setting in ("in groups, as on a CPU", "in one pass, as on a GPU")
    )
    assert (groups[0], one[0]) == ("8", "1")
    _, operations, launches, waits = (int(count) for count in one[:4])
    assert int(groups[1]) > 2 * operations and int(groups[2]) > 2 * launches > 100 and int(groups[3]) > 2 * waits > 0
    own = rows["reconstructor's own step, rows in one pass, as on a GPU"]
    assert int(own[2]) < launches, "the policy and the rewards come on top"

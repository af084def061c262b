"""The leaderboard: its plan, what it refuses before anything runs, its table by hand, and the whole with tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import leaderboard
from tokforget.files import write_json


ROOT = Path(__file__).parents[2]
RUN_FILE = "recipes/leaderboard.yaml"


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["leaderboard.py"])


# -- the plan ----------------------------------------------------------------------------------------------------------
def test_the_dry_run_prints_every_command_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "board"
    leaderboard.main(["--config", RUN_FILE, "--output_dir", str(out), "--seeds", "3", "4", "--ablation_seeds", "3", "4", "--dry_run", "true",
                      "--ablations", '{"short": {"max_steps": 7}}', "--common", '{"dataset_name": "embedded"}'])  # fmt: skip
    printed = capsys.readouterr().out
    names = [line.split("] ")[1] for line in printed.splitlines() if line.startswith("[")]
    assert names == [
        "reconstructor",
        "policy_seed_3",
        "policy_seed_4",
        "short_seed_3",
        "short_seed_4",
        "judge",
        "evaluation",
    ]
    commands = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    assert all(
        line.startswith("accelerate launch --config_file accelerate_configs/cpu.yaml recipes/") for line in commands
    )
    assert "--seed 100" in commands[0] and "--seed 101" in commands[5] and "--seed 4" in commands[4]
    assert all(f"--reconstructor_name_or_path {out}/reconstructor " in line for line in commands[1:5])
    assert ["--max_steps 7" in line for line in commands] == [False, False, False, True, True, False, False]
    assert f"--reconstructor_name_or_path {out}/judge " in commands[6]
    labels = ("policy", "policy", "short", "short")
    folders = [f"{label}={out}/{name}" for label, name in zip(labels, names[1:5])]
    folders += [f"warm_start={out}/{name}/warm_start" for name in names[1:3]]
    assert f"--model_path {' '.join(folders)} " in commands[6]
    assert not out.exists()


def test_an_ablation_overrides_and_an_empty_value_takes_a_key_away():
    args = leaderboard.LeaderboardArguments(
        "board", seeds=[0], policy='{"config": "a.yaml", "max_steps": 5, "reward_weights": [1, 2]}',
        ablations='{"short": {"max_steps": 3, "reward_weights": null, "eval_rates": [0.5, 0.7]}}',
    )  # fmt: skip
    policy, short = (step.words for step in leaderboard.plan(args)[1:3])
    assert policy[:2] == short[:2] == ["--config", "a.yaml"]
    assert policy[policy.index("--max_steps") + 1] == "5" and short[short.index("--max_steps") + 1] == "3"
    assert "--reward_weights" in policy and "--reward_weights" not in short
    assert short[short.index("--eval_rates") :][:3] == ["--eval_rates", "0.5", "0.7"]


def test_ablations_have_seeds_of_their_own_and_a_policy_without_warm_start_has_none_to_judge():
    args = leaderboard.LeaderboardArguments(
        "board", seeds=[0, 1], ablation_seeds=[1], ablations='{"short": {}}', policy='{"warm_start_steps": 0}'
    )
    steps = leaderboard.plan(args)
    assert [step.name for step in steps[1:4]] == ["policy_seed_0", "policy_seed_1", "short_seed_1"]
    words = steps[-1].words
    assert not any("warm_start" in word for word in words)
    args = leaderboard.LeaderboardArguments("board", seeds=[0], policy='{"warm_start_steps": 3}')
    assert "warm_start=board/policy_seed_0/warm_start" in leaderboard.plan(args)[-1].words


def test_an_ablation_takes_over_from_the_policy_of_its_seed_and_is_trained_behind_it():
    args = leaderboard.LeaderboardArguments(
        "board", seeds=[0, 1], policy='{"warm_start_steps": 9, "sampled_texts": 5}',
        ablations='{"short": {"share_warm_start": true, "max_steps": 2}, "fresh": {"share_warm_start_data": true}}',
    )  # fmt: skip
    steps = {step.name: step for step in leaderboard.plan(args)}
    short, fresh = (" ".join(steps[f"{name}_seed_1"].words) for name in ("short", "fresh"))
    assert "--policy_name_or_path board/policy_seed_1/warm_start" in short and "--warm_start_steps 0" in short
    assert "--warm_start_steps 9" in fresh and "policy_name_or_path" not in fresh
    for words in (short, fresh):
        assert "--warm_start_data_path board/policy_seed_1/warm_start_data" in words
        assert "same_" not in words and "sampled_texts" not in words
    assert steps["short_seed_1"].kind == "ablation" and list(steps).index("short_seed_0") > list(steps).index(
        "policy_seed_1"
    )
    stands_on = {
        (later, step) for later in steps for step in steps if leaderboard.stands_on(steps[later], steps[step])
    }
    own = {(name, name) for name in steps}  # each writes to its own folder
    assert ("short_seed_1", "policy_seed_1") in stands_on and ("short_seed_1", "policy_seed_0") not in stands_on
    assert ("policy_seed_0", "reconstructor") in stands_on and ("policy_seed_0", "judge") not in stands_on
    assert {step for later, step in stands_on - own if later == "evaluation"} == set(steps) - {
        "reconstructor",
        "evaluation",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ablations", '{"short": {"max_stepz": 7}}'], "unknown key `max_stepz`"),
        (["--seeds", "1", "2"], "takes over from the policy of its seed, but `ablation_seeds` [0]"),
        (["--policy", '{"warm_start_steps": 0}'], "takes over from the policy's warm start"),
        (["--evaluation", '{"rates": [1.5]}'], "1.5"),
        (["--ablations", '{"policy": {}}'], "A ablation cannot be called 'policy'"),
        (["--ablations", '{"short": 7}'], "must be a mapping of keys of train.py"),
        (["--common", "[1]"], "`common` must be a mapping of keys to values"),
        (["--common", "{"], "`common` must be a mapping in JSON"),
        (["--judge_seed", "100"], "`judge_seed` must differ"),
        (["--seeds", "1", "--ablation_seeds", "1", "1"], "`ablation_seeds` must be one or more different numbers"),
        (["--jobs", "0"], "`jobs` must be at least 1"),
        (["--seeds", "1", "1"], "`seeds` must be one or more different numbers"),
        (["--hardware", "gone.yaml"], "the hardware file gone.yaml cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_anything_does(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        leaderboard.main(["--config", RUN_FILE, "--output_dir", str(tmp_path / "board"), *words])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "board").exists()


# -- the table ---------------------------------------------------------------------------------------------------------
def row(scorer: str, bits: float, **more) -> dict:
    return {"scorer": scorer, "dataset": "stories", "rate": 0.5, "bits_lost": bits, "exact_restored": 0.25,
            "bits_lost_interval": [bits - 0.1, bits + 0.1], "seconds_per_token": 2e-6, **more}  # fmt: skip


@pytest.fixture
def evaluated(tmp_path) -> Path:
    folder = tmp_path / "evaluation"
    models = [
        row("policy", 0.9, bits_lost_std=0.0123, oracle_gap_closed=0.8),
        row("short", 1.2, bits_lost_std=0.02, excess_bits=0.3, excess_bits_interval=[-0.05, 0.4], excess_exact=-0.031,
            excess_exact_interval=[-0.05, 0.004]),
    ]  # fmt: skip
    others = [row("frequency", 1.0, excess_bits=0.1, excess_bits_interval=[0.05, 0.15]), row("self_information", 0.8),
              row("length", 2.0, excess_bits=1.1, excess_bits_interval=[0.9, 1.1]), row("keep_all", 0.0)]  # fmt: skip
    write_json(folder / "model_results.json", {"scorers": models})
    write_json(folder / "baseline_results.json", {"scorers": others})
    write_json(folder / "evaluation_config.json", {"arguments": {"rates": [0.5]},
                                                   "datasets": [{"dataset": "stories", "texts": 8}]})  # fmt: skip
    return folder


def test_rows_are_compared_with_the_best_baseline_that_needs_no_model(evaluated):
    rows = {row["scorer"]: row for row in leaderboard.table_rows(evaluated)}
    assert list(rows) == ["self_information", "policy", "frequency", "short", "length"]
    assert rows["policy"]["fewer_bits"] == pytest.approx(0.1) and rows["policy"]["best_cheap"] == "frequency"
    assert rows["policy"]["fewer_bits_interval"] == pytest.approx([0.05, 0.15])
    assert rows["short"]["fewer_bits"] == pytest.approx(-0.2) and "fewer_bits_interval" not in rows["short"]
    assert "fewer_bits" not in rows["frequency"]


def test_the_table_shows_figures_commands_and_seeds(evaluated, tmp_path):
    args = leaderboard.LeaderboardArguments(str(tmp_path), seeds=[3, 4], ablations='{"short": {}}')
    steps = {"judge": {"command": "accelerate launch x", "commit": "abc+", "seconds": 3.21, "seed": 101}}
    leaderboard.write_table(args, {"steps": steps})
    text = (tmp_path / "leaderboard.md").read_text()
    assert (
        "| **policy** | 0.900 ± 0.012 [0.800, 1.000] | – | 80.0 % | 25.0 % | – | 2.0 | 10.0 % [5.0, 15.0] (frequency) |"
        in text
    )
    assert (
        "| short (ablation) | 1.200 ± 0.020 [1.100, 1.300] | +0.300 [-0.050, +0.400] | – | 25.0 % | -3.1 [-5.0, +0.4] | 2.0 | "
        "-20.0 % (frequency) |"
    ) in text
    assert "## stories, rate 0.5 (8 texts)" in text and "training seeds 3, 4" in text and "seed 101" in text
    assert "* judge, commit abc+, 3 s: `accelerate launch x`" in text and "keep_all" not in text


def test_the_table_names_no_place_on_this_machine(evaluated, tmp_path):
    """The record keeps the very command, by which the same run goes on."""
    for name in ("model_results.json", "baseline_results.json", "evaluation_config.json"):
        text = (evaluated / name).read_text().replace('"stories"', json.dumps(str(tmp_path / "stories.jsonl")))
        (evaluated / name).write_text(text)
    args = leaderboard.LeaderboardArguments(str(tmp_path))
    command = (
        f"accelerate launch --config_file {tmp_path}/my.yaml recipes/evaluate.py --dataset_name /else/where/stories.jsonl "
        f"--model_path policy={tmp_path}/policy_seed_0 two={tmp_path}/a/b '--reader_name_or_path=~/my reader' "
        "--reconstructor_name_or_path user/judge --data outputs/x --output_dir ../y"
    )
    record = {"steps": {"judge": {"command": command, "commit": "abc+", "seconds": 3.21, "seed": 101}}}
    leaderboard.write_table(args, record)
    text, own = (tmp_path / "leaderboard.md").read_text(), tmp_path.name
    assert str(tmp_path.parent) not in text and "/else" not in text and "~" not in text
    assert (
        f"`accelerate launch --config_file {own}/my.yaml recipes/evaluate.py --dataset_name stories.jsonl --model_path "
        f"policy={own}/policy_seed_0 two={own}/a/b '--reader_name_or_path=my reader' --reconstructor_name_or_path user/judge "
        "--data outputs/x --output_dir y`"
    ) in text
    assert "## stories.jsonl, rate 0.5 (8 texts)" in text and "| **policy** | 0.900" in text
    assert json.loads((tmp_path / "leaderboard.json").read_text())["steps"]["judge"]["command"] == command


# -- the whole ---------------------------------------------------------------------------------------------------------
def launch(*words) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": os.environ["HF_HOME"]}
    return subprocess.run([sys.executable, "recipes/leaderboard.py", *map(str, words)], cwd=ROOT, capture_output=True,
                          text=True, env=environment)  # fmt: skip


@pytest.mark.slow
def test_a_small_leaderboard_from_scratch_and_one_seed_more(tmp_path, base_folder, texts):
    documents = [f"{texts[i]} number {i * 37 % 91} came. " + texts[(i * 7 + 3) % 60] for i in range(60)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    training = {"reconstructor_name_or_path": base_folder, "max_steps": 2, "per_device_train_batch_size": 4,
                "logging_steps": 1, "max_eval_texts": 2, "save_strategy": "no", "report_to": "none"}  # fmt: skip
    joint = {key: value for key, value in training.items() if key != "reconstructor_name_or_path"}
    out = tmp_path / "board"
    words = [
        "--output_dir", out, "--ablations", '{"bits_alone": {"share_warm_start": true, "reward_weights": [2, 1]}}',
        "--ablation_seeds", "0",
        "--common", json.dumps({"dataset_name": str(tmp_path / "texts.jsonl"), "max_length": 24, "min_length": 8}),
        "--reconstructor", json.dumps(training | {"max_test_texts": 2}),
        "--policy", json.dumps(joint | {"max_test_texts": 0, "window": 8, "ngram_buckets": 256, "warm_start_steps": 2,
                                "sampled_texts": 4, "reconstructor_text_fraction": 0.25}),
        "--jobs", "2",
        "--evaluation", json.dumps({"scorers": ["random", "frequency", "greedy_oracle"], "max_texts": 4, "rates": [0.5],
                                    "num_random_seeds": 2, "continuation_tokens": 0, "heatmap_texts": 0}),
    ]  # fmt: skip
    first = launch(*words, "--seeds", "0")
    assert first.returncode == 0, first.stderr[-3000:]
    before = json.loads((out / "leaderboard.json").read_text())
    assert list(before["steps"]) == ["reconstructor", "policy_seed_0", "bits_alone_seed_0", "judge", "evaluation"]
    assert [step["seed"] for step in before["steps"].values()] == [100, 0, 0, 101, None]

    second = launch(*words, "--seeds", "0", "1")
    assert second.returncode == 0, second.stderr[-3000:]
    assert "policy_seed_0, finished" in second.stdout and "evaluation, finished" not in second.stdout
    after = json.loads((out / "leaderboard.json").read_text())
    assert list(after["steps"]) == [
        "reconstructor", "policy_seed_0", "policy_seed_1", "bits_alone_seed_0", "judge", "evaluation",
    ]  # fmt: skip
    kept = ("reconstructor", "policy_seed_0", "bits_alone_seed_0", "judge")
    assert all(after["steps"][name] == before["steps"][name] for name in kept)
    rows = {row["scorer"]: row for row in after["table"]}
    assert rows.keys() == {"policy", "bits_alone", "warm_start", "random", "frequency", "greedy_oracle"}
    assert (
        rows["policy"]["runs"] == 2 and rows["policy"]["bits_lost_std"] > 0 and "oracle_gap_closed" in rows["policy"]
    )
    assert rows["policy"]["best_cheap"] in ("random", "frequency")
    table = (out / "leaderboard.md").read_text()
    assert "| **policy** |" in table and "![rate_distortion.png](evaluation/rate_distortion.png)" in table

    (out / "leaderboard.md").unlink()
    third = launch(*words, "--seeds", "0", "1")
    assert third.returncode == 0 and third.stdout.count(", finished") == 6
    assert (out / "leaderboard.md").read_text() == table, "the same table from the same files"


@pytest.mark.slow
def test_a_step_that_fails_ends_in_one_line_and_is_not_finished(tmp_path):
    failed = launch(
        "--config", RUN_FILE, "--output_dir", tmp_path / "board", "--common", '{"dataset_name": "gone.txt"}'
    )
    assert failed.returncode == 2
    assert (
        failed.stderr.strip().splitlines()[-1].startswith("leaderboard.py: error: the step 'reconstructor' ended with")
    )
    assert "'gone.txt': no such file" in failed.stderr and "policy_seed_0" not in failed.stdout
    assert not (tmp_path / "board" / "leaderboard.json").exists()

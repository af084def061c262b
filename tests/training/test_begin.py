"""What a recipe can know before anything is loaded, it says then: one line, exit code 2."""

from types import SimpleNamespace

import pytest
import torch

from tests.support.recipes import call
from tokforget.launch import check_libraries, say_device
from tokforget.models.loading import load_base_model
from tokforget.training import config as training_config
from tokforget.training.config import ForgetConfig, ReconstructorConfig


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--report_to", "nonsense"], "`report_to` nonsense: nonsense is not supported, only "),
        (["--report_to", "{missing}"], "`report_to` {missing}: "),
        (["--optim", "adamw_8bit"], "`optim` adamw_8bit: You need to install `bitsandbytes`"),
        (["--load_best_model_at_end", "true", "--eval_strategy", "steps", "--eval_steps", "500", "--metric_for_best_model", "wrong"], "`metric_for_best_model` 'wrong' is none that an evaluation measures; there are bits_lost, loss, "),
        (["--data_path", "nofile.txt"], "`data_path` 'nofile.txt': no such file or folder."),
        (["--data_path", "a.txt", "--dataset_name", "nofile.txt"], "`dataset_name` 'nofile.txt': no such file or folder."),
        (["--max_rate", "2"], "`max_rate` must lie in (0, 1], got 2.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_one_line_before_loading(words, message, base_folder, tmp_path):
    if "{missing}" in words:
        from transformers.integrations import integration_utils as host

        absent = [name for name in ("wandb", "mlflow", "clearml") if not getattr(host, f"is_{name}_available")()]
        if not absent:
            pytest.skip("every tracker is installed")
        words, message = ["--report_to", absent[0]], message.format(missing=absent[0])
    run = [
        "--reconstructor_path",
        base_folder,
        "--output_dir",
        str(tmp_path),
        "--use_cpu",
        "true",
        "--report_to",
        "none",
        "--window",
        "8",
    ]
    done = call("train", *run, "--data_path", "embedded", *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(("installed", "message"), [(False, "not installed"), (True, "'nofile': no such file")])
def test_a_deepspeed_that_cannot_be_had_leaves_nothing_behind(installed, message, base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(training_config, "find_spec", lambda name: object() if installed else None)
    with pytest.raises(ValueError, match=message):
        ForgetConfig(output_dir=str(tmp_path), use_cpu=True, deepspeed="nofile")
    load_base_model(base_folder)  # the host would read a remembered configuration here


@pytest.mark.parametrize("config", [ForgetConfig, ReconstructorConfig])
@pytest.mark.parametrize(
    "metric", ["bits_lost", "eval_bits_lost", "loss", "exact_restored_0.3", "eval_compression_rate_0.5"]
)
def test_what_an_evaluation_measures_may_choose_the_best(config, metric, tmp_path):
    saves = {
        "load_best_model_at_end": True,
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
    }
    args = config(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model=metric, **saves)
    assert args.metric_for_best_model == metric


def test_trackers_and_optimizers_that_are_there_are_let_through(tmp_path):
    for report_to in (["none"], []):
        args = ForgetConfig(output_dir=str(tmp_path), use_cpu=True, report_to=report_to, optim="adamw_torch")
        assert check_libraries(args) is None


@pytest.mark.parametrize(
    ("device", "use_cpu", "environ", "said"),
    [("cpu", False, {}, True), ("cpu", False, {"ACCELERATE_USE_CPU": "false"}, True), ("cpu", True, {}, False),
     ("cpu", False, {"ACCELERATE_USE_CPU": "true"}, False), ("cuda", False, {}, False)],
)  # fmt: skip
def test_a_run_on_the_cpu_that_nobody_asked_for_says_so(device, use_cpu, environ, said, capsys):
    say_device(SimpleNamespace(device=torch.device(device), use_cpu=use_cpu), environ)
    assert ("There is no GPU here: this run is on the CPU." in capsys.readouterr().err) == said

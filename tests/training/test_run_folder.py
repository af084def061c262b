"""Two runs never mix in one folder: what goes on is the same run, and what is new starts in a folder of its own."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.training.test_forget_trainer import make_trainer
from tokforget.parsing import as_record
from tokforget.training.checkpoints import checkpoint_to_resume
from tokforget.training.config import ForgetConfig
from tokforget.training.faults import OtherRunError
from tokforget.training.run_folder import RECORD, STATE, differences, make_way, refuse_held, texts_per_step


SHORT = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def finished(base_folder, tokenizer, tmp_path_factory) -> Path:
    trainer = make_trainer(base_folder, tokenizer, tmp_path_factory.mktemp("run"), **SHORT)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return Path(trainer.args.output_dir)


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def asked(run_dir: Path, **changed) -> tuple[ForgetConfig, dict]:
    """Arguments as a recipe has them, and their record, which says what the run in the folder was told."""
    args = ForgetConfig(output_dir=str(run_dir), **{"use_cpu": True, "reconstructor_text_fraction": 1.0} | changed)
    told = json.loads((run_dir / RECORD).read_text())
    own = {name: value for name, value in as_record(args).items() if name in changed or name not in told}
    return args, told | own | {"dataset_name": "a"}


def refusal(args, record, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        checkpoint_to_resume(args, record)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    return said


CHANGES = [
    ({"seed": 7}, "`seed` was 3 and is 7"),
    ({"reward_funcs": ["simple"]}, "`reward_funcs` was ['information_theoretic'] and is ['simple']"),
    ({"policy_learning_rate": 0.5}, "`policy_learning_rate` was 0.003 and is 0.5"),
    ({"num_masks": 9}, "`num_masks` was"),
    ({"per_device_train_batch_size": 64}, "`texts_per_step` was"),
]


@pytest.mark.parametrize(
    "how", [{"resume_from_checkpoint": "last"}, {"auto_resume": True}, {"resume_from_checkpoint": "."}]
)
@pytest.mark.parametrize("changed, difference", CHANGES, ids=[next(iter(changed)) for changed, _ in CHANGES])
def test_going_on_otherwise_is_refused_and_the_difference_named(run_dir, capsys, how, changed, difference):
    how = {key: str(run_dir / "checkpoint-2") if value == "." else value for key, value in how.items()}
    size = {"per_device_train_batch_size": texts_of(run_dir)}
    args, record = asked(run_dir, **size | how | changed, max_steps=2)
    said = refusal(args, record, capsys)
    assert "is of another run: " in said and difference in said and "overwrite_output_dir" in said


def texts_of(run_dir: Path) -> int:
    return json.loads((run_dir / RECORD).read_text())["texts_per_step"]


def test_what_may_differ_is_no_other_run(run_dir, capsys):
    half = {"per_device_train_batch_size": texts_of(run_dir) // 2, "gradient_accumulation_steps": 2}
    args, record = asked(run_dir, auto_resume=True, max_steps=4, logging_steps=3, save_steps=1, **half)
    assert texts_per_step(args) == texts_of(run_dir)
    assert checkpoint_to_resume(args, record) == str(run_dir / "checkpoint-2")
    args, record = asked(run_dir, auto_resume=True, max_steps=2, **half)
    with pytest.raises(SystemExit) as stop:
        checkpoint_to_resume(args, record)
    assert stop.value.code == 0 and "this run has finished" in capsys.readouterr().err


@pytest.mark.parametrize("left", [[], [STATE], [STATE, "config.json"]], ids=["finished", "stopped", "checkpoints"])
def test_a_new_run_is_refused_where_a_run_is(run_dir, capsys, left):
    for name in left:
        (run_dir / name).unlink()
    said = refusal(*asked(run_dir), capsys)
    assert f"{str(run_dir)!r} holds a {'run up to step 2' if left else 'finished run'}. Name another folder" in said
    assert checkpoint_to_resume(*asked(run_dir, overwrite_output_dir=True)) is None
    assert (run_dir / "checkpoint-2").is_dir()  # until the new one is ready to train


def test_a_model_without_a_record_is_not_written_over(run_dir, capsys):
    for path in (run_dir / RECORD, run_dir / STATE):
        path.unlink()
    shutil.rmtree(run_dir / "checkpoint-2")
    args = ForgetConfig(output_dir=str(run_dir), use_cpu=True)
    assert "holds a model. Name another folder, or pass" in refusal(args, as_record(args), capsys)
    args.auto_resume = True
    assert "holds a model" in refusal(args, as_record(args), capsys)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors", "model.safetensors.index.json"])
def test_weights_alone_are_not_written_over(tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"of somebody")
    args = ForgetConfig(output_dir=str(tmp_path), use_cpu=True)
    assert "holds a model. Name another folder, or pass" in refusal(args, as_record(args), capsys)


def test_what_is_learnt_from_is_not_deleted(run_dir, capsys):
    args, record = asked(run_dir, overwrite_output_dir=True)
    for path in (run_dir, run_dir / "adapter"):
        said = refusal(args, record | {"reconstructor_name_or_path": str(path)}, capsys)
        # By the name under which it was typed last in this process.
        assert re.search(
            rf"would delete `reconstructor_(name_or_)?path` {re.escape(repr(str(path)))}, which the run needs", said
        )
    with pytest.raises(ValueError, match="starts anew, `auto_resume` and `resume_from_checkpoint` resume"):
        ForgetConfig(output_dir=str(run_dir), overwrite_output_dir=True, auto_resume=True)


def test_from_python_too(base_folder, tokenizer, run_dir):
    other = make_trainer(base_folder, tokenizer, run_dir, **SHORT | {"seed": 5})
    before = sorted(path.name for path in run_dir.rglob("*"))
    with pytest.raises(OtherRunError, match="holds a finished run"):
        other.train()
    with pytest.raises(OtherRunError, match="`seed` was 3 and is 5"):
        other.train(resume_from_checkpoint=True)
    assert sorted(path.name for path in run_dir.rglob("*")) == before
    (run_dir / "mine.txt").write_text("notes")
    new = make_trainer(
        base_folder, tokenizer, run_dir, **SHORT | {"seed": 5, "max_steps": 1, "overwrite_output_dir": True}
    )
    new.train()
    left = {path.name for path in run_dir.iterdir()}
    assert {"mine.txt", RECORD} <= left and not left & {"checkpoint-2", "config.json", "model.safetensors", "adapter"}
    assert json.loads((run_dir / RECORD).read_text())["seed"] == 5
    new.train()  # the same trainer goes on in its folder


def test_texts_that_changed_under_their_name_are_another_run():
    told = {"dataset_name": "a.jsonl", "seed": 1, "data": {"fingerprint": "12ab"}}
    now = told | {"data": {"fingerprint": "34cd"}}
    assert differences(told, told) == [] and differences({"seed": 1}, now) == []
    assert differences(told, now) == ["the texts of `dataset_name` have changed (fingerprint 12ab before, 34cd now)"]
    assert differences(told, now | {"dataset_name": "b.jsonl"}) == ["`dataset_name` was 'a.jsonl' and is 'b.jsonl'"]


def test_the_same_in_other_words_is_the_same(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert differences({"dataset_name": "data"}, {"dataset_name": str(tmp_path / "data")}) == []
    functions = [["simple", f"<function mine at 0x7f{n}>"] for n in range(2)]
    assert differences({"reward_funcs": functions[0]}, {"reward_funcs": functions[1]}) == []
    assert differences({"reward_funcs": functions[0]}, {"reward_funcs": ["simple"]})


def test_only_a_runs_own_files_make_way(tmp_path):
    for name in ("checkpoint-7", "warm_start", "mine", "checkpoint-x"):
        (tmp_path / name).mkdir()
    for name in (RECORD, STATE, "model.safetensors", "mine.txt"):
        (tmp_path / name).write_text("{}")
    make_way(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-x", "mine", "mine.txt"]
    refuse_held(tmp_path)
    (tmp_path / STATE).write_text("{}")
    with pytest.raises(OtherRunError):
        refuse_held(tmp_path)

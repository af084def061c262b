"""
Whose folder it is: whether it holds a run, whether what is asked for now is that run, and what makes way for another one.

Two runs that mix in one folder look like one: checkpoints of the older one are gone on from with the data of the newer one, and
the record names only the newer one's arguments.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import TrainingArguments

from tokforget.files import write_json
from tokforget.models.folder_checks import read_json
from tokforget.training.faults import OtherRunError


RECORD, STATE, CHECKPOINT = "training_config.json", "trainer_state.json", re.compile(r"checkpoint-(\d+)")
OVERWRITE = "overwrite_output_dir"
# Of the host's keys those that what is learnt hangs on; the others say where and how fast, how long, and what is written down.
_HOST_KEYS = {
    "seed", "data_seed", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha", "train_sampling_strategy",
}  # fmt: skip
# Of this package's keys, and of what a record holds beside keys, what is no difference between runs.
_MAY_DIFFER = {"auto_resume", OVERWRITE, "early_stopping_patience", "max_test_texts", "batch_tokens", "run", "data",
               "trainable_parameters"}  # fmt: skip
_HOSTS = set(TrainingArguments.__dataclass_fields__)
# What a run leaves in its folder; anything else there is not its own, and stays.
_LEFT = (
    RECORD, STATE, "eval_results.json", "rate_quality.png", "config.json", "model.safetensors", "adapter", "adapter_config.json",
    "adapter_model.safetensors", "generation_config.json", "model.safetensors.index.json", "warm_start", "warm_start_data",
    "sampled_texts", "word_counts.json", "self_information.npz", "calibration.json",
)  # fmt: skip
# What of it says that there is something to lose: a run that has saved nothing yet has nothing.
_SAVED = (
    STATE, "config.json", "adapter_config.json", "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors",
)  # fmt: skip


def texts_per_step(args: TrainingArguments) -> int:
    """Training texts of one step, of all processes together: the same in any split over them."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * max(args.world_size, 1)


def read_record(folder: str | Path) -> dict:
    """The arguments that a folder was trained with; of a checkpoint its own, else its run's. Empty if nothing tells."""
    folder = Path(folder)
    of_run = [folder.parent / RECORD] if CHECKPOINT.fullmatch(folder.name) else []
    for path in (folder / RECORD, *of_run):
        if path.is_file():
            try:
                return read_json(path)
            except ValueError:
                return {}  # killed while it was written
    return {}


def differences(recorded: Mapping, wanted: Mapping, unknown: Sequence[str] = ()) -> list[str]:
    """
    What another run was told than this one, in words. A key that only one of the two knows is no difference: it came with
    another version.

    Args:
        recorded (`dict`), wanted (`dict`): Arguments by name, as in `training_config.json`.
        unknown (`list[str]`): Keys whose value is not known yet.
    """
    found = []
    for key in wanted:
        counts = key in _HOST_KEYS if key in _HOSTS else key not in _MAY_DIFFER
        if counts and key in recorded and key not in unknown and not _same(recorded[key], wanted[key]):
            found.append(f"`{key}` was {recorded[key]!r} and is {wanted[key]!r}")
    before, now = ((record.get("data") or {}).get("fingerprint") for record in (recorded, wanted))
    if before and now and before != now and not any("dataset_name" in one for one in found):
        found.append(f"the texts of `dataset_name` have changed (fingerprint {before} before, {now} now)")
    return found


def _same(before: object, now: object) -> bool:
    if isinstance(before, str) and isinstance(now, str):
        if Path(before).exists() and Path(now).exists() and Path(before).samefile(now):
            return True  # one path, written in two ways
    return _named(before) == _named(now)


def _named(value: object) -> object:
    """A function of the user's is told by its name, not by where in memory it lies."""
    if isinstance(value, list):
        return [_named(one) for one in value]
    return re.sub(r" at 0x[0-9a-f]+", "", value) if isinstance(value, str) else value


def refuse_other_run(folder: str | Path, wanted: Mapping, unknown: Sequence[str] = ()) -> None:
    """`OtherRunError` if a run that is to be gone on from was told otherwise; each difference is named."""
    found = differences(read_record(folder), wanted, unknown)
    if found:
        raise OtherRunError(
            f"{folder} is of another run: {'; '.join(found)}. Ask for the same to go on, or start anew: in another `output_dir`, or "
            f"with `{OVERWRITE}`, which deletes the run there."
        )


def refuse_held(run_dir: str | Path) -> None:
    """`OtherRunError` if a new run would mix with what its folder holds."""
    run_dir = Path(run_dir)
    steps = [int(CHECKPOINT.fullmatch(path.name)[1]) for path in run_dir.glob("checkpoint-*")
             if CHECKPOINT.fullmatch(path.name) and path.is_dir()]  # fmt: skip
    saved = [name for name in _SAVED if (run_dir / name).is_file()]
    if not steps and not saved:
        return
    holds = "a finished run" if STATE in saved else f"a run up to step {max(steps)}" if steps else "a model"
    on = "" if holds == "a model" else "go on with it by `auto_resume`, "
    raise OtherRunError(
        f"`output_dir` {str(run_dir)!r} holds {holds}. Name another folder, {on}or pass `{OVERWRITE}`, which deletes what is there."
    )


def take_folder(run_dir: str | Path, record: Mapping, overwrite: bool, resumed: bool) -> None:
    """
    Make a folder this run's, by its record. What another run left there is deleted; of one that was told the same and has
    saved nothing yet it stays, to be taken up. To be called by one process, when no other looks at the folder.

    Raises:
        `OtherRunError`: If a new run would mix with what the folder holds, and is not to `overwrite` it.
    """
    run_dir = Path(run_dir)
    if not resumed:
        if not overwrite:
            refuse_held(run_dir)
        before = read_record(run_dir)
        if overwrite or (before and differences(before, record)):
            make_way(run_dir)
    (run_dir / STATE).unlink(missing_ok=True)  # what says that a run has finished
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / RECORD, record)


def make_way(run_dir: str | Path) -> None:
    """Delete what a run left in its folder."""
    for path in Path(run_dir).glob("*"):
        if path.name in _LEFT or CHECKPOINT.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

"""
Ownership of a run's folder: whether it holds a run, whether that is the requested run, and what a new run deletes.

Two runs must not mix in one folder: the new run would resume from checkpoints of the old one with other data, and the
record would name only the arguments of the new one.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import TrainingArguments

from tokforget.files import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS, CALIBRATION, CONFIG, RESULTS, WEIGHTS, write_json
from tokforget.files import TRAINER_STATE as STATE
from tokforget.files import TRAINING as RECORD
from tokforget.models.folder_checks import read_json
from tokforget.training.faults import OtherRunError


CHECKPOINT = re.compile(r"checkpoint-(\d+)")
OVERWRITE = "overwrite_output_dir"
# Keys of Transformers on which the trained weights depend. Its other keys concern hardware, speed, length and logging.
_HOST_KEYS = {
    "seed", "data_seed", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha", "train_sampling_strategy",
}  # fmt: skip
# Keys of this package, and other entries of a record, that may differ within one run.
_MAY_DIFFER = {"auto_resume", OVERWRITE, "early_stopping_patience", "max_test_texts", "batch_tokens", "run", "data",
               "trainable_parameters"}  # fmt: skip
_HOSTS = set(TrainingArguments.__dataclass_fields__)
# Files of a run in its folder; all other files there are never deleted.
_LEFT = (
    RECORD, STATE, RESULTS, "rate_quality.png", CONFIG, WEIGHTS, ADAPTER, ADAPTER_CONFIG,
    ADAPTER_WEIGHTS, "generation_config.json", "model.safetensors.index.json", "warm_start", "warm_start_data",
    "sampled_texts", "word_counts.json", "self_information.npz", CALIBRATION,
)  # fmt: skip
# Those of them that are worth protecting; a run that has saved none of these yet may be replaced.
_SAVED = (STATE, CONFIG, ADAPTER_CONFIG, WEIGHTS, "model.safetensors.index.json", ADAPTER_WEIGHTS)


def texts_per_step(args: TrainingArguments) -> int:
    """Training texts of one step over all processes; it does not depend on how they are divided."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * max(args.world_size, 1)


def read_record(folder: str | Path) -> dict:
    """
    The recorded arguments of a model or checkpoint folder; a checkpoint without a record has that of its run. Else
    empty.
    """
    folder = Path(folder)
    of_run = [folder.parent / RECORD] if CHECKPOINT.fullmatch(folder.name) else []
    for path in (folder / RECORD, *of_run):
        if path.is_file():
            try:
                return read_json(path)
            except ValueError:
                return {}  # the run was killed while writing it
    return {}


def differences(recorded: Mapping, wanted: Mapping, unknown: Sequence[str] = ()) -> list[str]:
    """
    The differences between the arguments of a recorded and a requested run, in words. A key that only one of them has
    is not a difference, because it belongs to another version.

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
            return True  # the same path, written differently
    return _named(before) == _named(now)


def _named(value: object) -> object:
    """The value as recorded; a user's function is replaced by its name, because its address changes."""
    if isinstance(value, list):
        return [_named(one) for one in value]
    return re.sub(r" at 0x[0-9a-f]+", "", value) if isinstance(value, str) else value


def refuse_other_run(folder: str | Path, wanted: Mapping, unknown: Sequence[str] = ()) -> None:
    """Raise `OtherRunError` if the run to resume has other arguments; the message names each difference."""
    found = differences(read_record(folder), wanted, unknown)
    if found:
        raise OtherRunError(
            f"{folder} is of another run: {'; '.join(found)}. Ask for the same to resume it, or start anew: in another `output_dir`, or "
            f"with `{OVERWRITE}`, which deletes the run there."
        )


def refuse_held(run_dir: str | Path) -> None:
    """Raise `OtherRunError` if the folder of a new run holds a model or another run."""
    run_dir = Path(run_dir)
    steps = [int(CHECKPOINT.fullmatch(path.name)[1]) for path in run_dir.glob("checkpoint-*")
             if CHECKPOINT.fullmatch(path.name) and path.is_dir()]  # fmt: skip
    saved = [name for name in _SAVED if (run_dir / name).is_file()]
    if not steps and not saved:
        return
    holds = "a finished run" if STATE in saved else f"a run up to step {max(steps)}" if steps else "a model"
    on = "" if holds == "a model" else "resume it with `auto_resume`, "
    raise OtherRunError(
        f"`output_dir` {str(run_dir)!r} holds {holds}. Name another folder, {on}or pass `{OVERWRITE}`, which deletes what is there."
    )


def take_folder(run_dir: str | Path, record: Mapping, overwrite: bool, resumed: bool) -> None:
    """
    Take a folder for this run by writing its record. The files of another run are deleted. The files of a run with the
    same arguments that has saved nothing yet are kept and used. Only one process may call this, while no other uses
    the folder.

    Raises:
        `OtherRunError`: If the folder of a new run holds a model or another run, and `overwrite` is false.
    """
    run_dir = Path(run_dir)
    if not resumed:
        if not overwrite:
            refuse_held(run_dir)
        before = read_record(run_dir)
        if overwrite or (before and differences(before, record)):
            make_way(run_dir)
    (run_dir / STATE).unlink(missing_ok=True)  # this file says that a run has finished
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / RECORD, record)


def make_way(run_dir: str | Path) -> None:
    """Delete the files of a run in its folder."""
    for path in Path(run_dir).glob("*"):
        if path.name in _LEFT or CHECKPOINT.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

"""
The checkpoints of a run: which ones are complete, which is the last, and how to delete one safely.

    trainer_state.json, the model's own files, optimizer.pt, scheduler.pt, rng_state.pth (one for each process)

DeepSpeed writes `latest` and the folder that it names in place of `optimizer.pt` and `scheduler.pt`. FSDP writes
`optimizer.bin` (and all weights again) or a folder `optimizer_0` in place of `optimizer.pt`. A model folder holds no
pickle. A checkpoint does; except for DeepSpeed's, these are read by torch's `weights_only` loader, which builds only
tensors and plain containers.
"""

import logging
import os
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from transformers import TrainingArguments

from tokforget.files import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, WEIGHTS
from tokforget.models.folder_checks import check_safetensors, read_json
from tokforget.parsing import as_record, refuse, say
from tokforget.training.config import BaseForgetConfig
from tokforget.training.faults import OtherRunError
from tokforget.training.run_folder import CHECKPOINT, RECORD, STATE, refuse_held, refuse_other_run, texts_per_step


logger = logging.getLogger(__name__)

STAGING, _REMOVED = ".saving", ".removed-"


def step_of(checkpoint: Path) -> int:
    return int(CHECKPOINT.fullmatch(checkpoint.name)[1])


def checkpoints(run_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, recognised by name, in the order of their steps."""
    run_dir = Path(run_dir)
    found = [path for path in run_dir.iterdir() if CHECKPOINT.fullmatch(path.name)] if run_dir.is_dir() else []
    return sorted((path for path in found if path.is_dir()), key=step_of)


def check_checkpoint(folder: str | Path) -> None:
    """
    Raise `ValueError` unless a run can resume from this folder: state, weights, optimizer and random states must be
    complete.

    Whether the weights fit the model is checked when they are read.
    """
    folder = Path(folder)
    sharded = (folder / "latest").is_file() or any(path.is_dir() for path in folder.glob("optimizer*"))
    optimizer = "optimizer.bin" if (folder / "optimizer.bin").is_file() else "optimizer.pt"
    wanted = [STATE] if sharded else [STATE, optimizer, "scheduler.pt", *_weights(folder)]
    if (folder / "latest").is_file():
        tag = (folder / "latest").read_text(encoding="utf-8")[:256].strip()
        if not re.fullmatch(r"\w[\w.-]*", tag) or not (folder / tag).is_dir():
            raise ValueError(f"{folder / 'latest'} names {tag!r}, which is no folder beside it.")
    missing = [name for name in wanted if not (folder / name).is_file()]
    missing += [] if any(folder.glob("rng_state*.pth")) else ["rng_state.pth"]
    if missing:
        raise ValueError(f"{folder} is no checkpoint to resume from: it lacks {', '.join(missing)}.")
    step = read_json(folder / STATE).get("global_step")
    if not isinstance(step, int) or step < 0:
        raise ValueError(f"{folder / STATE} is broken: `global_step` is {step!r}.")
    for path in (*folder.glob("*.safetensors"), *folder.glob("adapter/*.safetensors")):
        check_safetensors(path)
    for path in (*folder.glob("*.pt"), *folder.glob("*.pth"), *folder.glob("*.bin")):
        _check_torch_file(path)


def _weights(folder: Path) -> tuple[str, ...]:
    """
    The weight files that a checkpoint must hold: those of a policy with its adapter, of an adapter, or of a whole
    model.
    """
    if not (folder / CONFIG).is_file():
        return ADAPTER_CONFIG, ADAPTER_WEIGHTS
    config = read_json(folder / CONFIG)
    if config.get("model_type") == "tokforget" and config.get("has_adapter", True):
        return WEIGHTS, f"{ADAPTER}/{ADAPTER_CONFIG}", f"{ADAPTER}/{ADAPTER_WEIGHTS}"
    return (WEIGHTS,)


def _check_torch_file(path: Path) -> None:
    """Raise `ValueError` unless a file is an intact zip archive as torch writes it, without compressed members."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
            damaged = None if packed else archive.testzip()  # compares checksums
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} is not a whole torch file: {error}. Resume from an earlier checkpoint.") from error
    if packed:
        raise ValueError(f"{path} was not written by torch: {packed[0]!r} is compressed.")
    if damaged:
        raise ValueError(f"{path} is damaged in {damaged!r}. Resume from an earlier checkpoint.")


def last_checkpoint(run_dir: str | Path) -> Path | None:
    """The last complete checkpoint of a run; `None` if there is none. Incomplete ones are logged."""
    for folder in reversed(checkpoints(run_dir)):
        try:
            check_checkpoint(folder)
        except ValueError as error:
            logger.warning("Left out: %s", error)
        else:
            return folder
    return None


def is_finished(run_dir: str | Path, wanted: dict) -> bool:
    """
    Whether the run in this folder has finished, including its final evaluation.

    Args:
        run_dir (`str` or `Path`): Folder of the run.
        wanted (`dict`): The requested length, `max_steps` and `num_train_epochs`. A run of another length has not
            finished.
    """
    state, record = Path(run_dir, STATE), Path(run_dir, RECORD)
    if not (state.is_file() and record.is_file()):
        return False
    try:
        read_json(state)
        recorded = read_json(record)
    except ValueError:
        return False  # killed while it wrote its last file
    return all(recorded.get(name) == value for name, value in wanted.items())


def remove(checkpoint: Path) -> None:
    """
    Delete a checkpoint. It is first renamed, so that an interrupted deletion leaves nothing that looks like a
    checkpoint.
    """
    hidden = checkpoint.with_name(_REMOVED + checkpoint.name)
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(checkpoint, hidden)
    shutil.rmtree(hidden)


def put_in_place(staged: Path, checkpoint: Path) -> None:
    """Rename a finished checkpoint to its final name, after removing one that has this name."""
    if checkpoint.exists():
        remove(checkpoint)
    os.replace(staged, checkpoint)


def rotate(run_dir: Path, limit: int | None, best: str | None) -> None:
    """
    Delete the oldest checkpoints until `limit` are left, but never the newest or the best; and the rests of killed
    saves.
    """
    for left_over in run_dir.glob(f"{_REMOVED}*"):
        shutil.rmtree(left_over)
    if not limit or limit < 0:
        return
    # By age, not by step: a run that resumed from an early checkpoint has newer checkpoints with lower steps.
    by_age = sorted(checkpoints(run_dir), key=lambda path: (path.stat().st_mtime_ns, step_of(path)))
    spared = {path.resolve() for path in (by_age[-1], *([Path(best)] if best else []))}
    spare = max(limit, len(spared))
    for checkpoint in [path for path in by_age if path.resolve() not in spared][: max(len(by_age) - spare, 0)]:
        remove(checkpoint)


# Keys whose value a model folder may override; they are compared when the model is loaded.
_TOLD_BY_FOLDERS = ("lora_rank", "lora_alpha", "lora_target_modules", "layout", "base_model_name_or_path")


def checkpoint_to_resume(args: BaseForgetConfig, asked: dict | None = None) -> str | None:
    """
    The checkpoint to resume from, or `None` to start at step 0. Prints one line about it. Ends the process with exit
    code 0 if `auto_resume` finds that the run has finished.

    It refuses, with one line and exit code 2, a requested checkpoint that is missing, incomplete or of another run,
    and a new run in a folder that holds another run.

    Args:
        args ([`BaseForgetConfig`]): Training arguments.
        asked (`dict`, *optional*): Every argument of the run, in the form of its record; those of `args` by default.
    """
    try:
        return _checkpoint_to_resume(args, (asked or as_record(args)) | {"texts_per_step": texts_per_step(args)})
    except OtherRunError as error:
        refuse(str(error))


def _checkpoint_to_resume(args: BaseForgetConfig, asked: dict) -> str | None:
    wanted, run_dir = args.resume_from_checkpoint, args.output_dir
    unknown = [*_TOLD_BY_FOLDERS, *(["warm_start_steps"] if asked.get("warm_start_steps") is None else [])]
    if args.auto_resume and not wanted:
        found = last_checkpoint(run_dir)
        if found or Path(run_dir, STATE).is_file():
            refuse_other_run(run_dir if Path(run_dir, RECORD).is_file() else found, asked, unknown)
        if is_finished(run_dir, {"max_steps": args.max_steps, "num_train_epochs": args.num_train_epochs}):
            say(
                f"{run_dir}: this run has finished, nothing is trained. Ask for more steps to continue it, or take another folder."
            )
            sys.exit(0)
        if not found:
            refuse_held(run_dir)  # for instance a model without a record
        say(f"Resuming from {found}." if found else f"{run_dir} holds no whole checkpoint: starting at step 0.")
        return str(found) if found else None
    if wanted == "last":
        found = last_checkpoint(run_dir) or refuse(f"`resume_from_checkpoint last`: {run_dir!r} holds no checkpoint.")
        refuse_other_run(found, asked, unknown)
        say(f"Resuming from {found}.")
        return str(found)
    if wanted:
        if not Path(wanted).is_dir():
            refuse(f"`resume_from_checkpoint` {wanted!r}: no such folder.")
        try:
            check_checkpoint(wanted)
        except ValueError as error:
            refuse(f"`resume_from_checkpoint`: {error}")
        refuse_other_run(wanted, asked, unknown)
    elif args.overwrite_output_dir:
        _refuse_own_source(asked, run_dir)
    else:
        refuse_held(run_dir)
    return wanted


def _refuse_own_source(asked: dict, run_dir: str) -> None:
    """Refuse a run that would first delete its own input (`overwrite_output_dir`)."""
    home = Path(run_dir).resolve()
    for key, value in asked.items():
        if key != "output_dir" and isinstance(value, str) and value and Path(value).exists():
            if Path(value).resolve().is_relative_to(home):
                raise OtherRunError(
                    f"`overwrite_output_dir` would delete `{key}` {value!r}, which the run needs: it lies in `output_dir`. Name "
                    "another `output_dir`."
                )


def check_output_dir(args: TrainingArguments) -> None:
    """Refuse a run whose folder cannot be written, before anything is loaded."""
    try:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.output_dir):
            pass
    except OSError as error:
        refuse(f"`output_dir` {args.output_dir!r} cannot be written: {error.strerror}.")

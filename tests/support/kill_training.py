"""
Kill a training run at random moments, and go on with it from the same folder, again and again.

    python tests/support/kill_training.py --kills 200 --seed 0

A tiny real run saves every second step, evaluates, rotates its checkpoints. Each kill is a SIGKILL: half of them at a random
time after the start, loading included, half at a random time after a save has begun. After each, every visible checkpoint
must be whole, and a new process with `auto_resume` must go on from the last one and get further. A run that reaches its
last step must end with the bits of a run that nobody killed, and say that it has finished when it is started again.

One process imports everything once and forks each run from itself, so that 200 kills take minutes. A run that stands still
says where before it is given up.
"""

import argparse
import faulthandler
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from safetensors.torch import load_file

# The first: it chooses the cache folder before the libraries look for it.
from tests.conftest import make_gpt2, make_tokenizer
from tests.training.test_forget_trainer import make_trainer, rows
from tokforget.training.checkpoints import (
    STAGING,
    check_checkpoint,
    checkpoint_to_resume,
    checkpoints,
    last_checkpoint,
    step_of,
)


STEPS, SAVE_STEPS = 40, 2
FINISHED_BEFORE, FINISHED_NOW, ONE_SAVE_MORE = 0, 10, 11
STANDS_STILL = 120.0  # seconds that no run takes
WORDS = ["the cat sat on the mat", "a dog ran to the red house", "we saw 12 birds fly over the sea"]


def train(base: Path, run_dir: Path, tokenizer, one_save: bool = False) -> int:
    """Start the run or go on with it, as a recipe does; how it ended."""
    trainer = make_trainer(
        str(base), tokenizer, run_dir, max_steps=STEPS, save_strategy="steps", save_steps=SAVE_STEPS, save_total_limit=2,
        eval_strategy="steps", eval_steps=SAVE_STEPS, load_best_model_at_end=True, auto_resume=True, train=rows(20),
        per_device_train_batch_size=2, num_masks=2, logging_steps=10, eval_rates=[0.5],
    )  # fmt: skip
    trainer.eval_dataset = rows(2)
    checkpoint = checkpoint_to_resume(trainer.args)  # ends the process where the run has finished
    if one_save:
        saved = trainer._save_checkpoint

        def save_and_end(model, trial) -> None:
            saved(model, trial)
            os._exit(ONE_SAVE_MORE)

        trainer._save_checkpoint = save_and_end
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(run_dir))
    trainer.save_state()
    return FINISHED_NOW


def forked(function, *arguments, log: Path) -> int:
    """Run a function in a fork of this process, its output in a file; the fork's id."""
    pid = os.fork()
    if pid:
        return pid
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    code = 99
    try:
        code = function(*arguments)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(pid: int) -> int:
    """Wait for a run's end. `TimeoutError` if it stands still: where, stands in its log."""
    began = time.monotonic()
    while (code := ended(pid)) is None:
        give_up_after(began, pid)
        time.sleep(0.001)
    return code


def ended(pid: int) -> int | None:
    """The exit code of a run that has ended."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def give_up_after(began: float, pid: int) -> None:
    if time.monotonic() - began > STANDS_STILL:
        os.kill(pid, signal.SIGUSR1)
        time.sleep(1)  # to write the stacks of its threads
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise TimeoutError(f"a run stood still for {STANDS_STILL:.0f} s")


def kill_at_random(pid: int, run_dir: Path, draw: random.Random, longest: float) -> int | None:
    """SIGKILL at a random moment; the exit code if the run ended before, `None` if it was killed."""
    began = time.monotonic()
    deadline = began + draw.uniform(0, longest)
    wait_for_save = draw.random() < 0.5
    while time.monotonic() < deadline or (wait_for_save and not (run_dir / STAGING).exists()):
        if (code := ended(pid)) is not None:
            return code
        give_up_after(began, pid)
        time.sleep(0.001)
    if wait_for_save:
        time.sleep(draw.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    code = exit_code(pid)
    return None if code == -signal.SIGKILL else code


def moment(run_dir: Path) -> str:
    """What the kill interrupted, from what it left."""
    if (run_dir / STAGING).exists():
        return "saving"
    if any(run_dir.glob(".removed-*")):
        return "deleting a checkpoint"
    return "training" if checkpoints(run_dir) else "before the first checkpoint"


def check_whole(run_dir: Path) -> None:
    for folder in checkpoints(run_dir):
        check_checkpoint(folder)
        for path in (*folder.glob("*.safetensors"), *folder.glob("adapter/*.safetensors")):
            load_file(path)
        for name in ("optimizer.pt", "scheduler.pt"):
            torch.load(folder / name, weights_only=True)


def same_bits(first: Path, second: Path) -> bool:
    names = ("model.safetensors", "adapter/adapter_model.safetensors")
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    draw, folder = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="tokforget-kills-"))
    base, log, reference = folder / "base", folder / "log.txt", folder / "reference"
    tokenizer = make_tokenizer([". ".join(WORDS) + f" {n}" for n in range(40)])
    make_gpt2(len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)

    def start(run_dir: Path, one_save: bool = False) -> int:
        return forked(train, base, run_dir, tokenizer, one_save, log=log)

    began = time.monotonic()
    if exit_code(start(reference)) != FINISHED_NOW:
        print(f"The run that nobody kills failed:\n{log.read_text()}")
        return 1
    unbroken = time.monotonic() - began
    survived, tried, runs, alike, moments = 0, 0, 0, 0, Counter()
    run_dir = folder / "run-0"
    while tried < args.kills:
        run_dir.mkdir(exist_ok=True)
        before = last_checkpoint(run_dir)
        try:
            code = kill_at_random(start(run_dir), run_dir, draw, longest=unbroken / 6)
        except TimeoutError as error:
            print(f"{error}:\n{log.read_text()[-8000:]}", flush=True)
            return 1
        if code is None:
            tried += 1
            moments[moment(run_dir)] += 1
            try:
                check_whole(run_dir)
                last = last_checkpoint(run_dir)
                if before is not None and (last is None or step_of(last) < step_of(before)):
                    raise ValueError(f"{before} was the last checkpoint, and now {last} is")
                code = exit_code(start(run_dir, one_save=True))
                now = last_checkpoint(run_dir)
                further = now is not None and step_of(now) > (step_of(last) if last else 0)
                if code != FINISHED_NOW and not (code == ONE_SAVE_MORE and further):
                    raise ValueError(f"went on from {last} to {now} and ended with {code}")
                survived += 1
            except (ValueError, OSError, RuntimeError) as error:
                print(f"kill {tried} of {run_dir} did not survive: {error}\n{log.read_text()[-4000:]}", flush=True)
                run_dir = folder / f"run-{runs}-after-{tried}"
                continue
        if code in (FINISHED_NOW, FINISHED_BEFORE):
            runs += 1
            alike += same_bits(run_dir, reference) and exit_code(start(run_dir)) == FINISHED_BEFORE
            shutil.rmtree(run_dir)
            run_dir = folder / f"run-{runs}"
        elif code != ONE_SAVE_MORE:
            print(f"A run ended by itself with {code}:\n{log.read_text()[-4000:]}", flush=True)
            return 1
    seconds = time.monotonic() - began
    where = ", ".join(f"{count} {name}" for name, count in moments.most_common())
    print(f"kills survived / tried: {survived} / {tried} ({where}), {seconds:.0f} s, seed {args.seed}")
    print(f"runs finished in spite of them with the bits of the unbroken run: {alike} / {runs}")
    if survived == tried and alike == runs:
        shutil.rmtree(folder)
        return 0
    print(f"left for a look: {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""
The recipes as shell commands: `tokforget train --config quick_test` starts the code of `accelerate launch recipes/train.py`.

Without `--accelerate_config` the recipe runs in this process, on the GPU if there is one. With it, Accelerate's launcher starts
the processes of the hardware file. The exit code is that of the recipe.
"""

# Import only light modules, as in main.py, because `tokforget compress` imports this module, too.
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tokforget.cli.files import UserError
from tokforget.recipe_keys import refuse_unknown_keys
from tokforget.shipped import hardware_file, recipe_path


class Recipe(NamedTuple):
    """
    The recipe of a command.

    Attributes:
        script (`str`): File in `recipes/`.
        summary (`str`): Line in `tokforget --help`.
        hardware (`str`): Who reads `--accelerate_config`: the `launcher`; the `recipe`, if it launches others; or
            `nobody`.
    """

    script: str
    summary: str
    hardware: str


RECIPES = {
    "prepare": Recipe("prepare_data.py", "Read, divide, deduplicate and tokenise texts, once.", "nobody"),
    "train-reconstructor": Recipe("train_reconstructor.py", "Train the model that restores texts.", "launcher"),
    "train": Recipe("train.py", "Train a policy, compare it with the baselines, save the model.", "launcher"),
    "train-compressor": Recipe(
        "train_reader_policy.py", "Train a compressor over words from a reader's losses.", "nobody"
    ),
    "calibrate": Recipe("calibrate_quality.py", "Calibrate the quality floor of a model.", "nobody"),
    "evaluate": Recipe("evaluate.py", "Compare models with every baseline, write a report.", "launcher"),
    "baselines": Recipe("run_baselines.py", "Compare the baselines alone.", "launcher"),
    "cache-cost": Recipe("cache_cost.py", "Measure churn and cache cost of growing chats.", "nobody"),
    "readers": Recipe("reader_benchmark.py", "Measure how well a reader works with compressed text.", "nobody"),
    "leaderboard": Recipe("leaderboard.py", "Train and compare over several seeds, in one table.", "recipe"),
    "push": Recipe("push_to_hub.py", "Send a model or prepared data to the Hub.", "nobody"),
}
HARDWARE = "--accelerate_config"
# Options of the launcher besides the hardware file; all other arguments belong to the recipe.
LAUNCHER_OPTIONS = (
    "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip", "--main_process_port", "--mixed_precision",
    "--gpu_ids", "--num_cpu_threads_per_process",
)  # fmt: skip


def run_recipe(command: str, words: Sequence[str]) -> int:
    """
    Run a recipe with the arguments `words`.

    Returns:
        `int`: The exit code. A recipe in this process that refuses its arguments raises `SystemExit`, as a script
            does.

    Raises:
        `UserError`: If `--accelerate_config` names no hardware file, or the command starts only one process.
    """
    recipe = RECIPES[command]
    hardware, words = _take(list(words), HARDWARE)
    script = recipe_path(recipe.script)
    if hardware is None:
        return _run_here(script, words)
    try:
        path = hardware_file(hardware)
    except ValueError as error:
        raise UserError(str(error)) from error
    if recipe.hardware == "nobody":
        raise UserError(f"`tokforget {command}` is one process and launches none: leave out `{HARDWARE}`.")
    if recipe.hardware == "recipe":
        return _run_here(script, ["--hardware", str(path), *words])
    options = []
    for name in LAUNCHER_OPTIONS:
        value, words = _take(words, name)
        options += [] if value is None else [name, value]
    refuse_unknown_keys(script, words)  # before the launcher imports torch, and in one process
    return _launch(["--config_file", str(path), *options, str(script), *words])


def _take(words: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of the option `name`, `None` if it was not passed, and the words without it; the last one wins."""
    value, rest, at = None, [], 0
    while at < len(words):
        word, equals, behind = words[at].partition("=")
        if word != name:
            rest.append(words[at])
        elif equals:
            value = behind
        elif at + 1 < len(words):
            at, value = at + 1, words[at + 1]
        else:
            raise UserError(f"`{name}` needs a value.")
        at += 1
    return value, rest


def _run_here(script: Path, words: list[str]) -> int:
    """Run the script as `python script.py words` does."""
    import runpy

    before, sys.argv = sys.argv, [str(script), *words]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before
    return 0


def _launch(words: list[str]) -> int:
    """Run `accelerate launch words` in this process, wait for the processes it starts, and return their exit code."""
    from subprocess import CalledProcessError

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _quiet_launcher()
    try:
        with _signals_passed_on():
            launch_command(launch_command_parser().parse_args(words))
    except CalledProcessError as error:
        return _exit_code(error.returncode)
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + error.sigval
    except ValueError as error:  # options that exclude each other
        raise UserError(f"accelerate launch: {error}") from error
    return 0


def _exit_code(code: int) -> int:
    """The exit code as in a shell: 128 plus the signal's number for a process that a signal ended."""
    if code >= 0:
        return code
    sys.stderr.write(f"tokforget: error: a process of the run was ended by {signal.Signals(-code).name}.\n")
    return 128 - code


def _quiet_launcher() -> None:
    """Hide torchrun's report of a failed process, because the process has printed its own error."""
    import logging

    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """
    Wait for the run after a signal: the run ends by itself with a checkpoint, and its exit code is returned.

    A terminal sends Ctrl-C to both processes; SIGTERM reaches only this process and is passed on.
    """
    import psutil

    def pass_on(number, frame):
        for child in psutil.Process().children():
            child.send_signal(number)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

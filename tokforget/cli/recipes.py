"""
The recipes as shell commands: `tokforget train --config quick_test` starts the code of `accelerate launch recipes/train.py`.

Without `--accelerate_config` the recipe runs in this process, on the GPU if there is one. With it, Accelerate's launcher starts
the processes that the hardware file asks for. Either way the exit code is the recipe's.
"""

# As in main.py only what costs nothing: `tokforget compress` imports this, too.
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
    What a command starts.

    Attributes:
        script (`str`): File in `recipes/`.
        summary (`str`): For `tokforget --help`.
        hardware (`str`): Who reads `--accelerate_config`: `launcher`, or the `recipe`, which launches others, or `nobody`.
    """

    script: str
    summary: str
    hardware: str


RECIPES = {
    "prepare": Recipe("prepare_data.py", "Read, divide, deduplicate and tokenise texts, once.", "nobody"),
    "train-reconstructor": Recipe("train_reconstructor.py", "Train the model that restores texts.", "launcher"),
    "train": Recipe("train.py", "Train a policy, compare it with the baselines, save the model.", "launcher"),
    "train-compressor": Recipe(
        "train_reader_policy.py", "Train a compressor from what a reader loses, by words.", "nobody"
    ),
    "calibrate": Recipe("calibrate_quality.py", "Calibrate the quality floor of a model.", "nobody"),
    "evaluate": Recipe("evaluate.py", "Compare models with every baseline, write a report.", "launcher"),
    "baselines": Recipe("run_baselines.py", "Compare the baselines alone.", "launcher"),
    "cache-cost": Recipe("cache_cost.py", "Measure churn and cache cost of growing chats.", "nobody"),
    "readers": Recipe("reader_benchmark.py", "Measure what a reader can do with compressed text.", "nobody"),
    "leaderboard": Recipe("leaderboard.py", "Train and compare over several seeds, in one table.", "recipe"),
    "push": Recipe("push_to_hub.py", "Send a model or prepared data to the Hub.", "nobody"),
}
HARDWARE = "--accelerate_config"
# What the launcher may be told beside the hardware file; every other word is the recipe's.
LAUNCHER_OPTIONS = (
    "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip", "--main_process_port", "--mixed_precision",
    "--gpu_ids", "--num_cpu_threads_per_process",
)  # fmt: skip


def run_recipe(command: str, words: Sequence[str]) -> int:
    """
    Run a recipe with the words of the command line.

    Returns:
        `int`: The exit code; a recipe in this process that refuses its arguments leaves by `SystemExit`, as when it is a script.

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
    """The script as `python script.py words` runs it."""
    import runpy

    before, sys.argv = sys.argv, [str(script), *words]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before
    return 0


def _launch(words: list[str]) -> int:
    """`accelerate launch words` in this process; it waits for those it starts, and their exit code is returned."""
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
    except ValueError as error:  # options that do not go together
        raise UserError(f"accelerate launch: {error}") from error
    return 0


def _exit_code(code: int) -> int:
    """As a shell tells it: a process that a signal ended has 128 and the signal's number."""
    if code >= 0:
        return code
    sys.stderr.write(f"tokforget: error: a process of the run was ended by {signal.Signals(-code).name}.\n")
    return 128 - code


def _quiet_launcher() -> None:
    """Without torchrun's own report of a process that failed: the process has said why, in a line or a traceback."""
    import logging

    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """
    Outlive the run: a signal ends it in its own time, with a checkpoint, and its exit code is still told.

    A terminal sends Ctrl-C to both; SIGTERM comes to this process alone and is passed on.
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

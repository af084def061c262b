"""The steps that the training recipes share: begin, report errors in one line, finish."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tokforget.launch import check_launcher, check_libraries, check_run, say_device
from tokforget.parsing import as_record, parse_arguments, refuse
from tokforget.training.checkpoints import check_output_dir, checkpoint_to_resume


if TYPE_CHECKING:
    from rich.console import Console

    from tokforget.training.base_trainer import BaseForgetTrainer


def begin(dataclass_types: Sequence[type], argv: Sequence[str] | None, description: str | None) -> tuple[Any, ...]:
    """
    Parse the arguments, check launcher, output folder and checkpoints before anything is loaded, and set the seed.

    Args:
        dataclass_types (`list[type]`): Dataclasses of the arguments, with the training arguments last.
        argv (`list[str]`, *optional*): Command line; that of the process by default.
        description (`str`, *optional*): Head of the help.

    Returns:
        `tuple`: One instance of each dataclass, the checkpoint to resume from or `None`, and a `rich` console that
        prints only in the first process.
    """
    check_launcher()
    groups = parse_arguments(dataclass_types, argv, description)
    args = groups[-1]
    check_run(args)
    check_libraries(args)
    check_output_dir(args)
    checkpoint = checkpoint_to_resume(args, as_record(*groups))
    say_device(args)

    from rich.console import Console  # slow imports come after the keys are checked
    from transformers import set_seed

    from tokforget.models.sharded_weights import load_whole

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("tokforget.training").setLevel(logging.INFO)
    set_seed(args.seed)
    load_whole(args)
    return *groups, checkpoint, Console(quiet=args.process_index > 0)


@contextmanager
def refusals_in_one_line() -> Iterator[None]:
    """Turn errors in a user's request, including refusals of the Hub, into one line and exit code 2."""
    from tokforget.hub.client import HubError

    try:
        yield
    except (ValueError, OSError, HubError) as error:
        refuse(str(error))


def finish(trainer: "BaseForgetTrainer", console: "Console") -> None:
    """
    Print where the finished model is and, with `push_to_hub`, send its folder. If the push fails,
    recipes/push_to_hub.py can repeat it.
    """
    trainer.save_state()
    console.print(f"Finished. The model: {trainer.args.output_dir}", soft_wrap=True, highlight=False)
    if trainer.args.push_to_hub:
        with refusals_in_one_line():
            pushed = trainer.push_to_hub()
        if pushed is not None:
            console.print(f"Pushed: {pushed.url}", soft_wrap=True, highlight=False)
    trainer.end()

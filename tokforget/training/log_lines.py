"""
The lines that a run prints while it trains: the figures that show whether it learns. `trainer_state.json` has all
figures.
"""

from collections.abc import Mapping

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback


# Logged figures and their formats, in the order of printing. `loss` is left out of runs with a policy gradient,
# because the size of that loss has no meaning.
_FIGURES = {
    "bits_lost": "bits_lost {:.3f}", "exact_restored": "exact {:.1%}", "rate": "rate {:.3f}", "reward": "reward {:.3f}",
    "entropy": "entropy {:.3f}", "loss": "loss {:.3f}", "tokens_per_second": "{:,.0f} tokens/s",
}  # fmt: skip


def log_line(logs: Mapping[str, float], step: int, steps: int) -> str | None:
    """The line for a log of a step or of an evaluation; `None` for other logs, such as the totals at the end."""
    head = f"step {step}/{steps}"
    if "eval_bits_lost" in logs:
        rates = [name.rpartition("_")[2] for name in logs if name.startswith("eval_bits_lost_")]
        by_rate = [
            f"{rate}: {logs[f'eval_bits_lost_{rate}']:.3f} bits, {logs[f'eval_exact_restored_{rate}']:.1%} exact"
            for rate in rates
        ]
        return f"{head}, evaluation: bits_lost {logs['eval_bits_lost']:.3f} ({'; '.join(by_rate)})"
    if "loss" not in logs:
        return None
    shown = [
        form.format(logs[name]) for name, form in _FIGURES.items()
        if name in logs and not (name == "loss" and "policy_loss" in logs)
    ]  # fmt: skip
    return f"{head}: {', '.join(shown)}"


class LogLines(TrainerCallback):
    """Prints the [`log_line`] of each log in the first process."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        line = log_line(logs or {}, state.global_step, state.max_steps)
        if line is not None and state.is_world_process_zero:
            tqdm.write(line)  # above the bar, if there is one


class _BarAlone(ProgressCallback):
    """Transformers' progress bar without the printed dictionaries."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


def show_lines(trainer: Trainer) -> None:
    """Make a trainer print [`log_line`]s instead of Transformers' dictionaries."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(_BarAlone)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogLines)

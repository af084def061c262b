"""What a run shows while it trains: a line for each log, of what tells whether it learns. The whole log is in `trainer_state.json`."""

from collections.abc import Mapping

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback


# In this order; names as in the log, and how they are written. `loss` is that of the policy gradient where there is one, whose
# size says nothing: it is left out there.
_FIGURES = {
    "bits_lost": "bits_lost {:.3f}", "exact_restored": "exact {:.1%}", "rate": "rate {:.3f}", "reward": "reward {:.3f}",
    "entropy": "entropy {:.3f}", "loss": "loss {:.3f}", "tokens_per_second": "{:,.0f} tokens/s",
}  # fmt: skip


def log_line(logs: Mapping[str, float], step: int, steps: int) -> str | None:
    """One line of a log, of a step or of an evaluation; `None` of what is neither, as the sums at the end."""
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
    """Prints [`log_line`] of each log, in the first process."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        line = log_line(logs or {}, state.global_step, state.max_steps)
        if line is not None and state.is_world_process_zero:
            tqdm.write(line)  # above the bar, if there is one


class _BarAlone(ProgressCallback):
    """The host's bar without its dictionaries."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


def show_lines(trainer: Trainer) -> None:
    """Let a trainer show lines in place of the host's dictionaries of twenty keys."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(_BarAlone)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogLines)

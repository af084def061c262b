"""
A trainer that can be interrupted at any moment. Checkpoints are complete or absent, a signal ends the run after the
current step with a checkpoint, and a number that is not finite ends it without one.
"""

import math
import pickle
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tokforget._trl import _BaseTrainer
from tokforget.models.sharded_weights import is_divided, whole_weights
from tokforget.training.checkpoints import STAGING, check_checkpoint, last_checkpoint, put_in_place, rotate
from tokforget.training.faults import CheckpointError, NotFiniteError, RunInterrupted, SaveError, SignalWatch
from tokforget.training.run_folder import STATE, refuse_held, refuse_other_run, take_folder


class InterruptibleTrainer(_BaseTrainer):
    """
    Handles the faults of a run for the trainers. Batches may hold `text_index` `(B,)`, indices in the training set, so
    that errors can name the texts.
    """

    def whole_weights(self, changed: bool = False) -> AbstractContextManager[None]:
        """
        Gather the weights for a use of the model outside a training step; see [`tokforget.models.sharded_weights`].
        """
        return whole_weights(self.model_wrapped, changed)

    # -- numbers of texts ----------------------------------------------------------------------------------------------
    _drawing_step, _micro_batch = -1, 0

    def _number(self, num_texts: int) -> range:
        """
        Numbers of this micro-batch's texts. They count the texts of the run, in the order in which one process with
        the whole batch would see them. A text's random numbers depend only on the seed and on its number. Therefore
        they do not depend on how a batch is divided into processes and micro-batches, or on where a run was
        interrupted.
        """
        args, step = self.args, self.state.global_step
        self._drawing_step, self._micro_batch = step, self._micro_batch + 1 if step == self._drawing_step else 0
        batch = (step * args.gradient_accumulation_steps + self._micro_batch) * self.accelerator.num_processes
        first = (batch + self.accelerator.process_index) * args.train_batch_size
        return range(first, first + num_texts)

    # -- ending early --------------------------------------------------------------------------------------------------
    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        As Transformers' `train`. SIGTERM or Ctrl-C ends it after the current step with a checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): The checkpoint to resume from; True for the last
                complete one.

        Raises:
            `CheckpointError`: If the checkpoint is missing, incomplete, or belongs to another run.
            `RunInterrupted`: A `SystemExit`, after a signal and a checkpoint.
            `NotFiniteError`: If a loss, a gradient or a weight is nan or infinite; no checkpoint holds such a number.
            `SaveError`: If a checkpoint could not be written.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise CheckpointError(f"{self.args.output_dir!r} holds no whole checkpoint to resume from.")
        if resume_from_checkpoint:
            self._check_checkpoint(resume_from_checkpoint)
            resume_from_checkpoint = str(resume_from_checkpoint)
        self._take_folder(resumed=bool(resume_from_checkpoint))
        self._prepare(resumed=bool(resume_from_checkpoint))
        self._step_losses: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        with SignalWatch(announces=self.is_world_process_zero()) as self._signals:
            output = super().train(resume_from_checkpoint or None, *args, **kwargs)
        if self._signals.received:
            self._interrupt(self._signals.received)  # the signal came after the last step
        return output

    run_record: dict = {}
    has_folder = False  # set by the first `train`

    def _take_folder(self, resumed: bool) -> None:
        """Take `output_dir` for this run; see [`take_folder`]. A second `train` keeps it."""
        args, resumed = self.args, resumed or self.has_folder
        if not resumed and not args.overwrite_output_dir:
            refuse_held(args.output_dir)  # in every process, before one of them changes anything
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            with self._writing(args.output_dir):
                take_folder(args.output_dir, self.run_record, args.overwrite_output_dir, resumed)
        self.has_folder = True

    def _prepare(self, resumed: bool) -> None:
        """
        Work before the first step, for subclasses. A resumed run loads its weights from the checkpoint afterwards.
        """

    def _check_checkpoint(self, folder: str | Path) -> None:
        try:
            check_checkpoint(folder)
            TrainerState.load_from_json(str(Path(folder, STATE)))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder} is no checkpoint to resume from: {error}") from error
        unknown = ["warm_start_steps"] if self.run_record.get("warm_start_steps") is None else []
        refuse_other_run(folder, self.run_record, unknown)

    def training_step(self, model, inputs, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._step_losses.append((loss, inputs.get("text_index")))
        return loss

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:
            # Resumed from the checkpoint of the last step: Transformers would take one more step.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *args, **kwargs) -> None:
        """As in Transformers, after a step. First all processes agree whether the run ends here."""
        # In half precision an infinite gradient is no error: the loss scaler skips the step and lowers the scale.
        scaled = self.accelerator.mixed_precision == "fp16"
        grad_norm_is_finite = grad_norm is None or scaled or math.isfinite(grad_norm)
        losses = [loss for loss, _ in self._step_losses]
        losses_are_finite = not losses or bool(torch.stack(losses).isfinite().all())
        broken, signal_number = self._largest(
            float(not (grad_norm_is_finite and losses_are_finite)), float(self._signals.received)
        )
        if broken:
            raise NotFiniteError(self._what_is_not_finite(losses_are_finite))
        self._step_losses.clear()
        if signal_number:
            self.control.should_save = True
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)
        if signal_number:
            self._interrupt(int(signal_number))

    def _largest(self, *values: float) -> list[float]:
        """The maximum of each value over all processes."""
        mine = torch.tensor([values], device=self.args.device)
        return self.accelerator.gather(mine).amax(0).tolist()

    def _interrupt(self, signal_number: int) -> None:
        checkpoint = last_checkpoint(self.args.output_dir)
        message = f"Interrupted after step {self.state.global_step}. {self._how_to_go_on(checkpoint)}"
        if self.is_world_process_zero():
            print(message, file=sys.stderr, flush=True)
        raise RunInterrupted(signal_number, message)

    @staticmethod
    def _how_to_go_on(checkpoint: Path | None) -> str:
        if checkpoint is None:
            return "There is no checkpoint to resume from."
        return f"The last checkpoint is {checkpoint}. Resume with `--resume_from_checkpoint last` or `--auto_resume true`."

    def _what_is_not_finite(self, losses_are_finite: bool) -> str:
        """
        The error message with the texts of the step, or of the micro-batch whose loss is not finite, of all processes.
        """
        what, texts = ("gradient", []) if losses_are_finite else ("loss", [])
        for loss, index in self._step_losses:
            if index is not None and (losses_are_finite or not torch.isfinite(loss)):
                texts += index.tolist()
        found = gather_object([(what, texts)])
        what = "loss" if any(kind == "loss" for kind, _ in found) else "gradient"
        texts = sorted(number for kind, numbers in found if kind == what for number in numbers)
        return (
            f"The {what} of step {self.state.global_step} is not finite. Texts {', '.join(map(str, texts)) or 'unknown'} of "
            "the training set were in the batch. No checkpoint was written from it. "
            f"{self._how_to_go_on(last_checkpoint(self.args.output_dir))} Look at these texts, or lower the learning rates."
        )

    # -- saving --------------------------------------------------------------------------------------------------------
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        divided = is_divided(self.model_wrapped)
        gathered = self.accelerator.get_state_dict(self.model_wrapped) if divided else None
        with self.whole_weights():
            self._check_finite()
            with nullcontext() if self._run_dir is not None else self._writing(output_dir or self.args.output_dir):
                if divided:  # as Transformers does, but the weights are gathered while the folder is written
                    self._save(output_dir, gathered)
                else:
                    super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _check_finite(self) -> None:
        flags = {
            name: p.detach().isfinite().all()
            for name, p in self.accelerator.unwrap_model(self.model).named_parameters()
            if p.requires_grad
        }
        broken = [name for name, fine in flags.items() if not fine]
        if self._largest(float(bool(broken)))[0]:
            raise NotFiniteError(
                f"The update of step {self.state.global_step} left weights that are not finite"
                f"{f', {broken[0]} first' if broken else ''}. They were not saved. "
                f"{self._how_to_go_on(last_checkpoint(self.args.output_dir))} Lower the learning rates."
            )

    @contextmanager
    def _writing(self, target: str | Path) -> Iterator[None]:
        """Turn errors of the file system into a [`SaveError`]."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise SaveError(
                f"{target} could not be written: {error}. {self._how_to_go_on(last_checkpoint(self.args.output_dir))}"
            ) from error

    def _save_checkpoint(self, model, trial) -> None:
        """Save under a temporary name and rename at the end, so that a killed run leaves no incomplete checkpoint."""
        run_dir = Path(self.args.output_dir)
        staging, name = run_dir / STAGING, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        best_before, self._run_dir = self.state.best_model_checkpoint, staging
        try:
            with self._writing(run_dir / name):
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                self.state.best_model_checkpoint = (
                    str(run_dir / name) if self.state.best_global_step == self.state.global_step else best_before
                )
                if self.args.should_save:
                    self.state.save_to_json(str(staging / name / STATE))
                    put_in_place(staging / name, run_dir / name)
                    rotate(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
        finally:
            self._run_dir = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)  # makes room on a full disk
        self.accelerator.wait_for_everyone()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with _archiving():
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        with _archiving():
            super()._save_rng_state(output_dir)

    _run_dir: Path | None = None

    def _get_output_dir(self, trial) -> str:
        return str(self._run_dir) if self._run_dir is not None else super()._get_output_dir(trial)

    # -- resuming ------------------------------------------------------------------------------------------------------
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with self._reading(checkpoint):
            super()._load_rng_state(checkpoint)

    @staticmethod
    @contextmanager
    def _reading(checkpoint: str | None) -> Iterator[None]:
        """
        Turn errors while reading into a [`CheckpointError`]: weights that do not fit, or a file that no trainer wrote.
        """
        try:
            yield
        except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint} does not fit this run: {' '.join(str(error).split())[:300]}"
            ) from error


class NumberedTexts(torch.utils.data.Dataset):
    """The training texts, each with its index `text_index`, so that errors can name the texts of a batch."""

    def __init__(self, texts):
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, place: int) -> dict:
        return {**self.texts[place], "text_index": place}


@contextmanager
def _archiving() -> Iterator[None]:
    """
    Raise `OSError` for an error of the file system, which `torch.save` reports as a `RuntimeError` ("iostream error").
    """
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"torch could not write its archive: {' '.join(str(error).split())[:200]}") from error

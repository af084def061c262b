"""
What every trainer here does alike: seeds, averaged figures, evaluation at fixed rates, the record beside the weights.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, EvalPrediction

from tokforget.evaluation import measure, summarise, write_json
from tokforget.hub import write_card
from tokforget.interruptible_trainer import InterruptibleTrainer, NumberedTexts
from tokforget.reconstructor import Reconstructor


class BudgetTrainer(InterruptibleTrainer):
    r"""
    Host of the trainers that mask texts at a budget and learn from what a reconstructor loses.

    Args:
        model (`nn.Module`): What is trained.
        args ([`BudgetConfig`]): Arguments of the run.
        train_dataset, eval_dataset (`datasets.Dataset`): Column `input_ids`, blocks of token ids.
        processing_class (`PreTrainedTokenizerBase`): Saved with the model.
        run_record (`dict`, *optional*): Every argument of the run, for `training_config.json`.
    """

    loss_is_scaled_for_ga = False  # a mean per micro-batch: the host divides by the accumulation steps
    _card_template = "model.md"

    def __init__(
        self,
        model,
        args,
        train_dataset,
        eval_dataset=None,
        processing_class=None,
        run_record: dict | None = None,
        **kwargs,
    ):
        if train_dataset is None or len(train_dataset) == 0:
            raise ValueError("The training set is empty; there is nothing to learn from.")
        super().__init__(
            model=model,
            args=args,
            train_dataset=NumberedTexts(train_dataset),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=self._summarise_rates,
            **kwargs,
        )
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self.run_record = run_record or args.to_dict()
        self._metrics: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._tokens_seen, self._clock = 0, time.perf_counter()
        torch.manual_seed(args.seed + self.accelerator.process_index)  # every process draws its own keep masks

    def _send_telemetry(self) -> None:
        """The host's base would ping its makers here; tokforget sends nothing on its own."""

    @property
    def _unwrapped(self):
        return self.accelerator.unwrap_model(self.model)

    # -- logging -------------------------------------------------------------------------------------------------------
    def _note(self, num_tokens: int, values: dict[str, torch.Tensor]) -> None:
        """Figures of one step, averaged at the next log; `nan` counts for none. `num_tokens` are original tokens."""
        for name, value in values.items():
            self._metrics[name].append(value.detach().float())
        self._tokens_seen += num_tokens * self.accelerator.num_processes

    def _figures(self) -> dict[str, float]:
        """What is logged beside the loss: means over the steps since the last log and over all processes."""
        names = sorted(self._metrics)
        means = torch.stack([torch.stack(self._metrics[name]).nanmean() for name in names])
        means = self.accelerator.gather(means[None]).nanmean(0).tolist()
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        return dict(zip(names, means)) | {"tokens_per_second": self._tokens_seen / seconds}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._metrics:
            logs |= self._figures()
            self._metrics.clear()
            self._tokens_seen, self._clock = 0, time.perf_counter()
        super().log({name: value for name, value in logs.items() if value == value}, start_time)

    # -- evaluation ----------------------------------------------------------------------------------------------------
    def _measure_rates(
        self,
        reconstructor: Reconstructor,
        input_ids: torch.Tensor,
        valid: torch.Tensor,
        keep_mask_at: Callable[[float], torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Bits and restoration of each text at each of `eval_rates`, as a `prediction_step` returns them."""
        with torch.no_grad(), self.compute_loss_context_manager():
            by_rate = [measure(reconstructor, input_ids, valid, keep_mask_at(rate)) for rate in self.args.eval_rates]
        measured = torch.stack(by_rate, 1)  # (B, rates, 4)
        loss = (measured[..., 0] / measured[..., 3]).mean()
        return loss, measured, valid.sum(1)

    def _summarise_rates(self, prediction: EvalPrediction) -> dict[str, float]:
        measured: np.ndarray = prediction.predictions
        metrics = {"bits_lost": float((measured[..., 0].sum(0) / measured[..., 3].sum(0)).mean())}
        for column, rate in enumerate(self.args.eval_rates):
            summary = summarise(measured[:, column].astype(np.float64))
            metrics |= {f"{name}_{rate:g}": value for name, value in summary.items()}
        return metrics

    # -- checkpoints ---------------------------------------------------------------------------------------------------
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._describe(Path(output_dir or self.args.output_dir))

    def _describe(self, folder: Path) -> None:
        """The run's record and card beside the weights."""
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; training_config.json says the same
        write_json(folder / "training_config.json", self.run_record)
        write_card(folder, self._card_template)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        with self._reading(resume_from_checkpoint):
            self.accelerator.unwrap_model(model or self.model).load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._unwrapped.load_weights(self.state.best_model_checkpoint)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        if self.is_world_process_zero():
            write_card(Path(self.args.output_dir), self._card_template)

"""
The common part of the trainers: seeds, averaged figures, evaluation at fixed rates, the record next to the weights.
"""

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import TorchDynamoPlugin
from torch.utils.data import RandomSampler, Sampler
from transformers import EarlyStoppingCallback, EvalPrediction, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import HubStrategy

from tokforget.data.arguments import MAX_LENGTH, MIN_LENGTH
from tokforget.data.blocks import as_blocks
from tokforget.files import RESULTS, write_json
from tokforget.hub.cards import write_card
from tokforget.hub.client import HubError, Uploaded, create_repository
from tokforget.hub.staging import share
from tokforget.masking import seeded_generator
from tokforget.models.loading import load_tokenizer
from tokforget.models.measuring import measure, summarise
from tokforget.models.reconstructor import Reconstructor
from tokforget.models.sharded_weights import load_whole
from tokforget.parsing import as_record
from tokforget.training.log_lines import show_lines
from tokforget.training.random_masks import unigram_surprisal
from tokforget.training.resumable_trainer import InterruptibleTrainer, NumberedTexts
from tokforget.training.run_folder import RECORD, texts_per_step
from tokforget.training.run_record import RunFacts


logger = logging.getLogger(__name__)


class BaseForgetTrainer(InterruptibleTrainer):
    r"""
    Base of the trainers that mask texts to a budget and learn from the bits that a reconstructor loses.

    Args:
        model (`nn.Module` or `str`): The model to train. A name is loaded; new weights are drawn with the seed of
            `args`.
        args ([`BaseForgetConfig`]): Arguments of the run.
        train_dataset, eval_dataset (`datasets.Dataset`): Column `input_ids`, blocks of token ids, or `text`; see
            [`as_blocks`].
        processing_class (`PreTrainedTokenizerBase`): The tokenizer; it is saved with the model.
        run_record (`dict`, *optional*): Every argument of the run, for `training_config.json`.

    Raises:
        `TypeError`: If `model` is neither of the trainer's class nor a name.
        `ValueError`: If the name cannot be loaded, or a data set has no text to learn from.
    """

    loss_is_scaled_for_ga = False  # the loss is a mean per micro-batch; Transformers divides by the accumulation steps
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
        reconstructor = self._reconstructor_of(model)
        max_length = min(MAX_LENGTH, reconstructor.max_tokens or MAX_LENGTH)
        train_dataset, eval_dataset = (
            as_blocks(texts, processing_class, name, max_length, min(MIN_LENGTH, max_length))
            for name, texts in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset))
        )
        if not train_dataset:
            raise ValueError("The training set is empty; there is nothing to learn from.")
        self._count(train_dataset["input_ids"], reconstructor)
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
        if args.torch_compile:
            reconstructor.compile_scoring(args.torch_compile_backend, args.torch_compile_mode)
        record = run_record or as_record(args)
        self.run_record = record | self._resolved(model, record) | {"texts_per_step": texts_per_step(args)}
        self.run_facts = RunFacts(self.accelerator.num_processes, RESULTS)
        self.add_callback(self.run_facts)
        show_lines(self)
        self._metrics: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._tokens_seen = 0
        self._clock: float | None = None  # set by the first step, so that warm start and sampling are not timed

    def _send_telemetry(self) -> None:
        """TRL's base class would report the use of a trainer here; tokforget sends no telemetry."""

    def _build_accelerator_args(self, **kwargs) -> dict[str, Any]:
        """
        As in Transformers, but Accelerate compiles nothing: in the whole model Python reads numbers from tensors every
        few lines, at each of which the graph would break. See [`Reconstructor.compile_scoring`].
        """
        return super()._build_accelerator_args(**kwargs) | {"dynamo_plugin": TorchDynamoPlugin(backend="no")}

    @property
    def _unwrapped(self):
        return self.accelerator.unwrap_model(self.model)

    # -- loading by name -----------------------------------------------------------------------------------------------
    _model_class: type[torch.nn.Module]

    @classmethod
    def _load_named(cls, name: str, tokenizer) -> torch.nn.Module:
        """Load the model of this name for training; new weights depend on torch's seed."""
        raise NotImplementedError

    @classmethod
    def _resolve(cls, model, processing_class, args) -> tuple[torch.nn.Module, PreTrainedTokenizerBase | None]:
        """
        Model and tokenizer. A name is loaded as the recipes do it, so that a run from Python equals one from a recipe.
        """
        if isinstance(model, str | os.PathLike):
            set_seed(args.seed)
            load_whole(args)
            processing_class = processing_class or load_tokenizer(str(model))
            return cls._load_named(str(model), processing_class), processing_class
        if not isinstance(model, cls._model_class):
            raise TypeError(
                f"`model` must be a `{cls._model_class.__name__}` or a name (a folder, an id on the Hub, or 'embedded'), got "
                f"`{type(model).__name__}`. A causal language model goes by its name."
            )
        return model, processing_class

    @staticmethod
    def _reconstructor_of(model: torch.nn.Module) -> Reconstructor:
        raise NotImplementedError

    @staticmethod
    def _resolved(model: torch.nn.Module, record: dict) -> dict:
        """Facts for the run's record that the arguments do not contain, such as sizes."""
        raise NotImplementedError

    # -- texts and their randomness ------------------------------------------------------------------------------------
    @property
    def _texts_per_step(self) -> int:
        args = self.args
        return args.train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        """
        Sample whole batches only; the texts left over in an epoch are skipped. Otherwise the last batch would be small
        with one process, and filled up with repeated texts with several.
        """
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, RandomSampler):
            return sampler
        num_texts = len(sampler.data_source)
        return RandomSampler(
            sampler.data_source, num_samples=num_texts - num_texts % self._texts_per_step or num_texts
        )

    def _number(self, num_texts: int) -> range:
        """As in the base class; the first call also starts the clock."""
        self._clock = self._clock or time.perf_counter()
        return super()._number(num_texts)

    def _count(self, texts: Sequence[list[int]], reconstructor: Reconstructor) -> None:
        vocab_size = reconstructor.base_model.get_input_embeddings().weight.shape[0]
        self.surprisal = unigram_surprisal(texts, vocab_size)  # (V,)

    def _surprisal(self, input_ids: torch.Tensor) -> torch.Tensor:
        """
        Bits of each token `(B, T)` under the token frequencies of the training texts; `frequency` masks are drawn from
        it.
        """
        self.surprisal = self.surprisal.to(input_ids.device)
        return self.surprisal[input_ids]

    def _generators(self, numbers: range) -> list[torch.Generator]:
        return [seeded_generator(self.args.seed, number, 0) for number in numbers]

    # -- logging -------------------------------------------------------------------------------------------------------
    def _note(self, num_tokens: int, values: dict[str, torch.Tensor]) -> None:
        """
        Collect figures of one step; the next log averages them without `nan`. `num_tokens` counts original tokens.
        """
        for name, value in values.items():
            self._metrics[name].append(value.detach().float())
        self._tokens_seen += num_tokens * self.accelerator.num_processes
        self.run_facts.tokens += num_tokens * self.accelerator.num_processes

    def _figures(self) -> dict[str, float]:
        """Figures to log besides the loss: means over the steps since the last log and over all processes."""
        names = sorted(self._metrics)
        means = torch.stack([torch.stack(self._metrics[name]).nanmean() for name in names])
        means = self.accelerator.gather(means[None]).nanmean(0).tolist()
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        return dict(zip(names, means)) | {"tokens_per_second": self._tokens_seen / seconds}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._metrics:
            with self.whole_weights():
                logs |= self._figures()
            self._metrics.clear()
            self._tokens_seen, self._clock = 0, time.perf_counter()
        super().log({name: value for name, value in logs.items() if value == value}, start_time)

    # -- evaluation ----------------------------------------------------------------------------------------------------
    def evaluation_loop(self, *args, **kwargs):
        """
        As in Transformers, except before training. There, Transformers would prepare the model for evaluation only,
        and later train it without averaging gradients over the processes, because the model is prepared already: every
        process would silently train its own model.
        """
        if self.is_in_train or self.accelerator._models:
            with self.whole_weights():
                return super().evaluation_loop(*args, **kwargs)
        self.model.to(self.args.device)
        with_deepspeed, self.is_deepspeed_enabled = self.is_deepspeed_enabled, False
        self.accelerator._models.append(self.model)  # tells Transformers that the model is prepared
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.accelerator._models.remove(self.model)
            self.is_deepspeed_enabled = with_deepspeed

    def _measure_rates(
        self,
        reconstructor: Reconstructor,
        input_ids: torch.Tensor,
        valid: torch.Tensor,
        keep_mask_at: Callable[[float], torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Bits and restoration of each text at each of `eval_rates`.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, T)`), valid (`torch.BoolTensor` of shape `(B, T)`): The texts.
            keep_mask_at (`Callable`): From a rate to the keep mask `(B, T)`.

        Returns:
            `tuple`: Loss, measurements `(B, rates, 4)` and labels, as `prediction_step` returns them.
        """
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
        """Write the run's record and the card next to the weights."""
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; training_config.json holds the same
        facts = self.run_facts(self.args, self.state)
        write_json(folder / RECORD, self.run_record | ({} if facts is None else {"run": facts}))
        # A checkpoint is written under a temporary name.
        write_card(
            folder, self._card_template, str(Path(self.args.output_dir, folder.name) if self._run_dir else folder)
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        with self._reading(resume_from_checkpoint), self.whole_weights(changed=True):
            self.accelerator.unwrap_model(model or self.model).load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        with self.whole_weights(changed=True):
            self._unwrapped.load_weights(self.state.best_model_checkpoint)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        if self.is_world_process_zero():
            write_card(Path(self.args.output_dir), self._card_template)

    def end(self) -> None:
        """As in Transformers, after all processes arrive: a process that ends early would make the others abort."""
        self.accelerator.wait_for_everyone()
        super().end()

    # -- the Hub -------------------------------------------------------------------------------------------------------
    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create or open the repository before training, so that a refusal is known early. Raises [`HubError`]."""
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        private = self.args.hub_private_repo if private is None else private
        self.hub_model_id = create_repository(name, "model", private, token or self.args.hub_token)
        self.push_in_progress = None  # Transformers reads it; pushes here are finished when they return

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> Uploaded | None:
        """
        Save the model folder and send it with its card and records; see [`share`].

        Returns:
            [`Uploaded`], *optional*: Id, commit and address; `None` in all processes but the first.

        Raises:
            [`HubError`]: If it is not certain that every file arrived.
        """
        if not blocking:
            raise ValueError("`blocking=False` is not supported: a push is reported as done when it has arrived.")
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return self._share(self.args.output_dir, commit_message, token, revision)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint (`hub_strategy: every_save`). A failed push is logged and does not end the training."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            self._share(checkpoint_folder, f"Training in progress, step {self.state.global_step}")
        except HubError as error:
            logger.warning("Training continues without a push of step %d. %s", self.state.global_step, error)

    def _share(
        self, folder: str | Path, message: str | None, token: str | None = None, revision: str | None = None
    ) -> Uploaded:
        return share(
            folder,
            self.hub_model_id,
            revision=revision or self.args.hub_revision,
            token=token or self.args.hub_token,
            message=message,
        )


def count_trainable(module: torch.nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

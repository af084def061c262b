"""
Training of the reconstructor alone: it restores tokens that random masks drop, at random rates. An optional step
before the joint loop.

Logged, averaged over the steps since the last log and over all processes:

    loss                        bits per dropped token, mean over texts; this is minimised
    bits_per_dropped/<kind>     the same over the texts with one kind of mask
    bits_lost                   bits lost per original token
    rate                        kept / original
    learning_rate, grad_norm    as in Transformers
    tokens_per_second           original tokens seen

At each evaluation, on the validation texts, always with the same masks (half random, half noisy frequency):

    eval_bits_lost              bits lost per original token, mean over `eval_rates`; selects the best model
    eval_bits_lost_<rate>       the same at one rate
    eval_exact_restored_<rate>  share of dropped tokens restored exactly, free-running
    eval_compression_rate_<rate>    kept / original, in whole tokens
"""

from pathlib import Path
from typing import Any

import torch

from tokforget.data.blocks import BlockCollator
from tokforget.masking import keep_count, seeded_generator, top_k_mask
from tokforget.models.reconstructor import Reconstructor
from tokforget.models.reconstructor_folder import load_trainable, load_weights, recorded_layout, save_weights
from tokforget.scoring import compression_rate, per_text_mean
from tokforget.training.base_trainer import BaseForgetTrainer, count_trainable
from tokforget.training.config import ReconstructorConfig
from tokforget.training.random_masks import draw_kinds, draw_rates, draw_scores


_EVAL_KINDS = ("random", "frequency")


class ReconstructorTrainer(BaseForgetTrainer):
    r"""
    Trains a reconstructor on random masks, either an adapter or all weights.

    Args:
        model ([`Reconstructor`] or `str`): Weights that require a gradient are trained. [`load_trainable`] loads a
            name: a language model gets a new adapter in the layout `prefix`; a folder with an adapter continues its
            training.
        args ([`ReconstructorConfig`]): Arguments of the run.
        train_dataset, eval_dataset (`datasets.Dataset`): Column `input_ids`, blocks of token ids, or `text`; see
            [`as_blocks`].
        processing_class (`PreTrainedTokenizerBase`): The tokenizer, saved with the model; if `model` is a name, its
            own by default.
        run_record (`dict`, *optional*): Every argument of the run, for `training_config.json`.
    """

    _tag_names = ["tokforget", "trl", "prompt-compression"]
    _name = "Reconstructor"
    _card_template = "reconstructor.md"

    def __init__(
        self,
        model: Reconstructor | str,
        args: ReconstructorConfig,
        train_dataset,
        eval_dataset=None,
        processing_class=None,
        run_record: dict | None = None,
        **kwargs,
    ):
        model, processing_class = self._resolve(model, processing_class, args)
        kwargs.setdefault("data_collator", _ScoredBlockCollator(model.marker_token_id))
        super().__init__(model, args, train_dataset, eval_dataset, processing_class, run_record, **kwargs)

    _model_class = Reconstructor

    @classmethod
    def _load_named(cls, name: str, tokenizer) -> Reconstructor:
        return load_trainable(name, tokenizer, recorded_layout(name) or "prefix")

    @staticmethod
    def _reconstructor_of(model: Reconstructor) -> Reconstructor:
        return model

    @staticmethod
    def _resolved(model: Reconstructor, record: dict) -> dict:
        """Also the layout, the base model of an adapter folder, and the shape of that adapter."""
        facts = {"trainable_parameters": count_trainable(model), "layout": model.layout}
        adapter = getattr(model.model, "peft_config", {}).get("default")
        if adapter is None:
            return facts | {
                "base_model_name_or_path": record.get("reconstructor_name_or_path", model.model.name_or_path)
            }
        return facts | {"base_model_name_or_path": adapter.base_model_name_or_path,
                        "lora_rank": adapter.r, "lora_alpha": adapter.lora_alpha}  # fmt: skip

    # -- one step ------------------------------------------------------------------------------------------------------
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        input_ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
        numbers = self._number(len(input_ids))
        kinds, generators = self._kinds(numbers), self._generators(numbers)
        rate = draw_rates(len(input_ids), self.args.min_rate, self.args.max_rate, generators).to(input_ids.device)
        scores = draw_scores(kinds, valid, self._surprisal(input_ids), generators)
        keep_mask = top_k_mask(scores, keep_count(valid.sum(1), rate), valid)  # (B, T)
        token_nll = model(input_ids=input_ids, keep_mask=keep_mask, valid=valid)  # (B, T)
        bits_per_dropped = per_text_mean(token_nll, ~keep_mask & valid)  # (B,)
        loss = bits_per_dropped.mean()
        by_kind = {kind: [n for n, other in enumerate(kinds) if other == kind] for kind in self.args.mask_kinds}
        self._note(
            int(valid.sum()),
            {f"bits_per_dropped/{kind}": bits_per_dropped[rows].mean() for kind, rows in by_kind.items()}
            | {"bits_lost": token_nll.sum() / valid.sum(), "rate": compression_rate(keep_mask, valid).mean()},
        )
        return (loss, {"token_nll": token_nll}) if return_outputs else loss

    def _kinds(self, numbers: range) -> list[str]:
        """Kinds of mask for the texts of these numbers; their shares hold over the batch of all processes."""
        args, size = self.args, self._texts_per_step
        kinds = draw_kinds(
            size, args.mask_kinds, args.mask_weights, seeded_generator(args.seed, numbers[0] // size, 1)
        )
        return [kinds[number % size] for number in numbers]

    # -- evaluation ----------------------------------------------------------------------------------------------------
    def get_eval_dataloader(self, eval_dataset=None):
        return super().get_eval_dataloader(
            self._with_scores(self.eval_dataset if eval_dataset is None else eval_dataset)
        )

    def get_test_dataloader(self, test_dataset):
        return super().get_test_dataloader(self._with_scores(test_dataset))

    def _with_scores(self, texts) -> list[dict]:
        """
        The texts with the scores of their masks. Scores depend only on a text's index, not on run, batch or process.
        """
        rows = []
        for place, text in enumerate(texts):
            ids = torch.as_tensor(text["input_ids"])[None]
            kind, generator = _EVAL_KINDS[place % len(_EVAL_KINDS)], torch.Generator().manual_seed(place)
            scores = draw_scores([kind], torch.ones_like(ids).bool(), self.surprisal.cpu()[ids], generator)
            rows.append({"input_ids": text["input_ids"], "scores": scores[0]})
        return rows

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """
        Bits and restoration of each text at each of `eval_rates`; the tokens of a smaller budget are in every larger
        one.
        """
        inputs = self._prepare_inputs(inputs)
        input_ids, valid, scores = inputs["input_ids"], inputs["attention_mask"].bool(), inputs["scores"]

        def keep_mask_at(rate: float) -> torch.Tensor:
            return top_k_mask(scores, keep_count(valid.sum(1), rate), valid)

        return self._measure_rates(self._unwrapped, input_ids, valid, keep_mask_at)

    # -- saving --------------------------------------------------------------------------------------------------------
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.processing_class.save_pretrained(folder)
            save_weights(self._unwrapped, folder, state_dict)
            self._describe(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        with self._reading(resume_from_checkpoint), self.whole_weights(changed=True):
            load_weights(self.accelerator.unwrap_model(model or self.model), resume_from_checkpoint)

    def _load_best_model(self) -> None:
        with self.whole_weights(changed=True):
            load_weights(self._unwrapped, self.state.best_model_checkpoint)


class _ScoredBlockCollator(BlockCollator):
    """Pads blocks and, in an evaluation, the scores of their masks: `scores` `(B, T)`."""

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        if "scores" in rows[0]:
            batch["scores"] = torch.nn.utils.rnn.pad_sequence([row["scores"] for row in rows], batch_first=True)
        return batch

"""
The joint loop: collect episodes, ask the modules for rewards and advantages, sum the loss. Holds order, not arithmetic.

Logged, averaged over the steps since the last log and over all processes:

    policy_loss             minus mean of advantage * log-probability per token; its gradient is the policy gradient
    reconstruction_loss     bits per dropped token, over the policy's masks and the random ones
    reward                  weighted sum of all rewards, per original token
    rewards/<name>          one reward, unweighted, per original token (bits for `information_theoretic`)
    bits_lost               bits lost per original token under the sampled masks
    exact_restored          share of dropped tokens restored exactly, free-running, on a few texts of the last batch
    rate, rate_target       kept / original of the sampled masks, and the budget in whole tokens that was asked for
    keep_price              bits charged per kept token
    entropy                 of the policy per token, nats; log 2 = 0.693 is a coin
    advantage_std           standard deviation of the advantages over tokens, bits
    frac_advantage_zero     share of tokens whose advantage is zero: nothing is learnt from them
    frac_unscored           share of episodes with a `nan` reward, left out of the policy's loss
    decisions_per_episode   windows decided one after the other
    policy_learning_rate, reconstructor_learning_rate
    tokens_per_second       original tokens seen, masks not counted
"""

import logging
import os
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, EvalPrediction
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from tokforget._trl import _BaseTrainer
from tokforget.config import ForgetConfig
from tokforget.data import BlockCollator
from tokforget.episodes import EpisodeBatch, decision_returns, leave_one_out_advantages, token_returns
from tokforget.evaluation import measure, summarise, write_json
from tokforget.hub import write_card
from tokforget.masking import keep_count, top_k_mask
from tokforget.modeling import ForgetModel, ForgetOutput
from tokforget.rewards import WeightedRewards
from tokforget.scoring import compression_rate, exact_restored, per_text_mean


logger = logging.getLogger(__name__)

# Bits of noise on a token's surprisal: masks between plain random and plain frequency.
_NOISY_FREQUENCY_BITS = 3.0
_RESTORED_TEXTS = 4
_COLLAPSE_SHARE, _COLLAPSE_ENTROPY = 0.01, 0.01


class ForgetTrainer(_BaseTrainer):
    r"""
    Trains policy and reconstructor in one loop.

    Args:
        model ([`ForgetModel`]): With its reconstructor.
        args ([`ForgetConfig`]): Arguments of the run.
        train_dataset, eval_dataset (`datasets.Dataset`): Column `input_ids`, blocks of token ids.
        processing_class (`PreTrainedTokenizerBase`): Saved with the model.
        run_record (`dict`, *optional*): Every argument of the run, for `training_config.json`.

    Source: REINFORCE with a leave-one-out baseline, Ahmadian et al. 2024, arXiv 2402.14740. Differs: one advantage per
    token, from the rewards around it (`credit_decay`), instead of one per sequence; no KL term, no clipping, since every
    batch is used once.
    """

    loss_is_scaled_for_ga = False  # a mean per micro-batch: the host divides by the accumulation steps
    _tag_names = ["tokforget", "trl", "prompt-compression"]
    _name = "Forget"

    def __init__(
        self,
        model: ForgetModel,
        args: ForgetConfig,
        train_dataset,
        eval_dataset=None,
        processing_class=None,
        run_record: dict | None = None,
        **kwargs,
    ):
        if train_dataset is None or len(train_dataset) == 0:
            raise ValueError("The training set is empty; there is nothing to learn from.")
        kwargs.setdefault("data_collator", BlockCollator(model.config.marker_token_id))
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=self._summarise_rates,
            **kwargs,
        )
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self.rewards = WeightedRewards(args.reward_funcs, args.reward_weights)
        self.run_record = run_record or args.to_dict()
        self._metrics: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._last_batch: tuple[torch.Tensor, ...] | None = None
        self._tokens_seen, self._clock = 0, time.perf_counter()
        torch.manual_seed(args.seed + self.accelerator.process_index)  # every process draws its own keep masks

    def _send_telemetry(self) -> None:
        """The host's base would ping its makers here; tokforget sends nothing on its own."""

    # -- one step ------------------------------------------------------------------------------------------------------
    def create_optimizer(self, model=None):
        if self.optimizer is None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            options.pop("lr", None)
            parts = {"policy": [], "reconstructor": []}
            for name, parameter in (model or self.model).named_parameters():
                if parameter.requires_grad:
                    parts["reconstructor" if "reconstructor." in name else "policy"].append(parameter)
            rates = {"policy": self.args.policy_learning_rate, "reconstructor": self.args.reconstructor_learning_rate}
            groups = [
                {"params": parts[n], "lr": rates[n], "weight_decay": self.args.weight_decay} for n in parts if parts[n]
            ]
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = self._draw(inputs)
        outputs = model(**batch, num_masks=self.args.num_masks, generator=torch.default_generator)
        episodes = self._collect(batch, outputs)
        rewards = self.rewards(episodes)
        returns = token_returns(rewards.per_token, episodes.window, self.args.credit_decay, self.args.gamma)
        returns = returns + episodes.per_token(decision_returns(rewards.per_decision, self.args.gamma))  # (N, T)
        advantages = leave_one_out_advantages(returns, self.args.num_masks)
        policy_loss = -per_text_mean(advantages * outputs.log_probs, episodes.valid).mean()
        entropy = per_text_mean(outputs.entropy, episodes.valid).mean()
        reconstruction_loss = outputs.bits_per_dropped.mean()
        loss = policy_loss - self.args.entropy_coef * entropy + self.args.reconstructor_coef * reconstruction_loss
        self._record(
            episodes, rewards, advantages,
            policy_loss=policy_loss, entropy=entropy, reconstruction_loss=reconstruction_loss,
        )  # fmt: skip
        return (loss, outputs) if return_outputs else loss

    def _draw(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A rate for each text, and the random keep masks of the reconstructor's share of the batch."""
        input_ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
        batch_size, span = len(input_ids), self.args.max_rate - self.args.min_rate
        rate = (self.args.min_rate + span * torch.rand(batch_size)).to(input_ids.device)
        share = self.args.random_mask_share
        num_random = round(batch_size * self.args.num_masks * share / (1 - share))
        texts = (torch.arange(num_random) % batch_size).to(input_ids.device)
        random_rate = (self.args.min_rate + span * torch.rand(num_random)).to(input_ids.device)
        scores = torch.rand(num_random, input_ids.shape[1]).to(input_ids.device)
        if (ngrams := self._unwrapped.policy.ngrams) is not None:
            noisy = ngrams.surprisal(input_ids[texts]) + _NOISY_FREQUENCY_BITS * torch.randn(scores.shape).to(scores)
            scores[1::2] = noisy[1::2]
        mask = top_k_mask(scores, keep_count(valid[texts].sum(1), random_rate), valid[texts])
        return {
            "input_ids": input_ids, "attention_mask": inputs["attention_mask"], "rate": rate,
            "random_texts": texts, "random_keep_mask": mask,
        }  # fmt: skip

    def _collect(self, batch: dict[str, torch.Tensor], outputs: ForgetOutput) -> EpisodeBatch:
        num_masks = self.args.num_masks
        return EpisodeBatch(
            input_ids=batch["input_ids"].repeat_interleave(num_masks, 0),
            valid=batch["attention_mask"].bool().repeat_interleave(num_masks, 0),
            rate=batch["rate"].repeat_interleave(num_masks),
            keep_mask=outputs.actions.bool(),
            keep_probability=torch.sigmoid(outputs.keep_logits.detach()),
            token_nll=outputs.token_nll.detach(),
            token_correct=outputs.token_correct,
            window=self._unwrapped.policy.window,
            num_masks=num_masks,
            keep_price=self.args.keep_price,
        )

    @property
    def _unwrapped(self) -> ForgetModel:
        return self.accelerator.unwrap_model(self.model)

    # -- logging -------------------------------------------------------------------------------------------------------
    def _record(self, episodes: EpisodeBatch, rewards, advantages: torch.Tensor, **losses: torch.Tensor) -> None:
        tokens, valid = episodes.valid.sum(1), episodes.valid
        spread = advantages[valid]
        unscored = torch.stack([torch.isnan(total) for total in rewards.by_name.values()]).any(0)
        total = sum(self.rewards.weights[name] * value for name, value in rewards.by_name.items())
        values = {name: loss.detach() for name, loss in losses.items()}
        values |= {f"rewards/{name}": (value / tokens).nanmean() for name, value in rewards.by_name.items()}
        values |= {
            "reward": (total / tokens).nanmean(),
            "bits_lost": episodes.token_nll.sum() / tokens.sum(),
            "rate": compression_rate(episodes.keep_mask, valid).mean(),
            "rate_target": (keep_count(tokens, episodes.rate) / tokens).mean(),
            "keep_price": episodes.price(episodes.token_nll).mean(),
            "advantage_std": spread.std(),
            "frac_advantage_zero": (spread == 0).float().mean(),
            "frac_unscored": unscored.float().mean(),
            "decisions_per_episode": episodes.decisions_per_episode.float().mean(),
        }
        for name, value in values.items():
            self._metrics[name].append(value.float())
        self._tokens_seen += int(tokens.sum()) // episodes.num_masks * self.accelerator.num_processes
        pick = slice(0, _RESTORED_TEXTS * episodes.num_masks, episodes.num_masks)
        self._last_batch = (episodes.input_ids[pick], episodes.keep_mask[pick], valid[pick])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._metrics:
            names = sorted(self._metrics)
            means = torch.stack([torch.stack(self._metrics[name]).nanmean() for name in names])
            means = self.accelerator.gather(means[None]).nanmean(0).tolist()
            logs |= dict(zip(names, means)) | self._sampled_restoration()
            logs |= {
                f"{name}_learning_rate": group["lr"]
                for name, group in zip(("policy", "reconstructor"), self.optimizer.param_groups)
            }
            logs["tokens_per_second"] = self._tokens_seen / max(time.perf_counter() - self._clock, 1e-9)
            self._warn_of_collapse(logs)
            self._metrics.clear()
            self._tokens_seen, self._clock = 0, time.perf_counter()
        super().log({name: value for name, value in logs.items() if value == value}, start_time)

    @torch.no_grad()
    def _sampled_restoration(self) -> dict[str, float]:
        input_ids, keep_mask, valid = self._last_batch
        dropped = int((~keep_mask & valid).sum())
        if not dropped:
            return {}
        restored = self._unwrapped.reconstructor.restore(input_ids, keep_mask, valid).input_ids
        return {"exact_restored": int(exact_restored(restored, input_ids, keep_mask, valid).sum()) / dropped}

    @staticmethod
    def _warn_of_collapse(logs: dict[str, float]) -> None:
        if not _COLLAPSE_SHARE <= logs["rate"] <= 1 - _COLLAPSE_SHARE:
            logger.warning("The policy keeps %.1f %% of the tokens: it has collapsed.", 100 * logs["rate"])
        if logs["entropy"] < _COLLAPSE_ENTROPY:
            logger.warning(
                "The policy's entropy is %.4f nats: it no longer explores. Raise `entropy_coef`.", logs["entropy"]
            )
        if logs["frac_advantage_zero"] > 1 - _COLLAPSE_SHARE:
            logger.warning("All advantages are zero: the masks of a text no longer differ in reward.")
        if logs["frac_unscored"] > 0:
            logger.warning("%.1f %% of the episodes had a nan reward and were left out.", 100 * logs["frac_unscored"])

    # -- evaluation ----------------------------------------------------------------------------------------------------
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Bits and restoration of each text at each of `eval_rates`, at exactly the budget; see [`measure`]."""
        inputs = self._prepare_inputs(inputs)
        input_ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
        model = self._unwrapped
        with torch.no_grad(), self.compute_loss_context_manager():
            by_rate = []
            for rate in self.args.eval_rates:
                rates = torch.full((len(input_ids),), rate, device=input_ids.device)
                keep_mask = model.keep_mask(input_ids, inputs["attention_mask"], rates)
                by_rate.append(measure(model.reconstructor, input_ids, valid, keep_mask))
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
    def _save_checkpoint(self, model, trial) -> None:
        """Save under another name and rename when complete: a killed run leaves no checkpoint that looks whole."""
        run_dir = Path(self.args.output_dir)
        staging = run_dir / ".saving"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        best_before, self._run_dir = self.state.best_model_checkpoint, staging
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._run_dir = None
        self.accelerator.wait_for_everyone()
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.state.best_model_checkpoint = (
            str(run_dir / name) if self.state.best_global_step == self.state.global_step else best_before
        )
        if self.args.should_save:
            self.state.save_to_json(str(staging / name / "trainer_state.json"))
            shutil.rmtree(run_dir / name, ignore_errors=True)
            os.replace(staging / name, run_dir / name)
            shutil.rmtree(staging)
            rotate_checkpoints(
                str(run_dir), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )
        self.accelerator.wait_for_everyone()

    _run_dir: Path | None = None

    def _get_output_dir(self, trial) -> str:
        return str(self._run_dir) if self._run_dir is not None else super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; training_config.json says the same
            write_json(folder / "training_config.json", self.run_record)
            write_card(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self.accelerator.unwrap_model(model or self.model).load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self.model.load_weights(self.state.best_model_checkpoint)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        if self.is_world_process_zero():
            write_card(Path(self.args.output_dir))

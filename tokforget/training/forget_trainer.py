"""
The joint loop: collect episodes, compute rewards and advantages, sum the loss. The arithmetic is in other modules.

Logged, averaged over the steps since the last log and over all processes:

    policy_loss             negative mean of advantage * log-probability per token; its gradient is the policy gradient
    reconstruction_loss     bits per dropped token, over the policy's masks and the random ones
    reward                  weighted sum of all rewards, per original token
    rewards/<name>          one reward, unweighted, per original token (bits for `information_theoretic`)
    bits_lost               bits lost per original token under the sampled masks
    exact_restored          share of dropped tokens restored exactly, free-running, on a few texts of each process's last batch
    rate, rate_target       kept / original of the sampled masks, and the same of the requested budget in whole tokens
    keep_price              bits charged per kept token
    entropy                 entropy of the policy per token, nats; log 2 = 0.693 is a fair coin
    frac_undecided          share of tokens whose keep probability lies between 0.05 and 0.95; if it is high, the gradient
                            mainly makes masks sharper, not better
    advantage_std           standard deviation of the advantages over tokens, bits
    frac_advantage_zero     share of tokens whose advantage is zero, so that they do not train the policy
    frac_unscored           share of episodes with a `nan` reward, which the policy's loss leaves out
    decisions_per_episode   windows per text, decided one after another
    policy_learning_rate, reconstructor_learning_rate
    tokens_per_second       original tokens seen, masks not counted
"""

import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tokforget.data.blocks import BlockCollator
from tokforget.masking import keep_count, top_k_mask
from tokforget.models.forget_model import ForgetModel, ForgetOutput
from tokforget.models.reconstructor import Reconstructor
from tokforget.models.sharded_weights import is_divided
from tokforget.models.starting_models import load_by_name
from tokforget.scoring import compression_rate, exact_restored, per_text_mean
from tokforget.training.base_trainer import BaseForgetTrainer, count_trainable
from tokforget.training.config import ForgetConfig
from tokforget.training.episodes import EpisodeBatch, leave_one_out_advantages, token_returns
from tokforget.training.faults import PreparationError
from tokforget.training.random_masks import draw_rates, draw_scores
from tokforget.training.resumable_trainer import NumberedTexts
from tokforget.training.rewards import WeightedRewards
from tokforget.training.sampled_texts import with_sampled_texts
from tokforget.training.warm_start import load_warm_start_data, save_warm_start_data, target_bits, warm_start


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

_RESTORED_TEXTS = 4
_COLLAPSE_SHARE, _COLLAPSE_ENTROPY = 0.01, 0.01


class ForgetTrainer(BaseForgetTrainer):
    r"""
    Trains policy and reconstructor in one loop.

    `train()` runs the whole method: it samples `sampled_texts` from the base model, fits the policy's count tables,
    fits the policy to a ranking (the warm start), and then runs the joint loop.

    Args:
        model ([`ForgetModel`] or `str`): A model with its reconstructor. The name of a causal language model or
            reconstructor (an id on the Hub, a folder, or `"embedded"`) gets a new policy of the default shape; the
            name of a trained model continues its training.
        args ([`ForgetConfig`]): Arguments of the run.
        train_dataset, eval_dataset (`datasets.Dataset`): Column `input_ids`, blocks of token ids, or `text`; see
            [`as_blocks`].
        processing_class (`PreTrainedTokenizerBase`): The tokenizer, saved with the model; if `model` is a name, its
            own by default.
        run_record (`dict`, *optional*): Every argument of the run, for `training_config.json`.

    Source: REINFORCE with a leave-one-out baseline, Ahmadian et al. 2024, arXiv 2402.14740. Differs: one advantage per
    token, from the rewards around it (`credit_decay`), instead of one per sequence; no KL term and no clipping,
    because every batch is used once.
    """

    _tag_names = ["tokforget", "trl", "prompt-compression"]
    _name = "Forget"

    def __init__(
        self,
        model: ForgetModel | str,
        args: ForgetConfig,
        train_dataset,
        eval_dataset=None,
        processing_class=None,
        run_record: dict | None = None,
        **kwargs,
    ):
        model, processing_class = self._resolve(model, processing_class, args)
        if model.reconstructor is None:
            raise ValueError(
                "`model` has no reconstructor, and nothing can be learnt without one. Load it with `with_reconstructor=True`, or "
                "build it with `ForgetModel.from_base`."
            )
        kwargs.setdefault("data_collator", BlockCollator(model.config.marker_token_id))
        super().__init__(model, args, train_dataset, eval_dataset, processing_class, run_record, **kwargs)
        self.rewards = WeightedRewards(args.reward_funcs, args.reward_weights)
        self._last_batch: tuple[torch.Tensor, ...] | None = None
        self._is_prepared = False

    _model_class = ForgetModel

    @classmethod
    def _load_named(cls, name: str, tokenizer) -> ForgetModel:
        return load_by_name(name, tokenizer)

    @staticmethod
    def _reconstructor_of(model: ForgetModel) -> Reconstructor:
        return model.reconstructor

    @staticmethod
    def _resolved(model: ForgetModel, record: dict) -> dict:
        sizes = {"policy": count_trainable(model.policy), "adapter": count_trainable(model.reconstructor)}
        return {"trainable_parameters": sizes, "layout": model.config.layout}

    # -- before the joint loop -----------------------------------------------------------------------------------------
    def _prepare(self, resumed: bool) -> None:
        """
        Prepare the training texts, their count tables, and the warm start. All processes get the same result, because
        it depends only on the texts and the seed. A resumed run reads its texts from its folder and its policy from
        the checkpoint.
        """
        if self._is_prepared:  # a second `train` uses the same texts
            return
        args, model = self.args, self._unwrapped
        model.to(args.device)
        num_own = len(self.train_dataset)
        try:
            blocks, bits = self._texts_to_learn_from(self.train_dataset.texts, resumed)
        except (ValueError, OSError) as error:
            raise PreparationError(str(error)) from error
        if len(blocks) > num_own:
            self.train_dataset = NumberedTexts(blocks)
            self._count(blocks["input_ids"], model.reconstructor)
        self._record_sampled(len(blocks) - num_own)
        if model.policy.ngrams is not None:
            model.policy.ngrams.fit(blocks["input_ids"])
        if args.warm_start_steps is None:
            args.warm_start_steps = 0 if model.policy.is_trained else args.default_warm_start_steps
            self.run_record["warm_start_steps"] = args.warm_start_steps
        if args.warm_start_steps and not resumed:
            self._start_from_ranking(blocks["input_ids"], bits)
        self._is_prepared = True

    def _texts_to_learn_from(self, own: "Dataset", resumed: bool) -> tuple["Dataset", Sequence[list[float]] | None]:
        """The training blocks followed by the sampled ones, and the target's bits if another run has computed them."""
        args = self.args
        if args.warm_start_data_path is not None:
            stored = load_warm_start_data(args.warm_start_data_path, own["input_ids"])
            return stored, stored["bits"]
        if not args.sampled_texts:
            return own, None
        with self._frozen_weights():
            reconstructor = self._unwrapped.reconstructor
            return with_sampled_texts(
                reconstructor, own, args.sampled_texts, args.output_dir, args.seed, resumed
            ), None

    def _start_from_ranking(self, texts: Sequence[list[int]], bits: Sequence[list[float]] | None) -> None:
        """Run the warm start; its data and its policy are saved in the run's folder."""
        args, model = self.args, self._unwrapped
        folder, saves = Path(args.output_dir), self.is_world_process_zero()
        texts = [torch.as_tensor(text) for text in texts[: args.warm_start_texts]]
        if bits is not None:
            bits = [torch.as_tensor(of_text) for of_text in bits[: args.warm_start_texts]]
        else:
            with self._frozen_weights():
                bits = target_bits(model, texts, args.warm_start_target)
            if saves:
                save_warm_start_data(folder / args.warm_start_data_dir, texts, bits)
        losses = warm_start(
            model,
            texts,
            bits,
            args.warm_start_steps,
            args.min_rate,
            args.max_rate,
            args.seed,
            args.warm_start_logit_scale,
        )
        if saves:  # the policy before the policy gradient, for comparison
            shutil.rmtree(folder / args.warm_start_dir, ignore_errors=True)
            model.save_pretrained(folder / args.warm_start_dir)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder / args.warm_start_dir)
            first, last = (sum(part) / len(part) for part in (losses[:10], losses[-10:]))
            logger.info(
                "Warm start on %d texts by %s: deviance %.2f bits in the first ten steps, %.2f in the last.",
                len(texts), args.warm_start_data_path or args.warm_start_target, first, last,
            )  # fmt: skip

    def _frozen_weights(self) -> torch.autocast:
        """
        The run's precision, for forward passes of frozen weights before the first step. Not for training: autocast
        casts the weights once per context, so that the context would not see later updates.
        """
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16)

    def _record_sampled(self, number: int) -> None:
        # Only a recipe records its data; a run from Python has only the arguments to say how many texts were
        # requested.
        data = self.run_record.get("data")
        if data and number:
            self.run_record["data"] = data | {"blocks": data["blocks"] | {"sampled": number}}

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
        numbers = self._number(len(inputs["input_ids"]))
        generators = self._generators(numbers)
        batch = self._draw(inputs, numbers, generators)
        sampling = [own for own in generators for _ in range(self.args.num_masks)]
        outputs = model(
            **batch, num_masks=self.args.num_masks, generator=sampling, in_step=is_divided(self.model_wrapped)
        )
        episodes = self._collect(batch, outputs)
        rewards = self.rewards(episodes)
        returns = token_returns(rewards.per_token, self.args.credit_decay) + episodes.per_token(rewards.per_decision)
        advantages = leave_one_out_advantages(returns, self.args.num_masks)  # (N, T)
        policy_loss = -per_text_mean(advantages * outputs.log_probs, episodes.valid).mean()
        # An infinite reward must end the run: differences of infinities are nan, which would read as "cannot be
        # scored".
        policy_loss = torch.where(rewards.any_infinite, torch.inf, policy_loss)
        entropy = per_text_mean(outputs.entropy, episodes.valid).mean()
        reconstruction_loss = outputs.bits_per_dropped.sum() / (
            len(numbers) * self.args.reconstructor_text_fraction * (self.args.num_masks + self._random_masks)
        )
        loss = policy_loss - self.args.entropy_coef * entropy + reconstruction_loss
        self._record(
            episodes, rewards, advantages,
            policy_loss=policy_loss, entropy=entropy, reconstruction_loss=reconstruction_loss,
        )  # fmt: skip
        return (loss, outputs) if return_outputs else loss

    @property
    def _random_masks(self) -> float:
        """
        Random keep masks for each text that trains the reconstructor. If this is not a whole number, only some texts
        get the additional mask.
        """
        return self.args.num_masks * self.args.random_mask_fraction / (1 - self.args.random_mask_fraction)

    def _draw(
        self, inputs: dict[str, torch.Tensor], numbers: range, generators: list[torch.Generator]
    ) -> dict[str, torch.Tensor]:
        """Draw a rate for each text, and random keep masks for the texts that train the reconstructor."""
        input_ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
        low, high, device = self.args.min_rate, self.args.max_rate, input_ids.device
        rate = draw_rates(len(numbers), low, high, generators).to(device)
        # Both the texts that train the reconstructor and their random masks are numbered over the run; see `_range`.
        counted = [_range(n, self.args.reconstructor_text_fraction) for n in numbers]
        masks = [_range(own.start, self._random_masks) if own else range(0) for own in counted]
        rows = [row for row, own in enumerate(masks) for _ in own]
        texts, own_generators = torch.tensor(rows, dtype=torch.long, device=device), [generators[row] for row in rows]
        random_rate = draw_rates(len(rows), low, high, own_generators).to(device)
        kinds = ["random" if m % 2 == 0 else "frequency" for own in masks for m in own]
        scores = draw_scores(kinds, valid[texts], self._surprisal(input_ids[texts]), own_generators)
        mask = top_k_mask(scores, keep_count(valid[texts].sum(1), random_rate), valid[texts])
        return {
            "input_ids": input_ids, "attention_mask": inputs["attention_mask"], "rate": rate,
            "random_texts": texts, "random_keep_mask": mask,
            "learning": torch.tensor([len(own) > 0 for own in counted], device=device),
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
        )

    # -- logging -------------------------------------------------------------------------------------------------------
    def _record(self, episodes: EpisodeBatch, rewards, advantages: torch.Tensor, **losses: torch.Tensor) -> None:
        tokens, valid = episodes.valid.sum(1), episodes.valid
        spread = advantages[valid]
        unscored = torch.stack([torch.isnan(total) for total in rewards.by_name.values()]).any(0)
        total = sum(self.rewards.weights[name] * value for name, value in rewards.by_name.items())
        values = losses | {f"rewards/{name}": (value / tokens).nanmean() for name, value in rewards.by_name.items()}
        values |= {
            "reward": (total / tokens).nanmean(),
            "bits_lost": episodes.token_nll.sum() / tokens.sum(),
            "rate": compression_rate(episodes.keep_mask, valid).mean(),
            "rate_target": (keep_count(tokens, episodes.rate) / tokens).mean(),
            "keep_price": episodes.price(episodes.token_nll).mean(),
            "advantage_std": spread.std(),
            "frac_advantage_zero": (spread == 0).float().mean(),
            "frac_undecided": (((episodes.keep_probability - 0.5).abs() < 0.45) & valid).sum() / tokens.sum(),
            "frac_unscored": unscored.float().mean(),
            "decisions_per_episode": episodes.decisions_per_episode.float().mean(),
        }
        self._note(int(tokens.sum()) // episodes.num_masks, values)
        pick = slice(0, _RESTORED_TEXTS * episodes.num_masks, episodes.num_masks)
        self._last_batch = (episodes.input_ids[pick], episodes.keep_mask[pick], valid[pick])

    def _figures(self) -> dict[str, float]:
        figures = self._sampled_restoration() | super()._figures()
        figures |= {
            f"{name}_learning_rate": group["lr"]
            for name, group in zip(("policy", "reconstructor"), self.optimizer.param_groups)
        }
        self._warn_of_collapse(figures)
        return figures

    @torch.no_grad()
    def _sampled_restoration(self) -> dict[str, float]:
        input_ids, keep_mask, valid = self._last_batch
        restored = self._unwrapped.reconstructor.restore(input_ids, keep_mask, valid).input_ids
        exact = exact_restored(restored, input_ids, keep_mask, valid).sum()
        counts = torch.stack([exact, (~keep_mask & valid).sum()])
        exact, dropped = self.accelerator.gather(counts[None]).sum(0).tolist()
        return {"exact_restored": exact / dropped} if dropped else {}

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
        """Bits and restoration of each text at each of `eval_rates`, exactly at the budget; see [`measure`]."""
        inputs = self._prepare_inputs(inputs)
        input_ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
        model = self._unwrapped

        def keep_mask_at(rate: float) -> torch.Tensor:
            return model.keep_mask(input_ids, valid, torch.full((len(input_ids),), rate, device=input_ids.device))

        return self._measure_rates(model.reconstructor, input_ids, valid, keep_mask_at)


def _range(number: int, share: float) -> range:
    """
    Numbers of the items that belong to the `number`-th element of a sequence with `share` items per element: from
    floor(number * share) to floor((number + 1) * share).
    """
    # The rounding removes floating-point errors: 0.1 * 3 is 0.30000000000000004.
    return range(math.floor(number * share + 1e-9), math.floor((number + 1) * share + 1e-9))

"""
The joint loop: collect episodes, ask the modules for rewards and advantages, sum the loss. Holds order, not arithmetic.

Logged, averaged over the steps since the last log and over all processes:

    policy_loss             minus mean of advantage * log-probability per token; its gradient is the policy gradient
    reconstruction_loss     bits per dropped token, over the policy's masks and the random ones
    reward                  weighted sum of all rewards, per original token
    rewards/<name>          one reward, unweighted, per original token (bits for `information_theoretic`)
    bits_lost               bits lost per original token under the sampled masks
    exact_restored          share of dropped tokens restored exactly, free-running, on a few texts of the last batch, of each process
    rate, rate_target       kept / original of the sampled masks, and the budget in whole tokens that was asked for
    keep_price              bits charged per kept token
    entropy                 of the policy per token, nats; log 2 = 0.693 is a coin
    frac_undecided          share of tokens whose keep probability lies between 0.05 and 0.95; where it is high, the gradient is
                            first of all about sharper masks, not about better ones
    advantage_std           standard deviation of the advantages over tokens, bits
    frac_advantage_zero     share of tokens whose advantage is zero: nothing is learnt from them
    frac_unscored           share of episodes with a `nan` reward, left out of the policy's loss
    decisions_per_episode   windows decided one after the other
    policy_learning_rate, reconstructor_learning_rate
    tokens_per_second       original tokens seen, masks not counted
"""

import logging
import math

import torch

from tokforget.data.blocks import BlockCollator
from tokforget.masking import keep_count, top_k_mask
from tokforget.models.forget_model import ForgetModel, ForgetOutput
from tokforget.models.sharded_weights import is_divided
from tokforget.scoring import compression_rate, exact_restored, per_text_mean
from tokforget.training.base_trainer import BudgetTrainer
from tokforget.training.config import ForgetConfig
from tokforget.training.episodes import EpisodeBatch, leave_one_out_advantages, token_returns
from tokforget.training.random_masks import draw_rates, draw_scores
from tokforget.training.rewards import WeightedRewards


logger = logging.getLogger(__name__)

_RESTORED_TEXTS = 4
_COLLAPSE_SHARE, _COLLAPSE_ENTROPY = 0.01, 0.01


class ForgetTrainer(BudgetTrainer):
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
        kwargs.setdefault("data_collator", BlockCollator(model.config.marker_token_id))
        super().__init__(model, args, train_dataset, eval_dataset, processing_class, run_record, **kwargs)
        self.rewards = WeightedRewards(args.reward_funcs, args.reward_weights)
        self._last_batch: tuple[torch.Tensor, ...] | None = None

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
        # Differences of infinities are nan, which would pass for "cannot be scored": an infinite reward has to end the run.
        policy_loss = torch.where(rewards.any_infinite, torch.inf, policy_loss)
        entropy = per_text_mean(outputs.entropy, episodes.valid).mean()
        reconstruction_loss = outputs.bits_per_dropped.sum() / (
            len(numbers) * self.args.reconstruction_share * (self.args.num_masks + self._random_masks)
        )
        loss = policy_loss - self.args.entropy_coef * entropy + reconstruction_loss
        self._record(
            episodes, rewards, advantages,
            policy_loss=policy_loss, entropy=entropy, reconstruction_loss=reconstruction_loss,
        )  # fmt: skip
        return (loss, outputs) if return_outputs else loss

    @property
    def _random_masks(self) -> float:
        """Random keep masks per text that trains the reconstructor; of a fraction, every so manieth has one."""
        return self.args.num_masks * self.args.random_mask_share / (1 - self.args.random_mask_share)

    def _draw(
        self, inputs: dict[str, torch.Tensor], numbers: range, generators: list[torch.Generator]
    ) -> dict[str, torch.Tensor]:
        """A rate for each text, and the random keep masks of the reconstructor's share of the batch."""
        input_ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
        low, high, device = self.args.min_rate, self.args.max_rate, input_ids.device
        rate = draw_rates(len(numbers), low, high, generators).to(device)
        # Texts that train the reconstructor are counted, and so are random masks: the n-th has those from floor(n * share) on.
        counted = [_range(n, self.args.reconstruction_share) for n in numbers]
        masks = [_range(own.start, self._random_masks) if own else range(0) for own in counted]
        rows = [row for row, own in enumerate(masks) for _ in own]
        texts, own_generators = torch.tensor(rows, dtype=torch.long, device=device), [generators[row] for row in rows]
        random_rate = draw_rates(len(rows), low, high, own_generators).to(device)
        ngrams = self._unwrapped.policy.ngrams
        kinds = ["random" if ngrams is None or m % 2 == 0 else "frequency" for own in masks for m in own]
        surprisal = None if ngrams is None else ngrams.surprisal(input_ids[texts])
        scores = draw_scores(kinds, valid[texts], surprisal, own_generators)
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
            "frac_undecided": ((episodes.keep_probability - 0.5).abs() < 0.45)[valid].float().mean(),
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
        """Bits and restoration of each text at each of `eval_rates`, at exactly the budget; see [`measure`]."""
        inputs = self._prepare_inputs(inputs)
        input_ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
        model = self._unwrapped

        def keep_mask_at(rate: float) -> torch.Tensor:
            return model.keep_mask(input_ids, valid, torch.full((len(input_ids),), rate, device=input_ids.device))

        return self._measure_rates(model.reconstructor, input_ids, valid, keep_mask_at)


def _range(number: int, share: float) -> range:
    """What the `number`-th of a sequence has of `share` each, counted over the sequence."""
    # 0.2 * 5 is 1.0, but 0.1 * 3 is 0.30000000000000004, and a sum that is whole on paper has to be whole here.
    return range(math.floor(number * share + 1e-9), math.floor((number + 1) * share + 1e-9))

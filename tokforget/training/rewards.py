"""
Reward functions and their weighted sum.

A reward is a callable `(EpisodeBatch) -> tensor`. Higher is better, so costs are negative. It returns bits per token
`(N, T)`, credited by the two-sided kernel, or bits per decision `(N, S)`, credited to all tokens of a window. `nan`
means "cannot be scored". Exceptions propagate; they never become a reward of zero.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tokforget.training.episodes import EpisodeBatch


RewardFunction = Callable[[EpisodeBatch], torch.Tensor]


def information_theoretic(episodes: EpisodeBatch) -> torch.Tensor:
    """
    Rate-distortion: the negative bits of a dropped token, the negative price of a kept one; `(N, T)` bits.

    Requires: only the episodes. Relates to: `simple`, with bits instead of right or wrong.
    """
    return _distortion_and_price(episodes, episodes.token_nll)


def simple(episodes: EpisodeBatch) -> torch.Tensor:
    """
    Exact tokens: -1 for a dropped token that the reconstructor does not rank first, the negative price of a kept one;
    `(N, T)` tokens. For a fixed count this is the share of dropped tokens restored exactly, up to a constant.

    Requires: only the episodes. In the prefix layout the rank is taken with the true tokens to the left, because
    free-running restoration at every step would cost more than the training itself.
    """
    return _distortion_and_price(episodes, (episodes.dropped & ~episodes.token_correct).float())


def exact_runs(episodes: EpisodeBatch) -> torch.Tensor:
    """
    Exact tokens under free-running restoration: -1 for a dropped token that the reconstructor does not rank first *or*
    that follows such a token in the same gap, the negative price of a kept one; `(N, T)` tokens.

    Restoration continues from its own predictions, so a wrong one spoils the following tokens until the next kept
    token. Scores of single tokens, and therefore the warm start, do not contain the value of a kept token for the gap
    after it; the policy learns it from this reward.

    Requires: only the episodes. Relates to: `simple`, which judges every token as if all tokens before it were right.
    """
    wrong = (episodes.dropped & ~episodes.token_correct).long().cumsum(1)
    before_gap = (wrong * episodes.keep_mask).cummax(1).values  # (N, T)
    return _distortion_and_price(episodes, (episodes.dropped & (wrong > before_gap)).float())


def _distortion_and_price(episodes: EpisodeBatch, distortion: torch.Tensor) -> torch.Tensor:
    price = episodes.price(distortion)[:, None]
    return -torch.where(episodes.keep_mask, price, distortion) * episodes.valid


REWARDS: dict[str, RewardFunction] = {
    function.__name__: function for function in (information_theoretic, simple, exact_runs)
}


def load_reward(name: str | RewardFunction) -> tuple[str, RewardFunction]:
    """
    Name and function of a reward, given as one of `REWARDS`, an import path `package.module:function`, or a callable.
    A class is instantiated without arguments; the instance is the reward.

    Raises:
        `ValueError`: If the name is not registered, and is not the import path of a callable.
    """
    if callable(name):
        return getattr(name, "__name__", type(name).__name__), name
    if name in REWARDS:
        return name, REWARDS[name]
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(
            f"Unknown reward {name!r}. Pass one of {sorted(REWARDS)}, or an import path such as `my_package.rewards:name`."
        )
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The reward {name!r} cannot be imported: {error}.") from error
    if not callable(function):
        raise ValueError(f"The reward {name!r} leads to a {type(function).__name__}, which cannot be called.")
    return attribute, function() if isinstance(function, type) else function


@dataclass
class Rewards:
    """
    Weighted rewards of a batch.

    Args:
        per_token (`torch.FloatTensor` of shape `(N, T)`): Sum of the rewards given per token.
        per_decision (`torch.FloatTensor` of shape `(N, S)`): Sum of the rewards given per decision only.
        by_name (`dict[str, torch.FloatTensor]`): Unweighted total of each reward per episode, `(N,)`, including `nan`.
    """

    per_token: torch.Tensor
    per_decision: torch.Tensor
    by_name: dict[str, torch.Tensor]

    @property
    def any_infinite(self) -> torch.Tensor:
        """Whether any reward is infinite; a scalar."""
        return torch.isinf(self.per_token).any() | torch.isinf(self.per_decision).any()


class WeightedRewards:
    """
    The weighted sum of several rewards.

    Args:
        functions (`list`): Names, import paths or callables.
        weights (`list[float]`, *optional*): One per function; 1 each by default.
    """

    def __init__(self, functions: list[str | RewardFunction], weights: list[float] | None = None):
        weights = [1.0] * len(functions) if weights is None else weights
        if not functions or len(weights) != len(functions):
            raise ValueError(
                f"Needed is at least one reward and a weight for each, got {len(functions)} `reward_funcs` and "
                f"{len(weights)} `reward_weights`."
            )
        self.functions = dict(load_reward(function) for function in functions)
        if len(self.functions) != len(functions):
            raise ValueError(f"Two rewards share a name: {list(functions)}. Rename one.")
        self.weights = dict(zip(self.functions, weights))

    def __call__(self, episodes: EpisodeBatch) -> Rewards:
        per_token = torch.zeros_like(episodes.token_nll)
        per_decision = per_token.new_zeros(len(per_token), episodes.num_decisions)
        by_name = {}
        for name, function in self.functions.items():
            reward = function(episodes)
            if not isinstance(reward, torch.Tensor) or tuple(reward.shape) not in (
                tuple(per_token.shape),
                tuple(per_decision.shape),
            ):
                raise ValueError(
                    f"The reward {name!r} returned {_describe(reward)}; allowed are bits per token, shape "
                    f"{tuple(per_token.shape)}, or per decision, shape {tuple(per_decision.shape)}."
                )
            reward = reward.detach().to(per_token)
            by_name[name] = reward.sum(1)
            if reward.shape == per_token.shape:
                per_token = per_token + self.weights[name] * reward
            else:
                per_decision = per_decision + self.weights[name] * reward
        return Rewards(per_token=per_token, per_decision=per_decision, by_name=by_name)


def _describe(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"

"""Rates and budgets as plain numbers: the part of [`tokforget.masking`] that compressing needs, without torch."""

from numbers import Real

import numpy as np


# 0.29 * 100 is 28.999999999999996 in floating point; the tolerance makes it 29.
ROUNDING_SLACK = 1e-6


def check_number(value: float, name: str) -> float:
    """Return `value` if it is a number, else raise `TypeError`; `name` is what the user knows it by."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {value!r}, a {type(value).__name__}.")
    return float(value)


def check_whole(value: int, name: str, least: int) -> int:
    """Return `value` if it is a whole number of at least `least`, else raise `ValueError`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")
    return int(value)


def check_flag(value: bool, name: str) -> None:
    """Raise `TypeError` unless `value` is True or False: "no" and "false" would be taken for yes."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, got {value!r:.60}, a {type(value).__name__}.")


def check_rate(rate: float, name: str = "rate") -> float:
    """Return `rate` if it is a compression rate in (0, 1], else raise `ValueError`; `TypeError` if it is no number."""
    if not 0.0 < check_number(rate, name) <= 1.0:
        hint = f"for {rate:g} % pass {rate / 100:g}" if 10 <= rate <= 100 else "for four times smaller pass 0.25"
        raise ValueError(f"`{name}` must lie in (0, 1], got {rate}. It is the fraction of tokens kept; {hint}.")
    return float(rate)


def allowed_tokens(num_tokens: int | np.ndarray, rate: float) -> np.ndarray:
    """
    Number of tokens that a rate allows, exactly as [`tokforget.masking.keep_count`] computes it.

    Args:
        num_tokens (`int` or `np.ndarray` of any shape): Tokens of each text.
        rate (`float`): Fraction to keep, in (0, 1].

    Returns:
        `np.ndarray` of the same shape: 0 for an empty text, else in `[1, num_tokens]`.

    >>> allowed_tokens(np.array([10, 3, 1, 0]), 0.5)
    array([5, 1, 1, 0])
    """
    num_tokens = np.asarray(num_tokens, dtype=np.int64)
    allowed = np.floor(num_tokens * float(rate) + ROUNDING_SLACK * np.maximum(num_tokens, 1)).astype(np.int64)
    return np.minimum(np.maximum(allowed, 1), num_tokens)

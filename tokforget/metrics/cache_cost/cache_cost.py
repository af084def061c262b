"""Cost of growing transcripts with a provider that caches the prefixes of prompts."""

from tokforget import scoring
from tokforget.metrics import columns


_PRICES = ("input_price", "cached_read_price", "cache_write_price")


class CacheCost(columns.ColumnMetric):
    inputs = ("prompts", "prompt_ids")
    options = ("tokenizer", *_PRICES, "min_cached_tokens", "block_tokens")
    summary = "Cost of growing transcripts under a provider's prices for input, cached reads and cache writes."

    def _compute(
        self,
        prompts=None,
        prompt_ids=None,
        tokenizer=None,
        input_price=None,
        cached_read_price=None,
        cache_write_price=None,
        min_cached_tokens=1024,
        block_tokens=1,
    ) -> dict:
        prices = dict(zip(_PRICES, (input_price, cached_read_price, cache_write_price)))
        for name, price in prices.items():
            if price is None:
                raise ValueError(f"Pass `{name}`, the provider's price for a million tokens.")
            if not 0 <= price < float("inf"):
                raise ValueError(f"`{name}` must be a price of at least 0, got {price}.")
        for name, value, least in (("min_cached_tokens", min_cached_tokens, 0), ("block_tokens", block_tokens, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")
        transcripts = columns.prompt_rows(self, prompts, prompt_ids, tokenizer)
        found = scoring.cache_cost(
            transcripts, **prices, min_cached_tokens=min_cached_tokens, block_tokens=block_tokens
        )
        if not found["tokens"]:
            raise ValueError("The transcripts have no token at all.")
        return {**found, "transcripts": len(transcripts)}

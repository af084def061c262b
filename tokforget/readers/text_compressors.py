"""
Compressors of strings with one interface, `(text, budget, question) -> text`, where the budget counts a reader's
tokens: controls, cheap scores, scores of a language model, and users' own compressors.

Most of them rank units of a text (tokens, words, sentences) and keep the best that fit. [`fill`] enforces the budget
for all of them by counting the tokens of the output string.
"""

import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from tokforget import __version__
from tokforget.compression.compressor import Compressor
from tokforget.readers.language_model import Reader
from tokforget.readers.word_counts import WordCounts
from tokforget.text_units import bare_word, split_sentences, split_words


Spans = Sequence[tuple[int, int]]
# Words per segment of iterative pruning.
_SEGMENT_WORDS = 64
_FAR = 5
# The layers whose attention is used: from a third to five sixths of the model's depth.
_LAYERS = (1 / 3, 5 / 6)
_ATTENTION_WEIGHT = 0.3


class TextCompressor(Protocol):
    """
    Interface of a compressor of strings. `budget` counts tokens of the reader; a result above it is an error. `asks`
    is whether it uses the `question`. `calls` is the number of compressions of the last text until the budget was met;
    the reported time is that of one call. `version` changes with the compressor's behaviour; a resumed run measures a
    new version again.
    """

    name: str
    asks: bool
    calls: int
    version: str

    def __call__(self, text: str, budget: int, question: str | None = None) -> str: ...


@dataclass
class CompressorContext:
    """
    The resources of compressors: the reader, whose tokens are counted and whose passes are used, word counts, and a
    seed. Results of passes over a text are cached and shared.
    """

    reader: Reader
    counts: WordCounts
    seed: int = 0
    model_name_or_path: str | None = None
    passes: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def policy(self) -> Compressor:
        return Compressor.from_pretrained(self.model_name_or_path)

    def remembered(self, key: tuple[str, ...], compute: Callable[[], np.ndarray]) -> np.ndarray:
        if key not in self.passes:
            self.passes[key] = compute()
        return self.passes[key]

    @contextmanager
    def nothing_remembered(self) -> Iterator[None]:
        """Context with an empty cache, to time a text as if it were new."""
        before, self.passes = self.passes, {}
        try:
            yield
        finally:
            self.passes = before | self.passes


# -- the budget --------------------------------------------------------------------------------------------------------
def joined(text: str, spans: Spans, keep: np.ndarray) -> str:
    """The kept spans of a text joined in order, without white space at the ends."""
    return "".join(text[start:end] for (start, end), kept in zip(spans, keep) if kept).strip()


def fill(text: str, spans: Spans, ranks: np.ndarray, budget: int, count: Callable[[str], int]) -> str:
    """
    The longest output within the budget: as many spans as fit, by rank, then smaller spans of lower rank.

    Args:
        text (`str`): The text.
        spans (`list[tuple[int, int]]`): Spans of characters in the text, in order.
        ranks (`np.ndarray` of shape `(num_spans,)`): The highest are kept; ties go to the earlier span.
        budget (`int`): Most tokens of the output string, as `count` counts them.
        count (`Callable`): From a string to its number of tokens.

    Returns:
        `str`: The output; empty if no span fits.
    """
    order = np.argsort(-np.asarray(ranks, dtype=np.float64), kind="stable")

    def best(number: int) -> np.ndarray:
        keep = np.zeros(len(spans), dtype=bool)
        keep[order[:number]] = True
        return keep

    low, high = 0, len(spans) + 1  # `low` spans fit, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        if count(joined(text, spans, best(middle))) <= budget:
            low = middle
        else:
            high = middle
    keep, misses = best(low), 0
    for place in order[low:]:
        if misses == 8:
            break
        keep[place] = True
        if count(joined(text, spans, keep)) > budget:
            keep[place] = False
            misses += 1
    return joined(text, spans, keep)


@dataclass
class RankedCompressor:
    """
    Keeps the highest ranked units of a text.

    Args:
        name (`str`): Name in tables.
        rank (`Callable`): `(text, question) -> (spans, ranks)`.
        reader (`Reader`): The budget counts its tokens.
        asks (`bool`): Whether `rank` uses the question.
    """

    name: str
    rank: Callable[[str, str | None], tuple[Spans, np.ndarray]]
    reader: Reader
    asks: bool = False
    calls: int = 1
    version: str = __version__

    def __call__(self, text: str, budget: int, question: str | None = None) -> str:
        if not text.strip():
            return ""
        spans, ranks = self.rank(text, question)
        return fill(text, spans, ranks, budget, lambda output: self.reader.counts([output])[0])


# -- units -------------------------------------------------------------------------------------------------------------
def split_tokens(text: str, reader: Reader) -> list[tuple[int, int]]:
    """Spans of the reader's tokens; tokens that are parts of one character form one unit."""
    spans: list[tuple[int, int]] = []
    for start, end in reader.token_places(text):
        if spans and start < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def over_units(spans: Spans, token_spans: Spans, values: np.ndarray, pool: Callable) -> np.ndarray:
    """
    Pool token values `(num_tokens,)` to one value per unit by `pool` (max, mean, sum); 0 for a unit without tokens.
    """
    middles = np.array([(start + end - 1) / 2 for start, end in token_spans])
    edges = [
        0,
        *np.searchsorted(middles, [end for _, end in spans]),
    ]  # tokens are in order, so those of a unit are consecutive
    return np.array([pool(values[a:b]) if b > a else 0.0 for a, b in pairwise(edges)])


# -- controls ----------------------------------------------------------------------------------------------------------
def _random(context: CompressorContext, split, text: str, _question) -> tuple[Spans, np.ndarray]:
    spans = split(text)
    generator = random.Random(f"{context.seed} {text}")
    return spans, np.array([generator.random() for _ in spans])


def _head(text: str, _question) -> tuple[Spans, np.ndarray]:
    spans = split_words(text)
    return spans, -np.arange(len(spans), dtype=float)


def _tail(text: str, _question) -> tuple[Spans, np.ndarray]:
    spans = split_words(text)
    return spans, np.arange(len(spans), dtype=float)


def _head_tail(text: str, _question) -> tuple[Spans, np.ndarray]:
    spans = split_words(text)
    places = np.arange(len(spans), dtype=float)
    return spans, -np.minimum(places, len(spans) - 1 - places)


# -- counts ------------------------------------------------------------------------------------------------------------
def word_idf(context: CompressorContext, text: str, spans: Spans) -> np.ndarray:
    """Inverse document frequency of each word in nats, `(num_spans,)`. Source: Spärck Jones 1972."""
    return np.array([context.counts.idf(text[a:b]) for a, b in spans])


def _idf_words(context: CompressorContext, text: str, _question) -> tuple[Spans, np.ndarray]:
    spans = split_words(text)
    return spans, word_idf(context, text, spans)


def _stop_words(context: CompressorContext, text: str, _question) -> tuple[Spans, np.ndarray]:
    """Words by IDF, function words last. Source: Luhn 1958, "The automatic creation of literature abstracts"."""
    spans = split_words(text)
    stops = np.array([context.counts.is_stop_word(text[a:b]) for a, b in spans])
    return spans, word_idf(context, text, spans) - 100.0 * stops


def hand_made_score(context: CompressorContext, text: str, spans: Spans) -> np.ndarray:
    """
    Scores from 0 to about 3: words with digits or inner capitals first, then by IDF, stop words last; `(num_spans,)`.
    """
    idf = word_idf(context, text, spans) / context.counts.highest_idf
    scores = np.zeros(len(spans))
    begins = True
    for place, (start, end) in enumerate(spans):
        word = text[start:end].strip()
        begins = begins or "\n" in text[start : end - len(word)]
        first = word.lstrip("\"'“‘([{")[:1]
        marked = (
            any(c.isdigit() for c in word) or any(c.isupper() for c in word[1:]) or (first.isupper() and not begins)
        )
        scores[place] = idf[place] + marked - context.counts.is_stop_word(word)
        begins = word.rstrip("\"'”’)]}")[-1:] in ".!?"
    return scores


def _hand_made(context: CompressorContext, text: str, _question) -> tuple[Spans, np.ndarray]:
    spans = split_words(text)
    return spans, hand_made_score(context, text, spans)


# -- a language model's pass -------------------------------------------------------------------------------------------
def self_information(context: CompressorContext, text: str, before: str = "") -> np.ndarray:
    """Bits of each token given those before it, and given `before`; `(num_tokens,)`. Source: Li et al. 2023, 2310.06201."""
    return context.remembered(("bits", before, text), lambda: context.reader.token_bits([before], [text])[0])


def _self_information(context: CompressorContext, unit: str, text: str, _question) -> tuple[Spans, np.ndarray]:
    tokens = context.reader.token_places(text)
    bits = self_information(context, text)
    if unit == "sentence":
        spans = split_sentences(text)
        return spans, over_units(spans, tokens, bits, np.mean)
    spans = split_tokens(text, context.reader) if unit == "token" else split_words(text)
    return spans, over_units(spans, tokens, bits, np.max)


def attention_received(reader: Reader, text: str) -> np.ndarray:
    """
    Attention that each token receives from tokens more than five places later, `(num_tokens,)`: mean over heads, later
    tokens and the middle layers, relative to uniform attention.
    """
    ids = [reader.start, *reader.token_ids([text])[0]]
    model = reader.model
    used = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the only implementation that returns the weights
    try:
        with torch.no_grad():
            layers = model(
                torch.tensor([ids], device=model.device), output_attentions=True, use_cache=False
            ).attentions
    finally:
        model.set_attn_implementation(used)
    first, last = (round(share * len(layers)) for share in _LAYERS)
    weights = torch.stack([layer[0].float().mean(0) for layer in layers[first : max(last, first + 1)]]).mean(0).cpu()
    later = torch.ones_like(weights).tril(-_FAR - 1)
    fair = later / torch.arange(1, len(ids) + 1)[:, None]
    received = (weights * later).sum(0) / fair.sum(0).clamp(min=1e-6)
    return received[1:].numpy()


def _hand_made_attention(context: CompressorContext, text: str, _question) -> tuple[Spans, np.ndarray]:
    spans = split_words(text)
    attention = context.remembered(("attention", text), lambda: attention_received(context.reader, text))
    received = over_units(spans, context.reader.token_places(text), attention, np.max)
    spread = received.std() or 1.0
    return spans, hand_made_score(context, text, spans) + _ATTENTION_WEIGHT * (received - received.mean()) / spread


@dataclass
class IterativePruning:
    """
    Prunes segment by segment: the words of a segment are scored by their bits after the words kept in earlier
    segments.

    Source: Jiang et al. 2023, "LLMLingua", 2310.05736, section 3.2. Differs: whole words, equal shares for all segments, and
    the reader's own language model.
    """

    context: CompressorContext
    name: str = "iterative_pruning"
    asks: bool = False
    calls: int = 1
    version: str = __version__

    def __call__(self, text: str, budget: int, question: str | None = None) -> str:
        reader, spans = self.context.reader, split_words(text)
        if not spans:
            return ""
        total, kept, ranks = reader.counts([text])[0], "", np.zeros(len(spans))
        for first in range(0, len(spans), _SEGMENT_WORDS):
            part = spans[first : first + _SEGMENT_WORDS]
            segment = text[part[0][0] : part[-1][1]]
            local = [(a - part[0][0], b - part[0][0]) for a, b in part]
            bits = reader.token_bits([kept], [segment])[0]
            scores = over_units(local, reader.token_places(segment), bits, np.max)
            # Use ranks within the segment, so that every segment keeps the same fraction.
            ranks[first : first + len(part)] = np.argsort(np.argsort(scores, kind="stable"), kind="stable") / len(part)
            share = budget * reader.counts([segment])[0] // max(total, 1)
            kept += " " + fill(segment, local, scores, share, lambda output: reader.counts([output])[0])
        return fill(text, spans, ranks, budget, lambda output: reader.counts([output])[0])


def _phrases(context: CompressorContext, text: str, _question) -> tuple[Spans, np.ndarray]:
    """
    Phrases by their mean self-information. Source: Li et al. 2023, "Selective Context", 2310.06201. Differs: a phrase
    is a run of words up to a stop word or punctuation, with the stop words before it, where the source uses a parser's
    noun phrases.
    """
    phrases: list[list[int]] = []
    begins, has_content = True, False
    for start, end in split_words(text):
        stop = context.counts.is_stop_word(text[start:end])
        if begins or (has_content and stop):
            phrases.append([start, end])
            has_content = False
        else:
            phrases[-1][1] = end
        has_content |= not stop
        begins = text[end - 1] in ".,;:!?)"
    spans = [tuple(phrase) for phrase in phrases]
    return spans, over_units(spans, context.reader.token_places(text), self_information(context, text), np.mean)


# -- with a question ---------------------------------------------------------------------------------------------------
def _stems(text: str) -> list[str]:
    """Bare words cut to six letters, as stems that match plural and tense."""
    return [bare_word(word)[:6] for word in text.split() if bare_word(word)]


def overlap_ranks(context: CompressorContext, text: str, question: str | None) -> tuple[Spans, np.ndarray]:
    """Sentences by the summed IDF of the question's words in them; ties to the earlier one."""
    spans = split_sentences(text)
    wanted = {
        bare_word(w)[:6]: context.counts.idf(w) for w in (question or "").split() if not context.counts.is_stop_word(w)
    }
    return spans, np.array([sum(wanted.get(stem, 0.0) for stem in set(_stems(text[a:b]))) for a, b in spans])


def _bm25_sentences(context: CompressorContext, text: str, question: str | None) -> tuple[Spans, np.ndarray]:
    """Sentences by BM25, with the text's sentences as documents. Source: Robertson et al. 1995; the library bm25s."""
    try:
        import bm25s
    except ModuleNotFoundError as error:
        raise ValueError("`bm25_sentences` needs the library bm25s: `pip install tokforget[readers]`.") from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it would log a line per index
    spans = split_sentences(text)
    corpus, query = [_stems(text[a:b]) or ["-"] for a, b in spans], _stems(question or "") or ["-"]
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    known = [word for word in query if word in index.vocab_dict]
    return spans, np.array(index.get_scores(known) if known else np.zeros(len(spans)), dtype=float)


def _question_perplexity(context: CompressorContext, text: str, question: str | None) -> tuple[Spans, np.ndarray]:
    """
    Words by the bits that the question saves on them. Source: contrastive perplexity, Jiang et al. 2023,
    "LongLLMLingua", 2310.06839. Differs: whole words, no document level, the reader's own language model.
    """
    spans = split_words(text)
    saved = self_information(context, text) - self_information(context, text, f"Question: {question or ''}\nPassage: ")
    return spans, over_units(spans, context.reader.token_places(text), saved, np.sum)


# -- the policy, and users' own ----------------------------------------------------------------------------------------
def search_budget(
    compress: Callable[[float], str], text: str, budget: int, count: Callable[[str], int], tries: int = 9
) -> tuple[str, int]:
    """
    Search the rate of a compressor that counts other tokens, for the longest output within the budget.

    Args:
        compress (`Callable`): From a rate in (0, 1), in its own tokens, to an output.
        text (`str`): The text; returned unchanged if it fits the budget.
        budget (`int`): Most tokens of the output, as `count` counts them.
        count (`Callable`): From a string to its number of tokens.
        tries (`int`): Most calls of `compress`.

    Returns:
        `tuple`: The output (empty if no tried rate fits) and the number of calls.
    """
    total = count(text)
    if not text.strip() or total <= budget:
        return text if total <= budget else "", 1
    best, best_count, low, high, rate = "", 0, 0.0, 1.0, budget / total
    calls = 0
    while calls < tries:
        calls += 1
        output = compress(rate)
        found = count(output)
        if found <= budget:
            low = rate
            if found >= best_count:
                best, best_count = output, found
        else:
            high = rate
        if found == budget or high - low < 1e-3:
            break
        guess = rate * budget / max(found, 1)
        rate = guess if low < guess < high else (low + high) / 2
    return best, calls


@dataclass
class PolicyCompressor:
    """
    The compressor of a trained model. It counts its own tokens, so its rate is searched until the reader's count fits.
    """

    name: str
    context: CompressorContext
    options: dict
    asks: bool = False
    calls: int = 1

    @property
    def version(self) -> str:
        """A digest of the policy's weights, because a resumed run must not use results of another policy."""
        weights = self.context.policy.policy.state_dict()
        return sha256(b"".join(np.asarray(weights[name]).tobytes() for name in sorted(weights))).hexdigest()[:16]

    def __call__(self, text: str, budget: int, question: str | None = None) -> str:
        def compress(rate: float) -> str:
            told = {"question": question} if self.asks else {}
            return self.context.policy.compress(text, rate=rate, **self.options, **told).text

        output, self.calls = search_budget(compress, text, budget, lambda o: self.context.reader.counts([o])[0])
        return output


@dataclass
class ForeignCompressor:
    """
    A user's callable `text, budget -> text` (or `text, budget, question -> text`, if it has an attribute `asks`) by
    import path. It may count its own tokens: the budget that it gets is searched until the reader's count fits.
    """

    name: str
    function: Callable[..., str]
    reader: Reader
    calls: int = 1

    @property
    def version(self) -> str:
        """A digest of the callable's source file, so that a changed callable is measured again."""
        file = getattr(sys.modules.get(self.function.__module__), "__file__", None)
        return sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""

    @property
    def asks(self) -> bool:
        return bool(getattr(self.function, "asks", False))

    def __call__(self, text: str, budget: int, question: str | None = None) -> str:
        count = lambda output: self.reader.counts([output])[0]  # noqa: E731
        total = count(text)

        def compress(rate: float) -> str:
            given = max(1, round(rate * total))
            output = self.function(text, given, question) if self.asks else self.function(text, given)
            if not isinstance(output, str):
                raise TypeError(f"The compressor {self.name} returned {type(output).__name__}; a string is needed.")
            return output

        output, self.calls = search_budget(compress, text, budget, count)
        if total and not output:
            # The output may be empty on purpose, or exceed every budget; the output at the least budget shows which.
            output = compress(0.0)
        return output


def _ranked(name: str, rank: Callable, asks: bool = False) -> Callable[[CompressorContext], TextCompressor]:
    return lambda context: RankedCompressor(name, partial(rank, context), context.reader, asks)


def _plain(name: str, rank: Callable) -> Callable[[CompressorContext], TextCompressor]:
    return lambda context: RankedCompressor(name, rank, context.reader)


TEXT_COMPRESSORS: dict[str, Callable[[CompressorContext], TextCompressor]] = {
    "random_tokens": lambda c: RankedCompressor("random_tokens", partial(_random, c, partial(split_tokens, reader=c.reader)), c.reader),
    "random_words": lambda c: RankedCompressor("random_words", partial(_random, c, split_words), c.reader),
    "random_sentences": lambda c: RankedCompressor("random_sentences", partial(_random, c, split_sentences), c.reader),
    "head": _plain("head", _head),
    "tail": _plain("tail", _tail),
    "head_tail": _plain("head_tail", _head_tail),
    "stop_words": _ranked("stop_words", _stop_words),
    "idf_words": _ranked("idf_words", _idf_words),
    "self_information_tokens": lambda c: RankedCompressor("self_information_tokens", partial(_self_information, c, "token"), c.reader),
    "self_information_words": lambda c: RankedCompressor("self_information_words", partial(_self_information, c, "word"), c.reader),
    "self_information_sentences": lambda c: RankedCompressor("self_information_sentences", partial(_self_information, c, "sentence"), c.reader),
    "hand_made": _ranked("hand_made", _hand_made),
    "hand_made_attention": _ranked("hand_made_attention", _hand_made_attention),
    "iterative_pruning": IterativePruning,
    "phrases": _ranked("phrases", _phrases),
    "policy_tokens": lambda c: PolicyCompressor("policy_tokens", c, {"unit": "token"}),
    "policy_words": lambda c: PolicyCompressor("policy_words", c, {"unit": "word"}),
    "policy_auto": lambda c: PolicyCompressor("policy_auto", c, {"unit": "auto"}),
    "policy_question": lambda c: PolicyCompressor("policy_question", c, {"unit": "word"}, asks=True),
    "overlap_sentences": _ranked("overlap_sentences", overlap_ranks, asks=True),
    "bm25_sentences": _ranked("bm25_sentences", _bm25_sentences, asks=True),
    "question_perplexity": _ranked("question_perplexity", _question_perplexity, asks=True),
}  # fmt: skip


def text_compressors(names: Sequence[str], context: CompressorContext) -> list[TextCompressor]:
    """
    Compressors by name, or by import path (`my_package.module:function`).

    Raises:
        `ValueError`: If a name is unknown, an import fails, or a name comes twice.
    """
    found: list[TextCompressor] = []
    for name in names:
        if name in TEXT_COMPRESSORS:
            found.append(TEXT_COMPRESSORS[name](context))
            continue
        module, colon, attribute = name.partition(":")
        if not colon:
            raise ValueError(
                f"Unknown compressor {name!r}; there are {', '.join(TEXT_COMPRESSORS)}, and import paths such as "
                "`my_package.module:function`."
            )
        try:
            function = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"The compressor {name!r} could not be imported: {error}") from error
        found.append(ForeignCompressor(attribute, function, context.reader))
    doubled = [name for name, times in Counter(compressor.name for compressor in found).items() if times > 1]
    if doubled:
        raise ValueError(f"Compressors need different names; {', '.join(doubled)} came more than once.")
    return found

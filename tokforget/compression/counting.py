"""
Count the tokens of a budget in the model's vocabulary, or in that of the model that will read the compressed text.

A [`TokenCounter`] is made from a `tokenizer.json`, a folder with one, an id on the Hub, the name of an encoding or a
model of tiktoken, a loaded tokenizer, or any function from a text to a number. No special tokens are added, and
special tokens in a text are read as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tokforget.compression.results import encodable
from tokforget.files import TOKENIZER


# A space between two words, over which byte-level BPE does not merge; of several spaces in a row none is one.
_BETWEEN_WORDS = re.compile(r" (?<=\S )(?=\S)")
# Most words whose counts are held.
_WORDS_HELD = 2**16
# Names of tiktoken's encodings, to recognise them if tiktoken is not installed.
_TIKTOKEN_NAMES = re.compile(r"(?:cl100k|o200k|p50k|r50k)_\w+|gpt-(?:3\.5|4)[\w.-]*|o[134](?:-\w+)*")
_ALLOWED = (
    "a tokenizer.json, a folder with one, an id on the Hub, a name of tiktoken such as 'o200k_base' or 'gpt-4o', "
    "or a function from a text to a number"
)


class TokenCounter:
    """
    Counts tokens of texts in one vocabulary.

    Args:
        name (`str`): Name of the vocabulary in reports.
        count (`Callable`): From strings to the number of tokens of each.
        state (`object`, *optional*): Pickled in place of `count`: the text of a `tokenizer.json`, or a name, from
            which `build` makes `count` again. Without it `count` itself is pickled.
        build (`Callable`, *optional*): From `state` to `count`.

    >>> TokenCounter.of(lambda text: len(text.split()))(["a b", ""])
    [2, 0]
    """

    def __init__(self, name: str, count: Callable[[Sequence[str]], Sequence[int]], state=None, build=None):
        self.name, self.count, self.state, self.build = name, count, state, build

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """
        Number of tokens of each text. Raises `ValueError` if `count` returns anything but a whole number of at least
        0.
        """
        found = list(self.count([encodable(text) for text in texts]))
        for number in found:
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 0:
                raise ValueError(
                    f"`count_tokens` must return a whole number of at least 0 for a text, got {number!r:.60}."
                )
        return [int(number) for number in found]

    def __getstate__(self) -> dict:
        return vars(self) | ({"count": None} if self.build is not None else {})

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        if self.build is not None:
            self.count = self.build(self.state)

    @classmethod
    def of(cls, given) -> TokenCounter | None:
        """
        Make a counter from a user's `count_tokens`; `None` (the model's own tokens) stays `None`.

        Raises:
            `ValueError`: If a name, a file or a folder has no vocabulary, or its library is missing.
            `TypeError`: If `given` has an unsupported type.
        """
        if given is None or isinstance(given, cls):
            return given
        if isinstance(given, (str, Path)):
            return _named(given)
        if isinstance(given, Tokenizer):
            return _of_json(given.to_str(), "the given tokenizer")
        if hasattr(given, "encode_ordinary_batch"):  # an encoding of tiktoken
            return cls(given.name, lambda texts: [len(row) for row in given.encode_ordinary_batch(list(texts))])
        if hasattr(given, "save_pretrained") and hasattr(given, "tokenize"):
            return _of_transformers(given, _short(str(getattr(given, "name_or_path", "") or "the given tokenizer")))
        if callable(given):
            name = getattr(given, "__name__", type(given).__name__)
            return cls("a function" if name == "<lambda>" else name, _Each(given))
        raise TypeError(f"`count_tokens` takes {_ALLOWED}; got a {type(given).__name__}, {given!r:.60}.")


class CandidateCounter:
    """
    Token counts of the candidates of a search, from those of their words.

    Byte-level BPE never merges over a space between two words. Most words of one candidate stand in the others, too, so
    that a candidate takes a tenth of the time of its encoding. A result is encoded as a whole in the end, which also
    checks its count.

    Args:
        tokenizer (`tokenizers.Tokenizer`): One for which [`CandidateCounter.fits`].
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._first, self._later = {}, {}  # of the first word of a string, and of words behind a space

    @staticmethod
    def fits(tokenizer) -> bool:
        """Whether a tokenizer is byte-level, and leaves strings as they are before it."""
        return tokenizer.normalizer is None and "ByteLevel(add_prefix_space=False" in repr(tokenizer.pre_tokenizer)

    def __call__(self, texts: list[str]) -> list[range]:
        """Objects whose `len` is the number of tokens of each text."""
        if max(len(self._first), len(self._later)) > _WORDS_HELD:
            self._first, self._later = {}, {}
        first, later = self._first, self._later  # another thread may replace them
        words = [_BETWEEN_WORDS.split(encodable(text)) for text in texts]
        new = {one[0] for one in words}.difference(first)
        self._count(sorted(new), first, "")
        self._count(sorted(set().union(*(one[1:] for one in words)).difference(later)), later, " ")
        return [range(first[one[0]] + sum(map(later.__getitem__, one[1:]))) for one in words]

    def _count(self, words: list[str], known: dict[str, int], before: str) -> None:
        encoded = self.tokenizer.encode_batch_fast([before + word for word in words], add_special_tokens=False)
        known |= zip(words, map(len, encoded))


class _Each:
    """Applies a function of one text to several; a class, because it must be pickled."""

    def __init__(self, function: Callable[[str], int]):
        self.function = function

    def __call__(self, texts: Sequence[str]) -> list[int]:
        return [self.function(text) for text in texts]


def _short(name: str) -> str:
    """The last part of a path or an id, because reports should not name local folders."""
    return Path(name.rstrip("/\\").replace("\\", "/")).name or name


def _count_by_json(text: str) -> Callable[[Sequence[str]], list[int]]:
    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(row) for row in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _of_json(text: str, name: str) -> TokenCounter:
    return TokenCounter(name, _count_by_json(text), text, _count_by_json)


def _named(given: str | Path) -> TokenCounter:
    if not str(given).strip() or given == Path():
        raise ValueError(f"`count_tokens` is an empty name. It takes {_ALLOWED}.")
    path = Path(given).expanduser()
    file = path / TOKENIZER if path.is_dir() else path
    if file.is_file():
        status = file.stat()
        return _from_file(file.absolute(), status.st_mtime_ns, status.st_size)
    if path.is_dir():
        return _from_transformers(str(path))
    if isinstance(given, Path) or str(given).endswith(".json") or str(given).startswith((".", "/", "~")):
        raise ValueError(f"`count_tokens`: {given}: no such file or folder. It takes {_ALLOWED}.")
    return _from_tiktoken(str(given)) or _from_hub(str(given))


@lru_cache(maxsize=8)
def _from_file(file: Path, _changed: int, _size: int) -> TokenCounter:
    name = file.parent.name if file.name == TOKENIZER and file.parent.name else file.name
    try:
        return _of_json(file.read_text(encoding="utf-8"), name)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"`count_tokens`: {file} is no tokenizer.json: {error}. It takes {_ALLOWED}.") from error


def _count_by_tiktoken(name: str) -> Callable[[Sequence[str]], list[int]]:
    import tiktoken

    encoding = tiktoken.get_encoding(name)
    return lambda texts: [len(row) for row in encoding.encode_ordinary_batch(list(texts), num_threads=1)]


@lru_cache(maxsize=8)
def _from_tiktoken(name: str) -> TokenCounter | None:
    """The counter for a name of tiktoken; `None` for any other name."""
    try:
        import tiktoken
    except ModuleNotFoundError:
        if _TIKTOKEN_NAMES.fullmatch(name):
            raise ValueError(
                f"`count_tokens` {name!r} needs the library tiktoken: `pip install tokforget[tiktoken]`."
            ) from None
        return None
    encoding = name
    if name not in tiktoken.list_encoding_names():
        try:
            encoding = tiktoken.encoding_name_for_model(name)
        except KeyError:
            return None
    try:
        return TokenCounter(encoding, _count_by_tiktoken(encoding), encoding, _count_by_tiktoken)
    except Exception as error:  # its download may raise any error
        raise ValueError(
            f"`count_tokens` {name!r}: tiktoken could not load {encoding} ({type(error).__name__}). It fetches a vocabulary once; "
            "without a network set TIKTOKEN_CACHE_DIR to a folder that holds it."
        ) from error


@lru_cache(maxsize=8)
def _from_hub(name: str) -> TokenCounter:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        file = hf_hub_download(name, TOKENIZER)
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return _from_transformers(name)
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"`count_tokens` {name!r} is no file or folder here, and could not be found on the Hub ({reason}). It takes {_ALLOWED}."
        ) from error
    return _of_json(Path(file).read_text(encoding="utf-8"), _short(name))


@lru_cache(maxsize=8)
def _from_transformers(name: str) -> TokenCounter:
    """The counter for a vocabulary without a `tokenizer.json`, which Transformers reads or converts."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # each kind of tokenizer raises other errors
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"`count_tokens`: {name} holds no tokenizer that Transformers reads ({reason}). It takes {_ALLOWED}."
        ) from error
    return _of_transformers(tokenizer, _short(name))


def _of_transformers(tokenizer, name: str) -> TokenCounter:
    if getattr(tokenizer, "is_fast", False):
        return _of_json(tokenizer.backend_tokenizer.to_str(), name)
    options = {"add_special_tokens": False, "split_special_tokens": True}
    return TokenCounter(name, lambda texts: [len(tokenizer(text, **options)["input_ids"]) for text in texts])

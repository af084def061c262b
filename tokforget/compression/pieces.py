"""
Cut a text into pieces, and find the pieces that must not be joined to others.

A *piece* is the smallest run of tokens that can be kept or dropped. Tokens that share a character, or a character that
is shown as one (accents, joined emoji, flags, CR LF), form one piece. In word units a piece is a whole word, including
all parts of a number, name or address, or a line break. The pieces of a text partition its characters, so that the
joined kept pieces reproduce the kept text exactly.

A piece is *bound* to the one before it if it would be misread after any other text: the inside of a word, and a word
that directly follows a bracket, a line end or a script without spaces. If its left neighbour is dropped, a space is
put before it. So "Fuel Dilution" can become "uel ilution" but never "uelilution", and "1, 2" never becomes the number
"12".
"""

import unicodedata
from dataclasses import dataclass, field

import numpy as np

from tokforget.compression.omissions import Lines
from tokforget.compression.wholes import find_wholes


WORD, SPACE, EXTEND, LINK, SPACELESS, FLAG, JOINER, _KNOWN, DIGIT, CONNECTOR, SEPARATOR, STICKY, KATAKANA = (
    1 << bit for bit in range(13)
)

# Punctuation that belongs to a word between two word characters: don't, 3.14, e-mail, U+00B7 in Catalan.
_JOINERS = "'’.-·‐‑"
# In word units also characters that join words to a name (a/b, key=value, user@host, 12:30) or digits to a number.
_CONNECTORS = "_:/\\@+=~&#"
_SEPARATORS = ",^×*–−"
# Characters that would form another word, number or call with the text before them.
_STICKY = "%‰°&@#*/\\~^_+=<>|′″-‐‑–—−(["
# First and last code points of scripts without spaces, where every character is a word.
_SPACELESS_RANGES = (
    (0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF),
    (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
# Of these Katakana, in which words of other languages are written, does not part within a run: after Unicode Standard Annex 29.
_KATAKANA_RANGES = ((0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))
_EXTENDING_RANGES = (
    (0x0E33, 0x0E33), (0x0EB3, 0x0EB3), (0x1160, 0x11FF), (0x200C, 0x200D), (0xD7B0, 0xD7FF), (0xFF9E, 0xFF9F),
    (0x1F3FB, 0x1F3FF), (0xE0020, 0xE007F),
)  # fmt: skip
_LINKING = {
    0x0D, 0x200D, *range(0x0600, 0x0606), 0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2, 0x0D4E, 0x110BD, 0x110CD, 0x111C2, 0x111C3,
    0x113D1, 0x1193F, 0x11941, 0x11A3A, *range(0x11A84, 0x11A8A), 0x11D46, 0x11F02, *range(0x1100, 0x1160), *range(0xA960, 0xA97D),
}  # fmt: skip
_LINE_BREAKS = (0x0A, 0x0D, 0x2028, 0x2029)
# Filled when a character is first seen: 1.1 million look-ups in advance would take longer than loading a model.
_CLASSES = np.zeros(0x110000, dtype=np.uint16)


def _classify(code: int) -> int:
    char, category = chr(code), unicodedata.category(chr(code))
    found = _KNOWN
    if category[0] in "LN" or char == "_":
        found |= WORD
    if char.isspace():
        found |= SPACE
    # Extends the character before it: marks, joiners, skin tones, tags, Hangul vowels and finals, Thai and Lao AM.
    mark = category[0] == "M"
    if mark or any(first <= code <= last for first, last in _EXTENDING_RANGES):
        found |= EXTEND | WORD * mark
    # Includes the next character: the joiner of emoji, viramas that form conjuncts, prefixes, Hangul initials, CR
    # before LF.
    if code in _LINKING or unicodedata.combining(char) == 9:
        found |= LINK
    if any(first <= code <= last for first, last in _SPACELESS_RANGES):
        found |= SPACELESS
    if any(first <= code <= last for first, last in _KATAKANA_RANGES):
        found |= KATAKANA
    if 0x1F1E6 <= code <= 0x1F1FF:
        found |= FLAG
    if char in _JOINERS:
        found |= JOINER
    if category == "Nd":
        found |= DIGIT
    if char in _CONNECTORS:
        found |= CONNECTOR
    if char in _SEPARATORS:
        found |= SEPARATOR
    if char in _STICKY or category == "Sc":
        found |= STICKY
    return found


def character_classes(text: str) -> np.ndarray:
    """Class bits of each character `(len(text),)`, uint16."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    classes = _CLASSES[codes]
    if not classes.all():
        for code in np.unique(codes[classes == 0]).tolist():
            _CLASSES[code] = _classify(code)
        classes = _CLASSES[codes]
    return classes


@dataclass
class Pieces:
    """
    The pieces of a text, from left to right.

    Args:
        starts (`np.ndarray` of shape `(num_pieces + 1,)`): First token of each piece, then the number of tokens.
        chars (`np.ndarray` of shape `(num_pieces + 1,)`): First character of each piece, then the length of the text.
        bound (`np.ndarray` of shape `(num_pieces,)`): True where a piece may only be joined to the one before it.
        blank (`np.ndarray` of shape `(num_pieces,)`): True where a piece ends in white space, so that nothing is
            joined to it.
        notes (`list[tuple[int, int, str]]`): Notes in the output: the piece with which a note is written, the
            character before which it is written, and its text.
        similar (`list[tuple[list[int], list[int], bool]]`): Groups of similar lines: their pieces, the ends of the
            lines, and whether they are identical. The number of dropped ones is noted after the first kept line.
        records (`list[tuple[list[int], list[int], str]]`): Lists of records that may be dropped: their pieces, the number of
            records that each one stands for, and the character that separates two of them. A string in the output says how
            many are missing.
        lines (`Lines`, *optional*): The lines of the text, if omissions are marked in the output.
    """

    starts: np.ndarray
    chars: np.ndarray
    bound: np.ndarray
    blank: np.ndarray
    notes: list[tuple[int, int, str]] = field(default_factory=list)
    similar: list[tuple[list[int], list[int], bool]] = field(default_factory=list)
    records: list[tuple[list[int], list[int], str]] = field(default_factory=list)
    lines: Lines | None = None

    def __len__(self) -> int:
        return len(self.bound)

    def __getitem__(self, part: slice) -> "Pieces":
        """Consecutive pieces; tokens and characters are counted as in the whole text."""
        edges = slice(part.start, part.stop + 1)
        return Pieces(self.starts[edges], self.chars[edges], self.bound[part], self.blank[part])

    @classmethod
    def joined(cls, parts: "list[Pieces]") -> "Pieces":
        """Join the pieces of consecutive texts, each of which counts from its own beginning."""
        tokens, chars = (
            np.cumsum([0, *(edges[-1] for edges in column)]) for column in zip(*((p.starts, p.chars) for p in parts))
        )
        return cls(
            np.concatenate([*(p.starts[:-1] + a for p, a in zip(parts, tokens)), tokens[-1:]]),
            np.concatenate([*(p.chars[:-1] + a for p, a in zip(parts, chars)), chars[-1:]]),
            np.concatenate([p.bound for p in parts]),
            np.concatenate([p.blank for p in parts]),
        )

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each piece `(num_pieces,)`."""
        return np.diff(self.starts)

    def means(self, token_values: np.ndarray) -> np.ndarray:
        """Mean of the tokens' values over each piece `(num_pieces,)`, float64."""
        if len(self) == len(token_values):
            return token_values.astype(np.float64)
        return np.add.reduceat(token_values.astype(np.float64), self.starts[:-1]) / self.sizes

    def to_tokens(self, piece_values: np.ndarray) -> np.ndarray:
        """Repeat a value per piece for its tokens `(num_tokens,)`."""
        return piece_values if len(self) == self.starts[-1] else np.repeat(piece_values, self.sizes)


def cut(text: str, offsets: np.ndarray, unit: str) -> Pieces:
    """
    The pieces of a text.

    Args:
        text (`str`): The text.
        offsets (`np.ndarray` of shape `(num_tokens, 2)`): First character of each token, and the one after its last, as
            a fast tokenizer gives them. Characters that no token covers belong to the token after them.
        unit (`str`): `"token"` or `"word"`.
    """
    num_tokens = len(offsets)
    if not num_tokens:
        nothing = np.zeros(0, dtype=bool)
        return Pieces(np.zeros(1, dtype=np.int64), np.array([len(text)]), nothing, nothing)
    ends = np.maximum.accumulate(offsets[:, 1])
    first = np.flatnonzero(offsets[1:, 0] >= ends[:-1]) + 1  # tokens that share no character with earlier ones
    place = ends[first - 1]  # the character at which such a token's piece would begin
    classes = character_classes(text)
    inside = (place > 0) & (place < len(text))  # a token without characters begins nothing
    first, place = first[inside], place[inside]
    breaks = _is_character_break(classes, place)
    if unit == "word":
        # A word stays whole, and white space belongs to the word after it, except for line breaks.
        breaks &= ~(_is_inside_word(classes, place, JOINER | CONNECTOR) | _is_inside_whole(text, classes, place))
        breaks &= classes[place - 1] & classes[place] & KATAKANA == 0
        breaks[np.flatnonzero(breaks)[_goes_on(text, classes, place[breaks])]] = False
    first, place = first[breaks], place[breaks]
    bound = _is_inside_word(classes, place, JOINER) | (classes[place] & (WORD | SPACELESS) == WORD)
    if unit == "word":
        # Bound: text directly after a line break, a name or number that begins with a sign (.5, --flag), and such a
        # sign alone.
        outer = classes[place] & (SPACE | SPACELESS) == 0
        words = np.logical_or.reduceat(classes & WORD > 0, np.concatenate([[0], place]))[1:]
        bound |= outer & ((classes[place - 1] & SPACE > 0) | words | (classes[place] & STICKY > 0))
        # A comma directly before a digit would join that digit to a number before it.
        after = np.append(classes, 0)[place + 1]
        bound |= (classes[place] & SEPARATOR > 0) & (after & DIGIT > 0)
    chars = np.concatenate([[0], place, [len(text)]])
    return Pieces(
        np.concatenate([[0], first, [num_tokens]]),
        chars,
        np.concatenate([[False], bound]),
        classes[chars[1:] - 1] & SPACE > 0,
    )


def _goes_on(text: str, classes: np.ndarray, place: np.ndarray) -> np.ndarray:
    """
    Whether white space at each place belongs to the following word (bool): not before the word after a line break.
    """
    edges = np.concatenate([[0], place])
    blank = np.logical_and.reduceat(classes & SPACE > 0, edges)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    broken = np.logical_or.reduceat(np.isin(codes, _LINE_BREAKS), edges)
    # Consecutive blank parts form one run; at its last part it is known whether the run contains a line break.
    run = np.cumsum(~blank | np.concatenate([[True], ~blank[:-1]]))
    holds = np.zeros(run[-1] + 1, dtype=bool)
    np.logical_or.at(holds, run, broken)
    return blank[:-1] & (blank[1:] | ~holds[run[:-1]])


def _is_character_break(classes: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Whether a displayed character begins at `place`; simplified from Unicode Standard Annex 29."""
    before, after = classes[place - 1], classes[place]
    linked = _is_linked(classes)[place - 1] if (classes & LINK).any() else np.zeros(len(place), dtype=bool)
    linked &= before & SPACE <= after & SPACE  # CR includes only white space
    return ~((after & EXTEND > 0) | linked | _is_inside_flag(classes, place))


def _is_inside_flag(classes: np.ndarray, place: np.ndarray) -> np.ndarray:
    """
    Whether `place` is inside a flag. A flag has two letters, so a run of them may only be cut after every second one.
    """
    flags = classes & FLAG > 0
    if not flags.any():
        return np.zeros(len(place), dtype=bool)
    index = np.arange(len(classes))
    start = np.maximum.accumulate(np.where(~flags, index + 1, 0))  # first index of the letter's run
    return flags[place - 1] & flags[place] & ((place - start[place]) % 2 == 1)


def _is_linked(classes: np.ndarray) -> np.ndarray:
    """Whether a character, or the one that it extends, includes the next character."""
    index = np.arange(len(classes))
    link = np.maximum.accumulate(np.where(classes & LINK > 0, index, -1))
    begin = np.maximum.accumulate(np.where(classes & EXTEND == 0, index, 0))
    return (link >= 0) & (link >= begin)


def _is_inside_word(classes: np.ndarray, place: np.ndarray, joiner: int) -> np.ndarray:
    spaced = classes & (WORD | SPACELESS) == WORD
    before, after = spaced[place - 1], spaced[place]
    return (before & after) | _is_beside(classes & joiner > 0, spaced, place)


def _is_beside(joins: np.ndarray, joined: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Whether a joining character is next to `place`, with characters that it joins on both of its sides."""
    second = joined[np.maximum(place - 2, 0)] & (place > 1)
    following = joined[np.minimum(place + 1, len(joined) - 1)] & (place + 1 < len(joined))
    return (joins[place - 1] & joined[place] & second) | (joins[place] & joined[place - 1] & following)


def _is_inside_whole(text: str, classes: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Whether `place` is inside a number, URL, path or the like."""
    inside = _is_beside(classes & SEPARATOR > 0, classes & DIGIT > 0, place)
    spans = np.array(list(find_wholes(text)), dtype=np.int64).reshape(-1, 2)
    spans = spans[spans[:, 1] > spans[:, 0] + 1]
    if len(spans):
        depth = np.zeros(len(text) + 1, dtype=np.int64)
        np.add.at(depth, spans[:, 0] + 1, 1)
        np.add.at(depth, spans[:, 1], -1)
        inside |= np.cumsum(depth)[place] > 0
    return inside

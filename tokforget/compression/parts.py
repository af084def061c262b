"""Collect the pieces of a structured text, with the bonds between them, from left to right."""

from dataclasses import dataclass, field

import numpy as np

from tokforget.compression.meaning import Bonds, find_bonds
from tokforget.compression.pieces import Pieces, cut


@dataclass
class TextPieces(Pieces):
    """
    Pieces whose edges may be inside tokens.

    Args:
        offsets (`np.ndarray` of shape `(num_tokens, 2)`): As for [`tokforget.compression.pieces.cut`].
        shared (`list[list[int]]`): Groups of pieces that are kept together; the first stands for all.
    """

    offsets: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    shared: list[list[int]] = field(default_factory=list)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each piece `(num_pieces,)`; the first of a group has those of all."""
        sizes = np.diff(self.starts)
        for group in self.shared:
            total = sizes[group].sum()
            sizes[group] = 0
            sizes[group[0]] = total
        return sizes

    def means(self, token_values: np.ndarray) -> np.ndarray:
        """
        Mean over the characters of each piece, or of its group, of their tokens' values `(num_pieces,)`, float64.
        """
        places = np.arange(self.chars[-1])
        owner = np.maximum(np.searchsorted(self.offsets[:, 0], places, side="right") - 1, 0)
        total = np.concatenate([[0.0], np.cumsum(token_values.astype(np.float64)[owner])])
        means = np.diff(total[self.chars]) / np.diff(self.chars)
        for group in self.shared:
            means[group] = np.average(means[group], weights=np.diff(self.chars)[group])
        return means

    def to_tokens(self, piece_values: np.ndarray) -> np.ndarray:
        """From a mask over pieces to the tokens of which a character is kept `(num_tokens,)`, bool."""
        total = np.concatenate([[0], np.cumsum(np.repeat(piece_values, np.diff(self.chars)))])
        return total[self.offsets[:, 1]] > total[self.offsets[:, 0]]


@dataclass
class Structure:
    """
    A structured text in pieces.

    Args:
        kind (`str`): `"json"`, `"code"`, `"log"`, `"diff"`, `"csv"`, `"settings"` (YAML, TOML or INI), `"rows"`, `"fences"` or `"tables"`.
        pieces (`TextPieces`), bonds (`Bonds`): The pieces, and which of them are kept together.
        needed (`np.ndarray` of shape `(num_pieces,)`): Pieces without which the structure would be broken; bool.
        groups (`list[tuple[int, int]]`), required (`list[tuple[int, int]]`): Ranges of pieces of which one should be
            kept, and of which one must be.
        blocks (`list[tuple[int, int]]`): Ranges of pieces that are fences and tables between words.
        severity (`np.ndarray` of shape `(num_pieces,)`): Pieces of higher severity are kept first, whatever their
            scores, if there is no question; 0 for most.
        alone (`np.ndarray` of shape `(num_pieces,)`, *optional*): Pieces that may be kept without their bonds if no
            piece fits with them: the header of a CSV, an entry of settings that is in no other; bool.
    """

    kind: str
    pieces: TextPieces
    bonds: Bonds
    needed: np.ndarray
    groups: list[tuple[int, int]]
    severity: np.ndarray
    alone: np.ndarray | None = None
    required: list[tuple[int, int]] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)


class Parts:
    """Collects pieces from left to right."""

    def __init__(self, text: str, readable: bool, omit_records: bool = False):
        self.text, self.readable, self.omit_records, self.edges = text, readable, omit_records, [0]
        self.records: list[tuple[list[int], list[int], str]] = []
        self.required: list[tuple[int, int]] = []
        self.blocks: list[tuple[int, int]] = []
        self.shared: list[list[int]] = []
        self.bound, self.blank, self.mark, self.needed, self.first_of_all, self.leads_to = [], [], [], [], [], []
        self.clause_marks, self.stops, self.denies, self.is_word, self.sentences, self.pairs = [], [], [], [], [], []
        self.rows: list[tuple[int, int, int, int]] = []
        self.groups: list[tuple[int, int]] = []
        self.notes: list[tuple[int, int, str]] = []
        self.severity: dict[int, int] = {}
        self.similar: dict[str, list[int]] = {}
        self.same: dict[str, list[int]] = {}
        self.alone: list[int] | None = None

    def __len__(self) -> int:
        return len(self.bound)

    def add(self, end: int, needed: bool = False, mark: bool = False) -> None:
        """Add one piece that ends at a character; nothing is joined to it."""
        if end > self.edges[-1]:
            self.edges.append(end)
            self.leads_to.append(len(self))
            self.bound.append(False)
            self.blank.append(True)
            self.mark.append(mark)
            self.needed.append(needed)
            self.first_of_all.append(False)
            for row in (self.clause_marks, self.stops, self.denies, self.is_word):
                row.append(False)
            self.sentences.append(self._next_sentence())

    def _next_sentence(self) -> int:
        return self.sentences[-1] + 1 if self.sentences else 0

    def add_words(self, shown: str, places: np.ndarray) -> None:
        """
        Add the words of a string that is written with escapes.

        Args:
            shown (`str`): The string without escapes.
            places (`np.ndarray` of shape `(len(shown) + 1,)`): Offset of each of its characters in the text, and the
                end.
        """
        at = np.arange(len(shown))
        pieces = cut(shown, np.stack([at, at + 1], 1), "word")
        bonds, base = find_bonds(shown, pieces) if self.readable else Bonds.none(len(pieces)), len(self)
        self.edges += places[pieces.chars[1:]].tolist()
        # The first word of a section is bound to the lines before it, and not to the last word of the earlier section.
        self.bound += [bool(base), *pieces.bound[1:].tolist()] if len(pieces) else []
        self.blank += pieces.blank.tolist()
        self.mark += bonds.marks.tolist()
        self.first_of_all += bonds.first_of_all.tolist()
        self.leads_to += (bonds.leads_to + base).tolist()
        self.clause_marks += bonds.clause_marks.tolist()
        self.stops += bonds.stops.tolist()
        self.denies += bonds.denies.tolist()
        self.is_word += bonds.words.tolist()
        self.sentences += (bonds.sentences + self._next_sentence()).tolist()
        self.pairs += (bonds.pairs + base).tolist()
        self.needed += [False] * len(pieces)
        begin = np.where(bonds.begin < 0, -1, bonds.begin + base)
        self.rows += zip(*((c + base).tolist() for c in (bonds.pieces, bonds.first, bonds.last)), begin.tolist())

    def add_prose(self, start: int, end: int) -> None:
        """Add the words of a part of the text."""
        if end > start:
            self.add_words(self.text[start:end], np.arange(start, end + 1))

    def built(self, kind: str, offsets: np.ndarray) -> Structure:
        chars = np.array(self.edges)
        starts = np.searchsorted(offsets[:, 0], chars)
        starts[0], starts[-1] = 0, len(offsets)
        pieces = TextPieces(
            starts, chars, np.array(self.bound), np.array(self.blank), offsets=offsets, shared=self.shared
        )
        pieces.notes, pieces.records = self.notes, self.records
        pieces.similar = [
            (members, [int(chars[at]) + len(self.text[chars[at] : chars[at + 1]].rstrip()) for at in members], same)
            for same, groups in ((True, self.same), (False, self.similar))
            for members in groups.values()
            if len(members) > (1 if same else 2)
        ]
        severity = np.zeros(len(self), dtype=np.int64)
        severity[list(self.severity)] = list(self.severity.values())
        rows = np.array(self.rows, dtype=np.int64).reshape(-1, 4).T
        of_words = (np.array(row, dtype=bool) for row in (self.clause_marks, self.stops))
        bonds = Bonds(
            *rows, np.array(self.mark), np.array(self.first_of_all), np.array(self.leads_to), *of_words,
            np.array(self.pairs, dtype=np.int64).reshape(-1, 2), np.array(self.denies, dtype=bool),
            np.array(self.is_word, dtype=bool), np.array(self.sentences, dtype=np.int64),
        )  # fmt: skip
        alone = None if self.alone is None else np.isin(np.arange(len(self)), self.alone)
        return Structure(
            kind, pieces, bonds, np.array(self.needed), self.groups, severity, alone, self.required, self.blocks
        )

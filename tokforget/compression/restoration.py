"""
Restore a text from its kept tokens: run the reconstructor on batches of windows, and mark the predicted parts of the
text.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm.auto import tqdm

from tokforget.compression.results import CompressedText, RestoredText
from tokforget.compression.scores import layout
from tokforget.compression.search import runs
from tokforget.models.reconstructor import Reconstructor


def full_length(given, fingerprint: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids `(T,)` (0 where dropped) and keep mask `(T,)`, from a result or from a pair of ids and mask."""
    if isinstance(given, CompressedText):
        if given.tokenizer and given.tokenizer != fingerprint:
            raise ValueError(
                f"This text was compressed with another tokenizer ({given.tokenizer}, here {fingerprint}): restore it with "
                "the model that compressed it."
            )
        ids, mask = given.kept_ids, given.keep_mask
    else:
        try:
            ids, mask = given
        except (TypeError, ValueError):
            raise TypeError(
                f"`restore` takes results of `compress` or pairs (ids, keep mask), got {given!r:.80}."
            ) from None
        ids, mask = np.asarray(ids, dtype=np.int64), np.asarray(mask, dtype=bool)
    if len(ids) == len(mask):
        return np.where(mask, ids, 0), mask
    if len(ids) != mask.sum():
        raise ValueError(
            f"Got {len(ids)} ids for a mask of {len(mask)} with {int(mask.sum())} kept: pass an id for each place, or one for "
            "each kept token."
        )
    whole = np.zeros(len(mask), dtype=np.int64)
    whole[mask] = ids
    return whole, mask


def fill_gaps(
    reconstructor: Reconstructor,
    texts: Sequence[tuple[np.ndarray, np.ndarray]],
    window: int,
    batch_size: int,
    progress: bool | None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Restored ids and confidences `(T,)` of each text. Texts longer than `window` are restored in windows that overlap
    by a quarter. Only windows with gaps are computed, batched by similar length.
    """
    done = [(ids.copy(), mask.astype(np.float32)) for ids, mask in texts]
    rows = [(index, *row) for index, (ids, mask) in enumerate(texts) if len(ids)
            for row in layout(len(ids), window, window // 8).tolist() if not mask[row[2] : row[3]].all()]  # fmt: skip
    rows.sort(key=lambda row: row[1] - row[2])
    device = next(reconstructor.parameters()).device
    hidden = not progress if progress is not None else None  # None: shown on a terminal
    with tqdm(total=len(rows), desc="restoring", unit="window", disable=hidden) as bar:
        for batch in (rows[i : i + batch_size] for i in range(0, len(rows), batch_size)):
            shape = (len(batch), max(end - start for _, start, end, _, _ in batch))
            ids, keep, valid = (torch.zeros(shape, dtype=kind) for kind in (torch.long, torch.bool, torch.bool))
            for row, (index, start, end, _, _) in enumerate(batch):
                ids[row, : end - start] = torch.from_numpy(texts[index][0][start:end])
                keep[row, : end - start] = torch.from_numpy(texts[index][1][start:end])
                valid[row, : end - start] = True
            restored = reconstructor.restore(ids.to(device), keep.to(device), valid.to(device))
            for row, (index, start, _, first, last) in enumerate(batch):
                own = slice(first - start, last - start)
                done[index][0][first:last] = restored.input_ids[row, own].cpu().numpy()
                done[index][1][first:last] = restored.confidence[row, own].float().cpu().numpy()
            bar.update(len(batch))
    return done


def write_text(
    tokenizer: Tokenizer,
    given,
    ids: np.ndarray,
    mask: np.ndarray,
    confidence: np.ndarray,
    abstain_below: float | None,
    gap: str,
) -> RestoredText:
    """The restored text: kept text unchanged, predictions between it, and `gap` where the model abstains."""
    unsure = ~mask & (confidence < (abstain_below or 0.0))
    kind = np.where(mask, 0, np.where(unsure, 2, 1))
    edges = [0, *(np.flatnonzero(np.diff(kind)) + 1).tolist(), len(ids)] if len(ids) else [0]
    letters = iter(_kept_letters(given) if isinstance(given, CompressedText) else ())
    parts, spans, length = [], [], 0
    for start, end in pairwise(edges):
        if kind[start] == 0:
            part = next(letters, None)
            part = _decode(tokenizer, ids, start, end) if part is None else part
        else:
            part = gap if kind[start] == 2 else _decode(tokenizer, ids, start, end)
            spans.append((length, length + len(part)))
        parts.append(part)
        length += len(part)
    return RestoredText(
        text="".join(parts),
        input_ids=np.where(unsure, -1, ids),
        keep_mask=mask,
        confidence=confidence,
        restored_spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        abstained=int(unsure.sum()),
    )


def _kept_letters(result: CompressedText) -> list[str]:
    """The kept spans of the compressed text, one for each run of kept tokens."""
    found, position, notes = [], 0, sorted(map(tuple, result.notes))[::-1]
    for (start, end), apart in zip(result.kept_spans.tolist(), result.separated.tolist()):
        position += apart
        letters = ""
        while notes and notes[-1][0] <= end:
            place, note = notes.pop()
            letters += result.text[position : position + max(place - start, 0)]
            position += max(place - start, 0) + len(note)
            start = max(start, place)
        found.append(letters + result.text[position : position + end - start])
        position += end - start
    assert len(found) == len(runs(result.keep_mask)[0]) or not len(result.scores)
    return found


def _decode(tokenizer: Tokenizer, ids: np.ndarray, start: int, end: int) -> str:
    """Decode tokens to text, with the leading space that some decoders write only between tokens."""
    if start == 0:
        return tokenizer.decode(ids[:end].tolist(), skip_special_tokens=False)
    before = tokenizer.decode(ids[start - 1 : start].tolist(), skip_special_tokens=False)
    both = tokenizer.decode(ids[start - 1 : end].tolist(), skip_special_tokens=False)
    return both[len(before) :] if both.startswith(before) else tokenizer.decode(ids[start:end].tolist())

"""
From documents to padded batches: load, split by document, tokenise, cut into blocks, collate.

A run may read its source itself ([`load_blocks`]) or use data prepared before (`tokforget.data.preparation`). Both
ways split, search for duplicates and cut alike, and so give the same blocks.
"""

import hashlib
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from tokforget.data.arguments import MAX_LENGTH, MIN_LENGTH, DataArguments
from tokforget.data.duplicates import NearDuplicates, signature
from tokforget.data.parallel import in_order
from tokforget.data.sources import Document, may_be_on_hub, open_source
from tokforget.data.splits import NEAR_ACROSS, SPLITS, DocumentSplits, in_batches, plan_splits
from tokforget.files import MANIFEST
from tokforget.packaged import EMBEDDED
from tokforget.packing import cut_blocks


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

# How documents are tokenised. A text that happens to spell the end token must not produce that token.
_AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False,
            "return_token_type_ids": False, "verbose": False}  # fmt: skip
_TEXTS_AT_ONCE = 1000
TOO_SHORT = "too_short"
SHORT_BLOCK = "short_block"
SCHEMA = pa.schema(
    {"input_ids": pa.list_(pa.int32()), "document": pa.string(), "start": pa.int64(), "end": pa.int64()}
)


def load_documents(
    dataset_name: str, dataset_config: str | None = None, text_column: str = "text"
) -> dict[str, list[str]]:
    """
    The documents that [`load_blocks`] cuts, by split, without duplicates across splits.

    Args:
        dataset_name (`str`), dataset_config (`str`, *optional*), text_column (`str`): See [`open_source`].

    Returns:
        `dict[str, list[str]]`: `train`, `validation` and `test`.

    Raises:
        `FileNotFoundError`, `ValueError`: Naming what was tried, if there is nothing to load.
    """
    source = open_source(dataset_name, dataset_config, text_column)
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, document in DocumentSplits(source, plan_splits(source.splits)).without_near_duplicates():
        texts[split].append(document.text)
    return texts


# -- documents to blocks -----------------------------------------------------------------------------------------------
@dataclass
class _Blocks:
    """The blocks of one batch of documents: a table per split, and the counts."""

    tables: dict[str, pa.Table]
    kept: Counter = field(default_factory=Counter)  # (split, "documents" | "blocks" | "tokens")
    dropped: Counter = field(default_factory=Counter)  # (reason, split): documents, or blocks for `short_block`
    dropped_tokens: Counter = field(default_factory=Counter)  # (reason, split)
    tokenizer_seconds: float = 0.0
    tokens_read: int = 0


@dataclass
class _Cutter:
    """
    Cuts documents into blocks of at most `max_length` and at least `min_length` tokens, and leaves out training
    documents that copy held-out ones.
    """

    tokenizer: "PreTrainedTokenizerBase"
    near_duplicates: NearDuplicates
    max_length: int
    min_length: int

    def __call__(self, batch: list[tuple[str, Document]]) -> _Blocks:
        out = _Blocks({})
        staying = []
        for split, document in batch:
            if split == "train" and self.near_duplicates and self.near_duplicates.match(signature(document.text)):
                out.dropped[NEAR_ACROSS, split] += 1
            else:
                staying.append((split, document))
        if not staying:
            return out
        began = time.perf_counter()
        encoded = self.tokenizer(
            [document.text for _, document in staying],
            **_AS_TEXT,
        )
        out.tokenizer_seconds = time.perf_counter() - began
        rows: dict[str, list[tuple]] = {}
        for (split, document), ids, encoding in zip(staying, encoded["input_ids"], encoded.encodings):
            blocks = [
                (block, document.id, document.start + start, document.start + end)
                for block, (start, end) in zip(
                    cut_blocks(ids, self.max_length), _spans(encoding, len(ids), self.max_length, len(document.text))
                )
            ]
            long_enough = [block for block in blocks if len(block[0]) >= self.min_length]
            self._count(out, split, blocks, long_enough)
            rows.setdefault(split, []).extend(long_enough)
        for split, blocks in rows.items():
            if blocks:
                columns = [pa.array(column, kind) for column, kind in zip(zip(*blocks), SCHEMA.types)]
                out.tables[split] = pa.Table.from_arrays(columns, schema=SCHEMA)
        return out

    def _count(self, out: _Blocks, split: str, blocks: list[tuple], long_enough: list[tuple]) -> None:
        tokens, kept = (sum(len(block[0]) for block in some) for some in (blocks, long_enough))
        out.tokens_read += tokens
        reason = SHORT_BLOCK if long_enough else TOO_SHORT
        if long_enough:
            out.kept += Counter(
                {(split, "documents"): 1, (split, "blocks"): len(long_enough), (split, "tokens"): kept}
            )
            out.dropped[reason, split] += len(blocks) - len(long_enough)
        else:
            out.dropped[reason, split] += 1
        out.dropped_tokens[reason, split] += tokens - kept


def _spans(encoding, num_tokens: int, length: int, num_characters: int) -> Iterator[tuple[int, int]]:
    """
    Character span of each block of `length` tokens. The spans are adjacent and cover the text: characters that no
    token covers belong to the block that follows, and a character whose tokens the cut divides belongs to the block in
    which it begins.
    """
    start = 0
    for cut in range(length, num_tokens, length):
        end = encoding.token_to_chars(cut - 1)[1]
        yield start, end
        start = end
    yield start, num_characters


class BlockStream:
    """
    Blocks of a source by split, in the source's order, whatever the number of processes.

    Iterating gives `(split, table)` with the columns `input_ids` (int32), `document` (its name in the source), `start`
    and `end` (the block's characters in its document). After the iteration `counts`, `dropped` and the times are
    complete.

    Raises:
        `ValueError`: If the tokenizer cannot tell which characters a token covers (a slow tokenizer).
    """

    def __init__(
        self,
        splits: DocumentSplits,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        min_length: int = 1,
        num_proc: int = 1,
    ):
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} does not tell which characters a token covers; use a fast tokenizer "
                "(one with a `tokenizer.json`)."
            )
        self._splits, self._num_proc = splits, num_proc
        self._cutter = _Cutter(tokenizer, splits.near_duplicates, max_length, min_length)
        self._total = _Blocks({})

    def __iter__(self) -> Iterator[tuple[str, pa.Table]]:
        self._total = total = _Blocks({})
        for _, blocks in in_order(self._cutter, in_batches(iter(self._splits)), self._num_proc):
            total.kept += blocks.kept
            total.dropped += blocks.dropped
            total.dropped_tokens += blocks.dropped_tokens
            total.tokenizer_seconds += blocks.tokenizer_seconds
            total.tokens_read += blocks.tokens_read
            yield from blocks.tables.items()
        total.dropped += self._splits.dropped

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Documents, blocks and tokens of each split."""
        return {split: {what: self._total.kept[split, what] for what in ("documents", "blocks", "tokens")}
                for split in SPLITS}  # fmt: skip

    @property
    def dropped(self) -> dict[str, dict[str, int]]:
        """
        What was left out, by reason and split: documents (for `short_block` blocks), and the tokens of documents and
        blocks that were too short.
        """
        found = {**self._total.dropped, **{(f"{reason}_tokens", split): tokens for (reason, split), tokens
                                           in self._total.dropped_tokens.items()}}  # fmt: skip
        return {
            reason: {split: found[reason, split] for split in SPLITS if found.get((reason, split))}
            for reason in sorted({reason for (reason, _), count in found.items() if count})
        }

    @property
    def tokenizer_speed(self) -> float:
        """Tokens per second of the tokenizer alone, in one process."""
        return self._total.tokens_read / max(self._total.tokenizer_seconds, 1e-9)

    @property
    def tokens_read(self) -> int:
        """Tokens of all tokenised documents, including those that were too short."""
        return self._total.tokens_read

    def check(self, dataset_name: str, min_length: int) -> None:
        """Raise `ValueError` if a split is empty."""
        for split, counts in self.counts.items():
            if not counts["blocks"]:
                reasons = ", ".join(
                    f"{where[split]} {reason}" for reason, where in self.dropped.items() if split in where
                )
                raise ValueError(
                    f"The {split} split of {dataset_name!r} is empty: no block of at least {min_length} tokens (left out: "
                    f"{reasons or 'nothing'}). Give more text, or lower `min_length`."
                )


# -- the blocks of a run -----------------------------------------------------------------------------------------------
def load_blocks(
    dataset_name: str,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    min_length: int = 1,
    dataset_config: str | None = None,
    text_column: str = "text",
) -> "DatasetDict":
    """
    Tokenised blocks by split, from a source or from a folder that `recipes/prepare_data.py` wrote.

    Args:
        dataset_name (`str`): See [`open_source`]; or a prepared folder, recognised by its `manifest.json`.
        tokenizer (`PreTrainedTokenizerBase`): For a prepared folder it must have the vocabulary that the folder
            records.
        max_length (`int`): Tokens per block. A longer prepared block is cut again (and loses `start` and `end`).
        min_length (`int`): Blocks of fewer tokens are left out.
        dataset_config (`str`, *optional*), text_column (`str`): See [`open_source`].

    Returns:
        `datasets.DatasetDict`: `train`, `validation`, `test` with the columns of [`BlockStream`].

    Raises:
        `ValueError`: If a split is empty, or prepared data have another tokenizer's vocabulary.
    """
    return open_blocks(dataset_name, tokenizer, max_length, min_length, dataset_config, text_column)[0]


def open_blocks(
    dataset_name: str,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    min_length: int = 1,
    dataset_config: str | None = None,
    text_column: str = "text",
) -> tuple["DatasetDict", dict]:
    """The blocks of [`load_blocks`], and the record of their source, in the form of a manifest's `source`."""
    if (manifest := _manifest_of(dataset_name)) is not None:
        source = json.loads(manifest.read_text(encoding="utf-8"))["source"]
        return _load_prepared(dataset_name, manifest, tokenizer, max_length, min_length), source
    from datasets import Dataset, DatasetDict, Features

    source = open_source(dataset_name, dataset_config, text_column)
    stream = BlockStream(DocumentSplits(source, plan_splits(source.splits)), tokenizer, max_length, min_length)
    tables: dict[str, list[pa.Table]] = {split: [SCHEMA.empty_table()] for split in SPLITS}
    for split, table in stream:
        tables[split].append(table)
    stream.check(dataset_name, min_length)
    columns = {split: pa.concat_tables(parts).combine_chunks() for split, parts in tables.items()}
    blocks = DatasetDict({
        split: Dataset.from_dict({name: table[name].combine_chunks() for name in table.column_names},
                                 features=Features.from_arrow_schema(SCHEMA))
        for split, table in columns.items()
    })  # fmt: skip
    return blocks, {
        "dataset_name": dataset_name, "dataset_config": source.config, "revision": source.revision,
        "license": source.license, "on_hub": source.on_hub,
    }  # fmt: skip


def _manifest_of(dataset_name: str) -> Path | None:
    """The manifest of prepared data, in a folder or on the Hub; `None` for any other source."""
    path = Path(dataset_name)
    if dataset_name == EMBEDDED or path.exists():
        return path / MANIFEST if (path / MANIFEST).is_file() else None
    if not may_be_on_hub(dataset_name):
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(dataset_name, MANIFEST, repo_type="dataset"))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
        return None  # not prepared by tokforget, or not available: opening it as a source says which


def _load_prepared(
    folder: str, manifest_path: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int, min_length: int
) -> "DatasetDict":
    from datasets import load_dataset, load_from_disk

    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    prepared_with = manifest["tokenizer"]
    if vocabulary_hash(tokenizer) != prepared_with["vocabulary_sha256"]:
        raise ValueError(
            f"{folder} was prepared with the tokenizer {prepared_with['name_or_path']!r} ({prepared_with['size']:,} tokens), "
            f"whose vocabulary is not that of {tokenizer.name_or_path!r} ({len(tokenizer):,} tokens): its ids would mean "
            "other text. Prepare the data again with this tokenizer."
        )
    if Path(folder).exists():
        blocks = load_from_disk(folder)
    else:
        # The snapshot to which the manifest belongs.
        blocks = load_dataset(folder, revision=manifest_path.parent.name)
        if data_fingerprint(blocks) != manifest["fingerprint"]:
            raise ValueError(
                f"The blocks of {folder!r} are not those of their {MANIFEST}. Prepare and push the data again."
            )
    longest = manifest["arguments"]["max_length"]
    if longest < max_length:
        logger.warning(
            "%s was cut into blocks of %d tokens; `max_length` %d is not reached.", folder, longest, max_length
        )
    if longest > max_length or manifest["arguments"]["min_length"] < min_length:
        blocks = _cut_again(blocks, manifest["fingerprint"], max_length, min_length)
    for split in SPLITS:
        if not len(blocks[split]):
            raise ValueError(
                f"The {split} split of {folder} has no block of at least {min_length} tokens. Lower `min_length`."
            )
    return blocks


def _cut_again(blocks: "DatasetDict", fingerprint: str, max_length: int, min_length: int) -> "DatasetDict":
    """
    Cut longer blocks again. The result is kept in the cache of `datasets`, because the prepared folder may be
    read-only.
    """
    from datasets import Features, config

    def cut(rows: dict[str, list]) -> dict[str, list]:
        pieces = [
            (piece, document)
            for ids, document in zip(rows["input_ids"], rows["document"])
            for piece in cut_blocks(ids, max_length)
            if len(piece) >= min_length
        ]
        return {"input_ids": [ids for ids, _ in pieces], "document": [document for _, document in pieces]}

    cache = Path(config.HF_DATASETS_CACHE) / "tokforget"
    cache.mkdir(parents=True, exist_ok=True)
    name = f"{fingerprint[:16]}-{max_length}-{min_length}"
    return blocks.map(
        cut,
        batched=True,
        remove_columns=["start", "end"],
        features=Features({column: blocks["train"].features[column] for column in ("input_ids", "document")}),
        cache_file_names={split: str(cache / f"{name}-{split}.arrow") for split in blocks},
        desc=f"Cutting to {max_length} tokens",
    )


def vocabulary_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 of a tokenizer's tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def data_fingerprint(blocks: "DatasetDict") -> str:
    """
    SHA-256 over the token ids of all blocks of all splits, in order; the same for prepared data and for their source.
    """
    total = hashlib.sha256()
    for name in sorted(blocks):
        lengths, ids = hashlib.sha256(), hashlib.sha256()
        for batch in blocks[name].select_columns(["input_ids"]).with_format("arrow").iter(1000):
            for chunk in batch["input_ids"].chunks:
                lengths.update(chunk.value_lengths().to_numpy(zero_copy_only=False).astype("<i8").tobytes())
                ids.update(chunk.flatten().to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        total.update(f"{name} {len(blocks[name])} {lengths.hexdigest()} {ids.hexdigest()}\n".encode())
    return total.hexdigest()


def as_blocks(
    texts,
    tokenizer: "PreTrainedTokenizerBase | None",
    name: str = "train_dataset",
    max_length: int = MAX_LENGTH,
    min_length: int = MIN_LENGTH,
) -> "Dataset | dict[str, Dataset] | None":
    """
    A trainer's data set as blocks of token ids, in the column `input_ids`.

    Args:
        texts (`datasets.Dataset`, or a list of rows, or a dictionary of them by name, or `None`): A column `input_ids`
            is used as it is; a column `text` is tokenised and cut into blocks.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed for `text`.
        name (`str`): Name of `texts` in error messages.
        max_length (`int`), min_length (`int`): Most and fewest tokens of a block cut from `text`.

    Raises:
        `ValueError`: If there is neither column, or no tokenizer for `text`, or no block of `min_length` tokens.
        `TypeError`: If `texts` is a stream, because its texts cannot be counted and shuffled.
    """
    from datasets import Dataset, DatasetDict, IterableDataset

    if texts is None:
        return None
    if isinstance(texts, IterableDataset):
        raise TypeError(
            f"`{name}` is a stream. Its texts have to be counted and shuffled: prepare them with `tokforget.data.preparation` or "
            "recipes/prepare_data.py, or read them into a `datasets.Dataset`."
        )
    if isinstance(texts, DatasetDict) and name == "train_dataset":
        raise ValueError(
            f"`{name}` holds the splits {', '.join(texts)}; pass one of them, such as `dataset['train']`."
        )
    if isinstance(texts, dict):
        return {key: as_blocks(part, tokenizer, name, max_length, min_length) for key, part in texts.items()}
    if not isinstance(texts, Dataset):
        rows = [texts[place] for place in range(len(texts))]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError(
                f"The rows of `{name}` must be dictionaries with `input_ids` or `text`, got {rows[0]!r:.80}."
            )
        texts = Dataset.from_list([{key: row[key] for key in ("input_ids", "text") if key in row} for row in rows])
    if "input_ids" in texts.column_names or not len(texts):
        return texts
    if "text" not in texts.column_names:
        raise ValueError(
            f"`{name}` needs a column `input_ids` (blocks of token ids) or `text`, and has {', '.join(texts.column_names)}. "
            "Rename the one that holds the text: `dataset.rename_column(..., 'text')`."
        )
    if tokenizer is None:
        raise ValueError(f"`{name}` has a column `text`, and there is no tokenizer for it: pass `processing_class`.")
    blocks = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        encoded = tokenizer(texts[start : start + _TEXTS_AT_ONCE]["text"], **_AS_TEXT)
        blocks += [block for ids in encoded["input_ids"] for block in cut_blocks(ids, max_length)]
    blocks = [block for block in blocks if len(block) >= min_length]
    if not blocks:
        raise ValueError(
            f"No text of `{name}` has {min_length} tokens. Take longer texts, or pass blocks as `input_ids`."
        )
    return Dataset.from_dict({"input_ids": blocks})


class BlockCollator:
    """
    Pads blocks on the right: `input_ids` `(B, T)` and `attention_mask` `(B, T)`; also `text_index` `(B,)`, the rows'
    indices in the training set, if the trainer numbers them.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        blocks = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        input_ids = torch.nn.utils.rnn.pad_sequence(blocks, batch_first=True, padding_value=self.pad_token_id)
        lengths = torch.tensor([len(block) for block in blocks])
        attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "text_index" in rows[0]:
            batch["text_index"] = torch.tensor([row["text_index"] for row in rows])
        return batch


def draw_blocks(
    data_args: DataArguments, tokenizer: "PreTrainedTokenizerBase"
) -> tuple["Dataset", "Dataset", "Dataset", dict]:
    """
    Draw training, validation and test blocks, the same in every run, so that training seeds are compared on the same
    texts.

    Returns:
        `tuple`: The three data sets, and their record: `fingerprint` of all blocks they were drawn from, `source` of
        the text, and `blocks` drawn from each split.
    """
    blocks, source = open_blocks(
        data_args.dataset_name,
        tokenizer,
        data_args.max_length,
        data_args.min_length,
        data_args.dataset_config,
        data_args.text_column,
    )
    fingerprint, blocks = data_fingerprint(blocks), blocks.shuffle(seed=0, keep_in_memory=True)
    limits = {
        "train": data_args.max_train_texts or sys.maxsize,
        "validation": data_args.max_eval_texts,
        "test": data_args.max_test_texts,
    }
    train, validation, test = (
        blocks[name].select(range(min(len(blocks[name]), limit))) for name, limit in limits.items()
    )
    counts = {"train": len(train), "validation": len(validation), "test": len(test)}
    return train, validation, test, {"fingerprint": fingerprint, "source": source, "blocks": counts}

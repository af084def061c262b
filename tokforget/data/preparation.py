"""
Prepare data once: write a source as blocks to `train/`, `validation/` and `test/`, with a `manifest.json`, all or
nothing.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tokforget.data.arguments import PreparationArguments
from tokforget.data.blocks import MANIFEST, SCHEMA, BlockStream, data_fingerprint, vocabulary_hash
from tokforget.data.sources import Source, open_source
from tokforget.data.splits import SPLITS, DocumentSplits, plan_splits
from tokforget.hub.cards import REASONS
from tokforget.hub.staging import write_data_card


if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase


@dataclass
class Preparation:
    """
    Result of a preparation. `tokenizer_speed` is that of the tokenizer alone in one process, in tokens per second.
    """

    manifest: dict
    seconds: float
    tokens_per_second: float
    tokenizer_speed: float


def prepare(args: PreparationArguments, tokenizer: "PreTrainedTokenizerBase", progress: bool = True) -> Preparation:
    """
    Write the blocks of a source to `args.output_dir`.

    The blocks are written to a hidden folder next to it, which is renamed at the end; one that a killed run left is
    removed. With `args.streaming`, memory holds only a few batches, the longest document, and the index of
    [`DocumentSplits`]. The result does not depend on `args.streaming` or `args.num_proc`.

    Args:
        args ([`PreparationArguments`]): Source, splits and output.
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer.
        progress (`bool`): Show progress bars.

    Returns:
        [`Preparation`]: The manifest and the times.

    Raises:
        `FileExistsError`: If `output_dir` holds anything already.
        `FileNotFoundError`, `ValueError`: If there is nothing to load (the message names what was tried), or a split
            is empty.
    """
    began = time.perf_counter()
    out = Path(args.output_dir).absolute()
    refuse_existing(out)
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        source = open_source(args.dataset_name, args.dataset_config, args.text_column, args.streaming)
        plan = plan_splits(source.splits, args.train_split, args.val_split, args.test_split)
        splits = DocumentSplits(
            source, plan, args.seed, args.max_sequences, args.duplicate_threshold, args.num_proc, progress
        )
        stream = BlockStream(splits, tokenizer, args.max_length, args.min_length, args.num_proc)
        blocks = _write_blocks(stream, staging, args)
        manifest = _manifest(args, source, splits, tokenizer, stream, data_fingerprint(blocks))
        del blocks
        shutil.rmtree(staging / "cache")
        write_data_card(staging, manifest, args.output_dir)
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.rename(staging, out)  # onto nothing, or an empty folder
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    seconds = time.perf_counter() - began
    return Preparation(manifest, seconds, stream.tokens_read / seconds, stream.tokenizer_speed)


def refuse_existing(out: Path) -> None:
    """Raise `FileExistsError` if there is anything at `out`: nothing is ever overwritten."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        what = "prepared data already" if (out / MANIFEST).is_file() else "something else"
        raise FileExistsError(f"`output_dir` {str(out)!r} holds {what}; name another folder, or remove this one.")


def _write_blocks(stream: BlockStream, staging: Path, args: PreparationArguments) -> "DatasetDict":
    """Write one Arrow file per split, batch by batch; then map these files and save them as `save_to_disk` does."""
    from datasets import Dataset, DatasetDict, Features
    from datasets.arrow_writer import ArrowWriter

    files = {split: str(staging / "cache" / f"{split}.arrow") for split in SPLITS}
    Path(staging, "cache").mkdir()
    features = Features.from_arrow_schema(SCHEMA)
    with ExitStack() as closing:
        writers = {
            split: closing.enter_context(ArrowWriter(features=features, path=file)) for split, file in files.items()
        }
        for split, table in stream:
            writers[split].write_table(table)
        stream.check(args.dataset_name, args.min_length)
        for writer in writers.values():
            writer.finalize()
    blocks = DatasetDict({split: Dataset.from_file(file) for split, file in files.items()})
    blocks.save_to_disk(str(staging))
    return blocks


def _manifest(
    args: PreparationArguments,
    source: Source,
    splits: DocumentSplits,
    tokenizer: "PreTrainedTokenizerBase",
    stream: BlockStream,
    fingerprint: str,
) -> dict:
    return {
        "source": {
            "dataset_name": args.dataset_name,
            "dataset_config": source.config,
            "revision": source.revision,
            "license": source.license,
            "on_hub": source.on_hub,
            "text_column": args.text_column,
            "splits": splits.plan.own,
            "shares": splits.plan.shares,
            "divided_by_place": splits.by_place,
        },
        "tokenizer": {
            "name_or_path": args.tokenizer,
            "size": len(tokenizer),
            "vocabulary_sha256": vocabulary_hash(tokenizer),
        },
        "splits": stream.counts,
        "dropped": stream.dropped,
        "seed": args.seed,
        "fingerprint": fingerprint,
        "arguments": dataclasses.asdict(args),
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("tokforget", "datasets", "transformers", "tokenizers", "datasketch")
            },
        },
    }


# -- what is shown at the end ------------------------------------------------------------------------------------------
def print_report(preparation: Preparation, console: Console | None = None) -> None:
    """
    Print for each split what it holds and what was left out and why; then the speed, next to that of the tokenizer
    alone.
    """
    manifest = preparation.manifest
    table = Table(title="Prepared data", caption=f"fingerprint {manifest['fingerprint'][:16]}")
    table.add_column("")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for what in ("documents", "blocks", "tokens"):
        table.add_row(what, *(f"{manifest['splits'][split][what]:,}" for split in SPLITS))
    table.add_section()
    for reason in REASONS:
        if where := manifest["dropped"].get(reason):
            label = f"  {REASONS[reason]}" if reason.endswith("_tokens") else f"dropped: {REASONS[reason]}"
            table.add_row(label, *(f"{where.get(split, 0):,}" for split in SPLITS))
    console = console or Console()
    console.print(table)
    processes = manifest["arguments"]["num_proc"]
    console.print(
        f"{preparation.seconds:.1f} s, {preparation.tokens_per_second:,.0f} tokens/s from the source to the folder with "
        f"{processes} process{'es' if processes > 1 else ''}; the tokenizer alone, in one process: "
        f"{preparation.tokenizer_speed:,.0f} tokens/s.",
        highlight=False,
    )

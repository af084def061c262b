"""
Train the small GPT-2 that the package carries (`tokforget/embedded_model`), tokenizer included.

Data: the training documents of the embedded corpus, nothing else. Two rows in three are plain text; the
others are `[kept tokens] <|endoftext|> [original]` with random keep masks, as fill-in-the-middle training mixes its
rearranged texts (Bavarian et al. 2022, arXiv 2207.14255): a model this small does not pick up copying from a prompt
by itself. Stored in float16. Its card is `tokforget/embedded_model/README.md`.

    python recipes/train_embedded_model.py --output_dir tokforget/embedded_model
"""

import argparse
import json
import platform
import shutil
import tempfile
import time
from pathlib import Path

import jinja2
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from tokforget.data import embedded_documents, split_of
from tokforget.hub import template_path
from tokforget.masking import keep_count, random_keep_mask
from tokforget.packing import cut_blocks, prefix_rows


END = "<|endoftext|>"
VOCABULARY, LAYERS, HEADS, WIDTH = 4096, 5, 6, 192


def train_tokenizer(texts: list[str], positions: int) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END, model_max_length=positions
    )


class MixedCollator:
    """Plain rows of `2 * length` tokens, or prefix rows over their first `length`; labels on the original text only."""

    def __init__(self, end_id: int, length: int, prefix_share: float, seed: int):
        self.end_id, self.length, self.prefix_share = end_id, length, prefix_share
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])  # (B, 2 * length)
        kind = rows[0].get("kind") or (
            "prefix" if torch.rand((), generator=self.generator) < self.prefix_share else "plain"
        )
        if kind == "plain":
            return {"input_ids": ids, "labels": ids}
        ids = ids.view(-1, self.length)[:: 2 if len(ids) > 1 else 1]
        valid = torch.ones_like(ids, dtype=torch.bool)
        rate = 0.15 + 0.7 * torch.rand(len(ids), generator=self.generator)
        keep_mask = random_keep_mask(keep_count(valid.sum(1), rate), valid, self.generator)
        packed = prefix_rows(ids, keep_mask, valid, self.end_id, self.end_id)
        column = torch.arange(packed.input_ids.shape[1])
        scored = (column >= packed.original_start[:, None]) & packed.attention_mask.bool()
        labels = packed.input_ids.masked_fill(~scored, -100)
        return {
            "input_ids": packed.input_ids,
            "attention_mask": packed.attention_mask,
            "labels": labels,
        }


def as_rows(texts: list[str], tokenizer: PreTrainedTokenizerFast, width: int) -> list[dict]:
    """Documents end to end, an end token after each, in rows of equal width; the last short row is left out."""
    stream = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    return [{"input_ids": row} for row in cut_blocks(stream, width) if len(row) == width]


def validation_loss(model: GPT2LMHeadModel, rows: list[dict]) -> float:
    """Nats per token on plain text."""
    model.eval()
    with torch.no_grad():
        batches = torch.tensor([row["input_ids"] for row in rows]).split(16)
        losses = [(model(input_ids=batch, labels=batch).loss.item(), len(batch)) for batch in batches]
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


def write_card(folder: Path, record: dict) -> None:
    """The model's card, filled from its record and its configuration."""
    template = jinja2.Template(template_path("embedded_model.md").read_text(), undefined=jinja2.StrictUndefined)
    config = json.loads((folder / "config.json").read_text())
    (folder / "README.md").write_text(template.render(record, config=config) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="where the model folder goes; replaced when all is done")
    parser.add_argument("--max_steps", type=int, default=2200)
    parser.add_argument("--length", type=int, default=128, help="tokens of a prefix row's original")
    parser.add_argument("--prefix_share", type=float, default=0.35)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(args.seed)

    positions = 2 * args.length + 2  # every position is trained: the longest row is prefix, separator and original
    documents = embedded_documents()
    texts = {s: [t for n, t in documents.items() if split_of(n) == s] for s in ("train", "validation", "test")}
    tokenizer = train_tokenizer(texts["train"], positions)
    rows = {split: as_rows(text, tokenizer, 2 * args.length) for split, text in texts.items()}
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=positions, n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=args.dropout, embd_pdrop=args.dropout, attn_pdrop=0.0,  # attention dropout shuts out the fused kernel
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    print(f"{model.num_parameters():,} parameters, {sum(map(len, texts['train'])):,} training documents' rows:",
          {split: len(r) for split, r in rows.items()}, flush=True)  # fmt: skip
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch, max_steps=args.max_steps, per_device_train_batch_size=args.batch_size,
                learning_rate=args.learning_rate, lr_scheduler_type="cosine", warmup_steps=40, weight_decay=0.1,
                adam_beta2=0.98, logging_steps=50, save_strategy="no", report_to="none", use_cpu=True, seed=args.seed,
                eval_strategy="steps", eval_steps=200, remove_unused_columns=False, disable_tqdm=True,
            ),
            train_dataset=rows["train"],
            eval_dataset={
                kind: [row | {"kind": kind} for row in rows["validation"][:64]] for kind in ("plain", "prefix")
            },
            data_collator=MixedCollator(tokenizer.eos_token_id, args.length, args.prefix_share, args.seed),
        )  # fmt: skip
        trainer.train()

    record = {
        "parameters": model.num_parameters(),
        "training": vars(args) | {"output_dir": Path(args.output_dir).name},
        "python": platform.python_version(),
        "training_tokens_in_corpus": len(rows["train"]) * 2 * args.length,
        "hours": round((time.time() - started) / 3600, 3),
        "validation_nats_per_token": round(validation_loss(model, rows["validation"]), 4),
        "test_nats_per_token": round(validation_loss(model, rows["test"]), 4),
    }
    for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(model.config, dropout, 0.0)
    staging = Path(args.output_dir + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    model.half().save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    (staging / "training_record.json").write_text(json.dumps(record, indent=2) + "\n")
    write_card(staging, record)
    shutil.rmtree(args.output_dir, ignore_errors=True)
    staging.rename(args.output_dir)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

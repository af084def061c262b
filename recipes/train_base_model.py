"""
Train a GPT-2 from scratch, as a base model for texts that no pretrained model knows. The packaged one
(`tokforget/assets/base_model`) was made this way, including its tokenizer.

The data are only the training documents of `--dataset_name`. A fraction `--prefix_share` of the batches has rows
`[kept tokens] <end> [original]` with random keep masks, because a small model does not learn by itself to copy from a
prompt; the other batches are plain text. Fill-in-the-middle training mixes rearranged texts in the same way (Bavarian
et al. 2022, arXiv 2207.14255). The weights of the best evaluation are stored in float16 with a record of the run; the
packaged model also gets its card.

    python recipes/train_base_model.py --output_dir tokforget/assets/base_model

GPT-2 124M on a GPU, with the achieved share of the peak (H100 and H200: 989 TFLOP/s of dense bfloat16):

    python recipes/train_base_model.py --dataset_name <texts> --tokenizer_name_or_path <gpt2> --layers 12 --heads 12 \\
        --width 768 --positions 1024 --length 256 --batch_size 32 --learning_rate 6e-4 --peak_tflops 989 --output_dir <folder>
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
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tokforget.data.blocks import load_documents
from tokforget.hub.cards import template_path
from tokforget.masking import keep_count, random_keep_mask
from tokforget.models.loading import load_tokenizer
from tokforget.packaged import EMBEDDED
from tokforget.packing import cut_blocks, prefix_rows
from tokforget.parsing import refuse


END = "<|endoftext|>"
RECORD = "training_record.json"
_UNTIMED_STEPS = 10  # the first steps select kernels and allocate memory
_EVALUATED_ROWS = 64


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END)


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
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
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


def as_rows(texts: list[str], tokenizer: PreTrainedTokenizerBase, width: int) -> list[dict]:
    """Concatenated documents, each with an end token, in rows of equal width; a last shorter row is left out."""
    stream = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    return [{"input_ids": row} for row in cut_blocks(stream, width) if len(row) == width]


class StepTimer(TrainerCallback):
    """Measures seconds and tokens (without padding) of every step, without evaluations and data loading."""

    def __init__(self):
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self._seen = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self._began = _now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(_now() - self._began)
        self.tokens.append(state.num_input_tokens_seen - self._seen)
        self._seen = state.num_input_tokens_seen


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def training_flops_per_token(model: GPT2LMHeadModel, width: int) -> int:
    """
    FLOPs per training token: 6 N + 12 L d T, with N parameters in matrix products (the tied head once, positions not),
    L layers of width d, and rows of T tokens. Source: Chowdhery et al. 2022, arXiv 2204.02311, appendix B, which also
    counts full attention.
    """
    config = model.config
    matrices = model.num_parameters() - config.n_positions * config.n_embd
    return 6 * matrices + 12 * config.n_layer * config.n_embd * width


def pace(tokens: list[int], seconds: list[float], flops_per_token: int, peak_tflops: float | None) -> dict:
    """Tokens per second and TFLOP/s after the first steps, and the share of the peak if it was given."""
    tokens_per_second = sum(tokens[_UNTIMED_STEPS:]) / max(sum(seconds[_UNTIMED_STEPS:]), 1e-9)
    tflops = tokens_per_second * flops_per_token / 1e12
    figures = {"tokens_per_second": round(tokens_per_second), "tflops": round(tflops, 3)}
    if peak_tflops is not None:
        figures["model_flops_utilization"] = round(tflops / peak_tflops, 4)
    return figures


def validation_loss(model: GPT2LMHeadModel, rows: list[dict]) -> float:
    """Mean loss on plain text in nats per token."""
    model.eval()
    with torch.no_grad():
        batches = torch.tensor([row["input_ids"] for row in rows], device=model.device).split(16)
        losses = [(model(input_ids=batch, labels=batch).loss.item(), len(batch)) for batch in batches]
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


def write_card(folder: Path, record: dict) -> None:
    """The packaged model's card, filled from its record and its configuration."""
    template = jinja2.Template(
        template_path("embedded_model.md").read_text(encoding="utf-8"), undefined=jinja2.StrictUndefined
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "README.md").write_text(template.render(record, config=config) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="folder of the model; replaced at the end")
    parser.add_argument("--dataset_name", default=EMBEDDED, help="as for train.py: a file, a folder, a Hub id")
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--tokenizer_name_or_path", help="by default one is trained on the text")
    parser.add_argument("--vocab_size", type=int, default=4096, help="size of a newly trained vocabulary")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--positions", type=int, help="by default the length of the longest row")
    parser.add_argument("--max_steps", type=int, default=2200)
    parser.add_argument("--length", type=int, default=128, help="tokens of the original in a prefix row")
    parser.add_argument("--prefix_share", type=float, default=0.35)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup_steps", type=int, default=40)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--eval_steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--use_cpu", action="store_true", help="use the CPU even if there is a GPU")
    parser.add_argument("--peak_tflops", type=float, help="peak of the hardware, to print the achieved share")
    args = parser.parse_args()
    longest = 2 * args.length + 2  # prefix, separator and original
    args.positions = args.positions or longest  # so that every position is trained
    if args.positions < longest:
        parser.error(f"`--positions` must be at least {longest}, the longest prefix row, got {args.positions}.")
    folder = Path(args.output_dir)
    args.output_dir = str(folder)  # without a slash at its end, behind which the unfinished one would go
    if folder.exists() and not (folder / RECORD).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        parser.error(
            f"`--output_dir` {folder} holds something else than a model of this recipe, and all of it would be deleted: name "
            "another folder."
        )
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(args.seed)
    on_gpu = torch.cuda.is_available() and not args.use_cpu

    try:
        texts = load_documents(args.dataset_name, text_column=args.text_column)
        if args.tokenizer_name_or_path is None:
            tokenizer = train_tokenizer(texts["train"], args.vocab_size)
        else:
            tokenizer = load_tokenizer(args.tokenizer_name_or_path)
    except (ValueError, OSError) as error:
        refuse(str(error))
    if tokenizer.eos_token_id is None:
        refuse(
            f"The tokenizer {args.tokenizer_name_or_path!r} has no end token, which parts the documents. Take another."
        )
    tokenizer.model_max_length = args.positions
    rows = {split: as_rows(text, tokenizer, 2 * args.length) for split, text in texts.items()}
    if short := [split for split, of_split in rows.items() if not of_split]:
        refuse(f"`dataset_name` {args.dataset_name!r} has no row of {2 * args.length} tokens in {', '.join(short)}: pass more "
               "text, or a smaller `--length`.")  # fmt: skip
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=args.positions, n_layer=args.layers, n_head=args.heads, n_embd=args.width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=args.dropout, embd_pdrop=args.dropout, attn_pdrop=0.0,  # attention dropout shuts out the fused kernel
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    print(f"{model.num_parameters():,} parameters, {len(texts['train']):,} training documents, rows:",
          {split: len(r) for split, r in rows.items()}, flush=True)  # fmt: skip
    started, timer = time.time(), StepTimer()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch, max_steps=args.max_steps, per_device_train_batch_size=args.batch_size,
                learning_rate=args.learning_rate, lr_scheduler_type="cosine", warmup_steps=args.warmup_steps,
                weight_decay=0.1, adam_beta2=0.98, logging_steps=50, report_to="none", use_cpu=args.use_cpu,
                bf16=on_gpu and torch.cuda.is_bf16_supported(), seed=args.seed, remove_unused_columns=False,
                disable_tqdm=True, eval_strategy="steps", eval_steps=args.eval_steps, save_strategy="steps",
                save_steps=args.eval_steps, save_total_limit=1, save_only_model=True, load_best_model_at_end=True,
                metric_for_best_model="eval_plain_loss", greater_is_better=False,
                include_num_input_tokens_seen="non_padding",
            ),
            train_dataset=rows["train"],
            eval_dataset={
                kind: [row | {"kind": kind} for row in rows["validation"][:_EVALUATED_ROWS]]
                for kind in ("plain", "prefix")
            },
            data_collator=MixedCollator(tokenizer.eos_token_id, args.length, args.prefix_share, args.seed),
            callbacks=[timer],
        )  # fmt: skip
        trainer.train()

    record = {
        "parameters": model.num_parameters(),
        "training": vars(args) | {"output_dir": Path(args.output_dir).name},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "training_tokens_in_corpus": len(rows["train"]) * 2 * args.length,
        "hours": round((time.time() - started) / 3600, 3),
        "best_step": trainer.state.best_global_step,
        "validation_nats_per_token": round(validation_loss(model, rows["validation"]), 4),
        "test_nats_per_token": round(validation_loss(model, rows["test"]), 4),
    } | pace(timer.tokens, timer.seconds, training_flops_per_token(model, 2 * args.length), args.peak_tflops)
    for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(model.config, dropout, 0.0)
    staging = Path(args.output_dir + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    model.half().save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    (staging / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if args.dataset_name == EMBEDDED:
        write_card(staging, record)
    shutil.rmtree(args.output_dir, ignore_errors=True)
    staging.rename(args.output_dir)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

"""
Compress one held-out text with a trained model, restore it, and show both: what was kept, what came back.

    python recipes/show_sample.py --model outputs/quick_test --rate 0.5
    python recipes/show_sample.py --model outputs/quick_test --text "Any text of your own."
"""

import argparse
import json
import os
import sys
from pathlib import Path


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from rich.console import Console
from rich.text import Text
from transformers import AutoTokenizer

from tokforget.data.blocks import load_blocks
from tokforget.masking import check_rate
from tokforget.models.forget_model import ForgetModel


def marked(console: Console, pieces: list[str], styles: list[str], plain: list[str]) -> Text:
    """Pieces in their styles; where colours do not show, in the brackets of `plain` instead (`""` for none)."""
    text = Text()
    for piece, style, brackets in zip(pieces, styles, plain):
        if console.is_terminal or not brackets:
            text.append(piece, style=style)
        else:
            text.append(f"{brackets[0]}{piece}{brackets[1]}")
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model folder that recipes/train.py saved")
    parser.add_argument("--rate", type=float, default=0.5, help="fraction of tokens kept, in (0, 1]")
    parser.add_argument("--text", help="text to compress; by default a block of the run's own test split")
    parser.add_argument("--seed", type=int, default=1, help="which test block")
    args = parser.parse_args(argv)
    try:
        check_rate(args.rate)
        model = ForgetModel.from_pretrained(args.model)
    except ValueError as error:
        print(f"show_sample.py: error: {error}", file=sys.stderr)
        return 2
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    run = json.loads(Path(args.model, "training_config.json").read_text(encoding="utf-8"))
    if args.text:
        ids = tokenizer(args.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if len(ids) > run["max_length"]:
            limit = run["max_length"]
            print(f"show_sample.py: the text has {len(ids)} tokens; shown are the first {limit}.", file=sys.stderr)
            ids = ids[:limit]
    else:
        test = load_blocks(run["dataset_name"], tokenizer, run["max_length"], run["min_length"],
                           run["dataset_config"], run["text_column"])["test"]  # fmt: skip
        ids = test.shuffle(seed=args.seed, keep_in_memory=True)[0]["input_ids"]
    input_ids = torch.tensor([ids])
    valid = torch.ones_like(input_ids, dtype=torch.bool)
    keep_mask = model.keep_mask(input_ids, valid.long(), torch.tensor([args.rate]))
    restoration = model.reconstructor.restore(input_ids.masked_fill(~keep_mask, 0), keep_mask, valid)

    kept, restored = keep_mask[0].tolist(), restoration.input_ids[0].tolist()
    pieces, written = ([tokenizer.decode([i]) for i in tokens] for tokens in (ids, restored))
    right = [a == b for a, b in zip(ids, restored)]
    dropped = len(ids) - sum(kept)
    exact = sum(r and not k for r, k in zip(right, kept))
    console = Console()
    # Titles as `Text`: brackets in a plain string would be taken for markup.
    console.rule(Text(f"Original, {len(ids)} tokens: kept bold, dropped struck through or [so]"))
    console.print(
        marked(console, pieces, ["bold" if k else "dim strike" for k in kept], ["" if k else "[]" for k in kept])
    )
    console.rule(Text(f"Compressed, {sum(kept)} tokens: what another model would read"))
    console.print(Text(tokenizer.decode([i for i, k in zip(ids, kept) if k])))
    console.rule(Text(f"Restored, a guess: {exact} of {dropped} dropped exact, green or <so>; wrong red or {{so}}"))
    console.print(
        marked(
            console,
            written,
            ["bold" if k else "green" if r else "red" for k, r in zip(kept, right)],
            ["" if k else "<>" if r else "{}" for k, r in zip(kept, right)],
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""
Compress one held-out text with a trained model, restore it, and show the kept and the restored tokens.

    python recipes/show_sample.py --model outputs/quick_test --rate 0.5
    python recipes/show_sample.py --model outputs/quick_test --text "Any text of your own."
    python recipes/show_sample.py        the packaged compressor on a mail with a question, nothing restored

A model without a reconstructor restores nothing. If the base model is missing, the script says how to get it.
"""

import argparse
import json
import os
import sys
from pathlib import Path


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from rich.console import Console
from rich.text import Text

from tokforget import Compressor
from tokforget.data.blocks import load_blocks
from tokforget.files import TRAINING
from tokforget.models.loading import load_tokenizer
from tokforget.rates import check_rate
from tokforget.text_units import split_sentences


# A typical mail; the answer to the question is in one of several similar places.
MAIL = """From: Marta Lindqvist, Facilities
To: All staff, Building 4
Subject: Lift modernisation and the move of the archive

Dear colleagues,

as most of you will have heard by now, the modernisation of the two passenger lifts in Building 4 has finally been approved. The contractor, Halvorsen Elevators, will begin on Monday 9 March and expects to need about seven weeks for the work. During this time at least one lift will remain in service on working days, but please do not use the goods lift for passengers: it is not certified for this, and the insurance does not cover it.

The archive on the third floor cannot stay where it is while the shafts are open, because the dust would damage the older files. It will therefore be moved to room B12 in the basement of Building 2 between 2 and 6 March. Boxes that are not labelled by Friday 27 February will not be moved. If you need a file during the week of the move, ask Jonas Weber (extension 4417) no later than noon of the day before.

We are sorry for the noise and thank you for your patience.

Marta"""
QUESTION = "Who gets me a file while the archive is being moved?"


def marked(console: Console, pieces: list[str], styles: list[str], plain: list[str]) -> Text:
    """Pieces in their styles; without colours in the brackets of `plain` instead (`""` for none)."""
    text = Text()
    for piece, style, brackets in zip(pieces, styles, plain):
        if console.is_terminal or not brackets:
            text.append(piece, style=style)
        else:
            text.append(f"{brackets[0]}{piece}{brackets[1]}")
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="a model folder that recipes/train.py saved; by default the packaged compressor"
    )
    parser.add_argument("--rate", type=float, default=0.5, help="fraction of tokens kept, in (0, 1]")
    parser.add_argument("--text", help="text to compress; by default a block of the run's own test split, or a mail")
    parser.add_argument("--question", help="what will be asked, for a model that takes it; of the mail by default")
    parser.add_argument(
        "--base-model", help="folder or id of the base model that restores; by default the model's own"
    )
    parser.add_argument("--seed", type=int, default=1, help="which test block")
    args = parser.parse_args(argv)
    try:
        check_rate(args.rate)
        compressor = Compressor.from_pretrained(args.model, base_model=args.base_model)
        question = args.question
        if args.model is None and args.text is None:
            text, question = MAIL, question or QUESTION
        else:
            text = args.text or sample(args.model, args.seed)
        result = compressor.compress(text, rate=args.rate, question=question)
    except (ValueError, OSError) as error:
        print(f"show_sample.py: error: {error}", file=sys.stderr)
        return 2
    encoding = compressor.tokenizer.encode(text, add_special_tokens=False)
    kept = result.keep_mask.tolist()
    console = Console()
    # Titles are `Text`, because brackets in a plain string are markup.
    console.rule(Text(f"Original, {result.original_tokens} tokens: kept bold, dropped struck through or [so]"))
    console.print(
        marked(
            console,
            [text[start:end] for start, end in encoding.offsets],
            ["bold" if k else "dim strike" for k in kept],
            ["" if k else "[]" for k in kept],
        )
    )
    # The output string of `compress`, re-encoded; spaces separate words that would fuse.
    if question:
        console.print(Text(f"Question: {question}", style="italic"))
    console.rule(Text(f"Compressed, {result.compressed_tokens} tokens: what another model would read"))
    console.print(Text(result.text))
    try:
        restored = compressor.restore(result, progress=False).input_ids.tolist()
    except ValueError as error:
        print(f"show_sample.py: nothing is restored: {error}", file=sys.stderr)
        return 0
    right = [a == b for a, b in zip(encoding.ids, restored)]
    exact = sum(r and not k for r, k in zip(right, kept))
    dropped = len(kept) - sum(kept)
    console.rule(Text(f"Restored, a guess: {exact} of {dropped} dropped exact, green or <so>; wrong red or {{so}}"))
    console.print(
        marked(
            console,
            [compressor.tokenizer.decode([i], skip_special_tokens=False) for i in restored],
            ["bold" if k else "green" if r else "red" for k, r in zip(kept, right)],
            ["" if k else "<>" if r else "{}" for k, r in zip(kept, right)],
        )
    )
    return 0


def sample(folder: str, seed: int) -> str:
    """Whole sentences of a block of the run's test split. Raises `ValueError` if the run does not record its texts."""
    record = Path(folder, TRAINING)
    run = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if "dataset_name" not in run:
        raise ValueError(f"{folder} does not record what it was trained on: pass a text by `--text`.")
    tokenizer = load_tokenizer(folder)
    test = load_blocks(run["dataset_name"], tokenizer, run["max_length"], run["min_length"],
                       run["dataset_config"], run["text_column"])["test"]  # fmt: skip
    return whole_sentences(tokenizer.decode(test.shuffle(seed=seed, keep_in_memory=True)[0]["input_ids"]))


def whole_sentences(text: str) -> str:
    """A block without the cut sentences at its ends; the whole block if no sentence is complete."""
    sentences = [text[start:end] for start, end in split_sentences(text)]
    if sentences and sentences[0].lstrip()[:1].islower():
        sentences = sentences[1:]
    if sentences and sentences[-1].rstrip()[-1:] not in tuple(".!?…:)\"'”’"):
        sentences = sentences[:-1]
    return "".join(sentences).strip() or text


if __name__ == "__main__":
    sys.exit(main())

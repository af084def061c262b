"""
Prepare data once: read a source, divide it by document, remove duplicates across splits, tokenise, cut, write.

    python recipes/prepare_data.py --config recipes/data_prep.yaml

Every key of the run file can be overridden: `--dataset_name my_texts.jsonl --text_column body`. `--help` lists them all.
Use the result with `recipes/train.py --data_path <output_dir>` or `datasets.load_from_disk`.
"""

import logging
import os
from pathlib import Path


# tokforget sends no telemetry, not even that of the libraries below.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tokforget.recipe_keys import refuse_unknown_keys


if __name__ == "__main__":
    refuse_unknown_keys(__file__)  # before the slow imports

from tokforget.data.arguments import PreparationArguments
from tokforget.parsing import parse_arguments, refuse


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((PreparationArguments,), argv, __doc__)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)

    from transformers import AutoTokenizer

    from tokforget.data.preparation import prepare, print_report, refuse_existing
    from tokforget.models.loading import tokenizer_source

    try:
        refuse_existing(Path(args.output_dir))
    except OSError as error:
        refuse(str(error))
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_source(args.tokenizer))
    except (ValueError, OSError) as error:
        refuse(f"`tokenizer` {args.tokenizer!r} could not be loaded: {error}")
    try:
        preparation = prepare(args, tokenizer)
    except (ValueError, OSError) as error:
        refuse(str(error))
    print_report(preparation)
    print(f"Written to {args.output_dir}")


if __name__ == "__main__":
    main()

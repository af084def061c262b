"""
Measure how well a frozen language model works with compressed text: every compressor, rate and task, in one table.

    python recipes/reader_benchmark.py --config recipes/reader_benchmark.yaml --questions xquad.en.json --corpus my_corpus

Every key of the run file can be overridden: `--rates 0.5 --compressors random_words idf_words`. `--help` lists them
all. An interrupted run resumes in its folder.
"""

import logging
import os


# tokforget sends no telemetry, not even that of the libraries below.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tokforget.recipe_keys import refuse_unknown_keys


if __name__ == "__main__":
    refuse_unknown_keys(__file__)  # before the slow imports

from tokforget.parsing import parse_arguments, refuse
from tokforget.readers.arguments import ReaderArguments


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((ReaderArguments,), argv, __doc__)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)

    from tokforget.readers.benchmark import run_reader_benchmark

    try:
        run_reader_benchmark(args)
    except (ValueError, OSError) as error:
        refuse(str(error))


if __name__ == "__main__":
    main()

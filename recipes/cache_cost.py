"""
Measure compression of growing chats: changes of the previous prompt, cost with a provider's cache, and what a reader
finds.

    python recipes/cache_cost.py --corpus my_texts
    python recipes/cache_cost.py --corpus my_texts --reader_name_or_path outputs/smollm2 --rates 0.5

Compares the compressor with and without `stable` with hand-written rules, all at the same mean rate. Writes
transcripts.json and report.md, and prints the table.
"""

import os
import warnings


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tokforget.recipe_keys import refuse_unknown_keys


if __name__ == "__main__":
    refuse_unknown_keys(__file__)  # before the slow imports

from tokforget.evaluation.transcript_arguments import TranscriptArguments
from tokforget.parsing import parse_arguments
from tokforget.training.recipe_steps import refusals_in_one_line


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((TranscriptArguments,), argv, __doc__)

    from tokforget.evaluation.transcripts import report, run_transcripts

    # The first prompts of a chat are mostly verbatim, so that a low rate would give a warning for each of them.
    warnings.filterwarnings("ignore", message="Of these messages", category=UserWarning)
    with refusals_in_one_line():
        print(report(run_transcripts(args), args))


if __name__ == "__main__":
    main()

"""
Compare trained models with every baseline at equal budgets, measure a reader's results and the speed, write a report.

    python recipes/evaluate.py --config recipes/evaluation_quick.yaml --model_path outputs/quick_test

Every key of the run file can be overridden: `--rates 0.5 --scorers random frequency`. `--help` lists them all.
"""

import logging
import os


# tokforget sends no telemetry, not even that of the libraries below.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tokforget.recipe_keys import refuse_unknown_keys


if __name__ == "__main__":
    refuse_unknown_keys(__file__)  # before the slow imports

from tokforget.evaluation.arguments import EvaluationArguments
from tokforget.launch import check_launcher
from tokforget.parsing import parse_arguments, refuse


def main(argv: list[str] | None = None) -> None:
    check_launcher()
    (args,) = parse_arguments((EvaluationArguments,), argv, __doc__)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)

    from tokforget.evaluation.run import run_evaluation

    try:
        run_evaluation(args)
    except (ValueError, OSError) as error:
        refuse(str(error))


if __name__ == "__main__":
    main()

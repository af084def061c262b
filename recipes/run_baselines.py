"""
Compare only the baselines, without a trained policy, under one reconstructor.

    python recipes/run_baselines.py --reconstructor_path outputs/reconstructor --output_dir outputs/baselines

Takes the keys of recipes/evaluate.py except `model_path`, and writes the same files. `--help` lists them all.
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
    if args.model_path:
        refuse("`model_path` belongs to recipes/evaluate.py; here the baselines run alone.")
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)

    from tokforget.evaluation.run import run_evaluation

    try:
        run_evaluation(args)
    except (ValueError, OSError) as error:
        refuse(str(error))


if __name__ == "__main__":
    main()

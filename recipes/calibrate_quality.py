"""
Calibrate a model's quality floor: how much of a text must be kept so that a reader retains a given share of it.

    python recipes/calibrate_quality.py --model_path FOLDER --reader_name_or_path outputs/smollm2 --corpus FOLDER

Writes calibration.json to the model's folder, and prints how often test texts fall below each quality, by kind.
"""

import os


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tokforget.recipe_keys import refuse_unknown_keys


if __name__ == "__main__":
    refuse_unknown_keys(__file__)  # before the slow imports

from tokforget.parsing import parse_arguments
from tokforget.readers.calibration_arguments import CalibrationArguments
from tokforget.training.recipe_steps import refusals_in_one_line


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((CalibrationArguments,), argv, __doc__)

    from tokforget.readers.calibration import calibrate_model

    with refusals_in_one_line():
        calibrate_model(args)


if __name__ == "__main__":
    main()

"""
Calibrate a model's quality floor: how much of a text has to be kept for a reader to retain what is promised.

    python recipes/calibrate_quality.py --model_path FOLDER --reader_name_or_path outputs/smollm2 --corpus FOLDER

Writes calibration.json into the model's folder, and prints how often each promise is broken on test sources, by kind.
"""

import os


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tokforget.recipe_keys import refuse_unknown_keys


if __name__ == "__main__":
    refuse_unknown_keys(__file__)  # before what takes seconds to import

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

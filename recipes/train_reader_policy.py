"""
Train a compressor on the losses of a frozen reader; it keeps or drops whole words, with or without a question.

    python recipes/train_reader_policy.py --config recipes/reader_policy.yaml --reader_name_or_path outputs/smollm2 --corpus FOLDER

Every key of the run file can be overridden. `--auto_resume true` resumes a stopped run.
"""

import os


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tokforget.recipe_keys import refuse_unknown_keys


if __name__ == "__main__":
    refuse_unknown_keys(__file__)  # before the slow imports

from tokforget.training.reader_arguments import ReaderPolicyArguments, ReaderPolicyConfig
from tokforget.training.recipe_steps import begin, refusals_in_one_line


def main(argv: list[str] | None = None) -> None:
    run, args, checkpoint, console = begin((ReaderPolicyArguments, ReaderPolicyConfig), argv, __doc__)

    from tokforget.training.faults import faults_in_one_line
    from tokforget.training.reader_run import train_reader_policy

    with refusals_in_one_line(), faults_in_one_line():
        trainer = train_reader_policy(run, args, checkpoint)
    trainer.save_state()
    console.print(f"Model: {args.output_dir}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()

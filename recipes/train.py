"""
Train policy and reconstructor in one loop, compare the policy with the baselines, save the model folder.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/train.py --config recipes/quick_test.yaml

Every key of the run file can be overridden: `--max_steps 50 --reward_funcs simple`. `--help` lists them all.
"""

import os
import sys


# tokforget sends no telemetry, not even that of the libraries below.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
sys.path.append(os.getcwd())  # users' rewards are in the working directory, not next to this script

from tokforget.recipe_keys import refuse_unknown_keys


if __name__ == "__main__":
    refuse_unknown_keys(__file__)  # before the slow imports

from tokforget.data.arguments import DataArguments
from tokforget.models.arguments import ModelArguments
from tokforget.parsing import as_record, refuse
from tokforget.training.config import ForgetConfig
from tokforget.training.recipe_steps import begin, finish, refusals_in_one_line


def main(argv: list[str] | None = None) -> None:
    data_args, model_args, args, checkpoint, console = begin(
        (DataArguments, ModelArguments, ForgetConfig), argv, __doc__
    )
    if model_args.window >= data_args.max_length:
        refuse(f"`window` ({model_args.window}) must be below `max_length` ({data_args.max_length}): a text is decided in "
               "at least two windows.")  # fmt: skip

    from tokforget.data.blocks import draw_blocks
    from tokforget.evaluation.comparison import print_table
    from tokforget.models.loading import load_tokenizer
    from tokforget.models.starting_models import load_by_arguments
    from tokforget.training.closing_comparison import compare_with_baselines
    from tokforget.training.faults import faults_in_one_line
    from tokforget.training.forget_trainer import ForgetTrainer

    with refusals_in_one_line():
        tokenizer = load_tokenizer(model_args.reconstructor_name_or_path, model_args.reconstructor_revision)
        train, validation, test, data = draw_blocks(data_args, tokenizer)
        model = load_by_arguments(model_args, tokenizer, data_args.max_length)
        trainer = ForgetTrainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            run_record=as_record(data_args, model_args, args) | {"data": data},
        )
    sizes = trainer.run_record["trainable_parameters"]
    console.print(
        f"Blocks of up to {data_args.max_length} tokens: {len(train)} train, {len(validation)} validation, {len(test)} test. "
        f"Trainable parameters: policy {sizes['policy']:,}, adapter {sizes['adapter']:,}."
    )
    usual = 0 if model.policy.is_trained else args.default_warm_start_steps
    fit = usual if args.warm_start_steps is None else args.warm_start_steps
    if checkpoint is None and (args.sampled_texts or fit):
        console.print(
            f"Before the first step: {args.sampled_texts} texts sampled, a warm start of {fit} steps. For a first look "
            "`--sampled_texts 0 --warm_start_steps 0`."
        )
    with faults_in_one_line():
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model(args.output_dir, _internal_call=True)  # with `push_to_hub` sent by `finish`
    if len(test):
        facts = {
            "dataset": data_args.dataset_name,
            "layout": model_args.layout,
            "data_fingerprint": data["fingerprint"],
        }
        print_table(compare_with_baselines(trainer, train["input_ids"], test, facts), console)
    finish(trainer, console)


if __name__ == "__main__":
    main()

"""
Train the reconstructor alone on random masks, before the joint loop: a LoRA adapter or a whole model, either layout.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/train_reconstructor.py --config recipes/reconstructor_cpu.yaml

Every key of the run file can be overridden: `--max_steps 50 --layout infill`. `--help` lists them all. Continue with
`recipes/train.py --reconstructor_path <output_dir>`.
"""

import os


# tokforget sends no telemetry, not even that of the libraries below.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tokforget.recipe_keys import refuse_unknown_keys


if __name__ == "__main__":
    refuse_unknown_keys(__file__)  # before the slow imports

from tokforget.data.arguments import DataArguments
from tokforget.models.arguments import ReconstructorArguments
from tokforget.parsing import as_record
from tokforget.training.config import ReconstructorConfig
from tokforget.training.recipe_steps import begin, finish, refusals_in_one_line


def main(argv: list[str] | None = None) -> None:
    data_args, model_args, args, checkpoint, console = begin(
        (DataArguments, ReconstructorArguments, ReconstructorConfig), argv, __doc__
    )

    from tokforget.data.blocks import draw_blocks
    from tokforget.models.loading import load_tokenizer
    from tokforget.models.starting_models import load_reconstructor_by_arguments
    from tokforget.training.closing_comparison import measure_stage, print_stages, write_results
    from tokforget.training.faults import faults_in_one_line
    from tokforget.training.reconstructor_trainer import ReconstructorTrainer

    with refusals_in_one_line():
        tokenizer = load_tokenizer(model_args.reconstructor_name_or_path, model_args.reconstructor_revision)
        reconstructor = load_reconstructor_by_arguments(model_args, tokenizer, data_args.max_length, checkpoint)
        train, validation, test, data = draw_blocks(data_args, tokenizer)
        trainer = ReconstructorTrainer(
            model=reconstructor,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            run_record=as_record(data_args, model_args, args) | {"data": data},
        )
    console.print(
        f"Blocks of up to {data_args.max_length} tokens: {len(train)} train, {len(validation)} validation, {len(test)} test. "
        f"Trainable parameters: {trainer.run_record['trainable_parameters']:,} ({'adapter' if model_args.use_peft else 'all weights'})."
    )
    split, held_out = ("test", test) if len(test) else ("validation", validation)
    rows = measure_stage(trainer, held_out, "before")
    with faults_in_one_line():
        trainer.train(resume_from_checkpoint=checkpoint)
        rows += measure_stage(trainer, held_out, "after")
        trainer.save_model(args.output_dir, _internal_call=True)  # with `push_to_hub` sent by `finish`
    facts = {"dataset": data_args.dataset_name, "layout": model_args.layout, "data_fingerprint": data["fingerprint"]}
    write_results(trainer, {"reconstructor": rows, "texts": len(held_out), "split": split, **facts})
    print_stages(rows, console)
    console.print(f"Saved. Continue with: recipes/train.py --reconstructor_path {args.output_dir} --layout {model_args.layout}",
                  soft_wrap=True, highlight=False)  # fmt: skip
    finish(trainer, console)


if __name__ == "__main__":
    main()

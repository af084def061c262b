"""
Train the reconstructor alone on random masks, before the joint loop: a LoRA adapter or a whole model, either layout.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/train_reconstructor.py --config recipes/reconstructor_cpu.yaml

Every key of the run file can be overridden: `--max_steps 50 --layout infill`. `--help` lists them all. Go on with
`recipes/train.py --reconstructor_path <output_dir>`.
"""

import logging
import os
from pathlib import Path


# tokforget sends nothing on its own, its host's ping included.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tokforget.data.arguments import DataArguments
from tokforget.launch import check_launcher, check_run
from tokforget.models.arguments import ReconstructorArguments
from tokforget.parsing import as_record, parse_arguments, refuse
from tokforget.training.checkpoints import check_output_dir, checkpoint_to_resume
from tokforget.training.config import ReconstructorConfig


def load_model(model_args: ReconstructorArguments, tokenizer, max_length: int, checkpoint: str | None):
    from tokforget.models.reconstructor_folder import check_checkpoint, load_trainable

    reconstructor = load_trainable(
        model_args.reconstructor_name_or_path,
        tokenizer,
        model_args.layout,
        revision=model_args.reconstructor_revision,
        lora_rank=model_args.lora_rank,
        lora_alpha=model_args.lora_alpha,
        use_peft=model_args.use_peft,
    )
    reconstructor.check_max_length(max_length)
    if checkpoint is not None:
        check_checkpoint(reconstructor, checkpoint)
    return reconstructor


def resolved(model_args: ReconstructorArguments, reconstructor) -> dict:
    """What the arguments alone do not say: sizes, the base model of an adapter folder, and that adapter's own shape."""
    sizes = [p.numel() for p in reconstructor.parameters() if p.requires_grad]
    record = {"trainable_parameters": sum(sizes), "base_model_name_or_path": model_args.reconstructor_name_or_path}
    if model_args.use_peft:
        adapter = reconstructor.model.peft_config["default"]
        record |= {"base_model_name_or_path": adapter.base_model_name_or_path,
                   "lora_rank": adapter.r, "lora_alpha": adapter.lora_alpha}  # fmt: skip
    return record


def measured(trainer, texts, stage: str) -> list[dict]:
    """One row per rate on the held-out texts."""
    metrics = trainer.predict(texts, metric_key_prefix="at").metrics
    names = ("bits_lost", "exact_restored", "compression_rate")
    return [
        {"stage": stage, "rate": rate, **{name: metrics[f"at_{name}_{rate:g}"] for name in names}, "texts": len(texts)}
        for rate in trainer.args.eval_rates
    ]


def print_table(rows: list[dict], console) -> None:
    from rich.table import Table

    table = Table(
        title=f"{rows[0]['texts']} held-out texts, masks half random, half noisy frequency",
        caption="bits: lost per original token, lower is better; exact: dropped tokens restored, free-running",
    )
    table.add_column("training")
    for row in rows[: len(rows) // 2]:
        table.add_column(f"bits {row['rate']:g}", justify="right")
        table.add_column("exact", justify="right")
    for stage in ("before", "after"):
        cells = [(f"{r['bits_lost']:.3f}", f"{100 * r['exact_restored']:.1f} %") for r in rows if r["stage"] == stage]
        table.add_row(stage, *(word for pair in cells for word in pair))
    console.print(table)


def main(argv: list[str] | None = None) -> None:
    check_launcher()
    data_args, model_args, args = parse_arguments(
        (DataArguments, ReconstructorArguments, ReconstructorConfig), argv, __doc__
    )
    check_run(args)
    check_output_dir(args)
    checkpoint = checkpoint_to_resume(args)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)

    import transformers
    from rich.console import Console

    from tokforget.data.blocks import draw_blocks
    from tokforget.files import write_json
    from tokforget.hub.client import HubError
    from tokforget.models.loading import load_tokenizer
    from tokforget.models.sharded_weights import load_whole
    from tokforget.training.faults import faults_in_one_line
    from tokforget.training.reconstructor_trainer import ReconstructorTrainer

    console = Console(quiet=args.process_index > 0)
    transformers.set_seed(args.seed)
    load_whole(args)
    try:
        tokenizer = load_tokenizer(model_args.reconstructor_name_or_path, model_args.reconstructor_revision)
        reconstructor = load_model(model_args, tokenizer, data_args.max_length, checkpoint)
        train, validation, test, data = draw_blocks(data_args, tokenizer)
    except (ValueError, OSError) as error:
        refuse(str(error))
    record = as_record(data_args, model_args, args) | resolved(model_args, reconstructor) | {"data": data}
    console.print(
        f"Blocks of up to {data_args.max_length} tokens: {len(train)} train, {len(validation)} validation, {len(test)} test. "
        f"Trainable parameters: {record['trainable_parameters']:,} ({'adapter' if model_args.use_peft else 'all weights'})."
    )

    try:
        trainer = ReconstructorTrainer(
            model=reconstructor,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            run_record=record,
        )
    except HubError as error:  # with `push_to_hub` the repository is made now
        refuse(str(error))
    split, held_out = ("test", test) if len(test) else ("validation", validation)
    rows = measured(trainer, held_out, "before")
    with faults_in_one_line():
        trainer.train(resume_from_checkpoint=checkpoint)
        rows += measured(trainer, held_out, "after")
        trainer.save_model(
            args.output_dir, _internal_call=True
        )  # with `push_to_hub` sent below, with its measurements
    if trainer.is_world_process_zero():
        results = {
            "reconstructor": rows, "texts": len(held_out), "split": split, "data_fingerprint": data["fingerprint"],
            "dataset": data_args.dataset_name, "layout": model_args.layout, "seed": args.seed,
        }  # fmt: skip
        write_json(Path(args.output_dir, "eval_results.json"), results)
        trainer.create_model_card()
        print_table(rows, console)
        console.print(f"Saved. Go on with: recipes/train.py --reconstructor_path {args.output_dir} --layout {model_args.layout}",
                      soft_wrap=True, highlight=False)  # fmt: skip
    trainer.save_state()  # it says that the run has finished; a push that fails can be made up for by recipes/push_to_hub.py
    if args.push_to_hub:
        try:
            pushed = trainer.push_to_hub()
        except HubError as error:
            refuse(str(error))
        if pushed is not None:
            console.print(f"Pushed: {pushed.url}", soft_wrap=True, highlight=False)
    trainer.end()


if __name__ == "__main__":
    main()

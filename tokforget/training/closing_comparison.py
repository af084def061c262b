"""What a recipe measures when its training is through: a policy beside the baselines, a reconstructor before and after."""

from pathlib import Path

from torch.utils.data import DataLoader

from tokforget.evaluation.baselines import CLOSING_BASELINES, ScorerContext, baselines
from tokforget.evaluation.comparison import compare
from tokforget.evaluation.scorers import Policy
from tokforget.files import write_json
from tokforget.hub.cards import RESULTS
from tokforget.training.base_trainer import BaseForgetTrainer
from tokforget.training.forget_trainer import ForgetTrainer


def compare_with_baselines(trainer: ForgetTrainer, training_texts, test, facts: dict) -> list[dict]:
    """
    The policy and every baseline on the test blocks, shared out over the processes.

    Args:
        training_texts (`list[list[int]]`): What the baselines count.
        test (`datasets.Dataset`): Column `input_ids`.
        facts (`dict`): What `eval_results.json` says beside the rows.

    Returns:
        `list[dict]`: Rows of scorers and rates, also in `eval_results.json` and on the card.
    """
    args, model = trainer.args, trainer.model
    loader = DataLoader(test, batch_size=args.per_device_eval_batch_size, collate_fn=trainer.data_collator)
    batches = [(b["input_ids"].to(args.device), b["attention_mask"].to(args.device).bool()) for b in loader]
    with trainer.whole_weights():
        context = ScorerContext(model.reconstructor, trainer.processing_class, training_texts, seeds=[args.seed])
        scorers = [Policy(model), *baselines(CLOSING_BASELINES, context)]
        rows = compare(scorers, model.reconstructor, batches, args.eval_rates, args.seed)
    write_results(trainer, {"scorers": rows, **facts})
    return rows


def measure_stage(trainer: BaseForgetTrainer, texts, stage: str) -> list[dict]:
    """One row per rate on held-out texts, of the weights as they are; `stage` is `"before"` or `"after"` training."""
    metrics = trainer.predict(texts, metric_key_prefix="at").metrics
    names = ("bits_lost", "exact_restored", "compression_rate")
    return [
        {"stage": stage, "rate": rate, **{name: metrics[f"at_{name}_{rate:g}"] for name in names}, "texts": len(texts)}
        for rate in trainer.args.eval_rates
    ]


def print_stages(rows: list[dict], console) -> None:
    """The rows of [`measure_stage`] as a table, rates side by side."""
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


def write_results(trainer: BaseForgetTrainer, results: dict) -> None:
    """`eval_results.json` of the run's folder, and the card that shows it."""
    if trainer.is_world_process_zero():
        write_json(Path(trainer.args.output_dir, RESULTS), results | {"seed": trainer.args.seed})
        trainer.create_model_card()

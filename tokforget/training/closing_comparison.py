"""
The measurements of a recipe after its training: a policy against the baselines, a reconstructor before and after.
"""

from pathlib import Path

from torch.utils.data import DataLoader

from tokforget.evaluation.baselines import CLOSING_BASELINES, ScorerContext, baselines
from tokforget.evaluation.comparison import compare
from tokforget.evaluation.scorers import Policy
from tokforget.files import RESULTS, write_json
from tokforget.training.base_trainer import BaseForgetTrainer
from tokforget.training.forget_trainer import ForgetTrainer


def compare_with_baselines(trainer: ForgetTrainer, training_texts, test, facts: dict) -> list[dict]:
    """
    Compare the policy and the baselines on the test blocks; the processes divide the batches among them.

    Args:
        trainer ([`ForgetTrainer`]): The trained model and its arguments.
        training_texts (`list[list[int]]`): Token ids from which the baselines take their counts.
        test (`datasets.Dataset`): Test blocks, column `input_ids`.
        facts (`dict`): Further entries of `eval_results.json`.

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
    """Measure the current weights on held-out texts: one row per rate. `stage` is `"before"` or `"after"` training."""
    metrics = trainer.predict(texts, metric_key_prefix="at").metrics
    names = ("bits_lost", "exact_restored", "compression_rate")
    return [
        {"stage": stage, "rate": rate, **{name: metrics[f"at_{name}_{rate:g}"] for name in names}, "texts": len(texts)}
        for rate in trainer.args.eval_rates
    ]


def print_stages(rows: list[dict], console) -> None:
    """Print the rows of [`measure_stage`] as a table with one column per rate."""
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
    """Write `eval_results.json` in the run's folder, and the card with these results."""
    if trainer.is_world_process_zero():
        write_json(Path(trainer.args.output_dir, RESULTS), results | {"seed": trainer.args.seed})
        trainer.create_model_card()

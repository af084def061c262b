"""
Train policy and reconstructor in one loop, compare the policy with the baselines, save the model folder.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/train.py --config recipes/quick_test.yaml

Every key of the run file can be overridden: `--max_steps 50 --reward_funcs simple`. `--help` lists them all.
"""

import logging
import os
import sys
from pathlib import Path


# tokforget sends nothing on its own, its host's ping included.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tokforget.config import DataArguments, ForgetConfig, ModelArguments, as_record, parse_arguments


def main(argv: list[str] | None = None) -> None:
    data_args, model_args, args = parse_arguments((DataArguments, ModelArguments, ForgetConfig), argv, __doc__)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)

    import transformers
    from rich.console import Console
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    from tokforget import evaluation
    from tokforget.baselines import Policy, baselines
    from tokforget.data import load_blocks
    from tokforget.modeling import ForgetModel
    from tokforget.reconstructor import tokenizer_source
    from tokforget.trainer import ForgetTrainer

    console = Console()
    transformers.set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(
        tokenizer_source(model_args.reconstructor_name_or_path), revision=model_args.reconstructor_revision
    )
    blocks = load_blocks(
        data_args.dataset_name, tokenizer, data_args.max_length, data_args.min_length,
        data_args.dataset_config, data_args.text_column,
    ).shuffle(seed=args.seed)  # fmt: skip
    train = blocks["train"].select(range(min(len(blocks["train"]), data_args.max_train_texts or sys.maxsize)))
    validation = blocks["validation"].select(range(min(len(blocks["validation"]), data_args.max_eval_texts)))
    test = blocks["test"].select(range(min(len(blocks["test"]), data_args.max_test_texts)))
    console.print(f"Blocks of up to {data_args.max_length} tokens: {len(train)} train, {len(validation)} validation, "
                  f"{len(test)} test")  # fmt: skip

    model = ForgetModel.from_base(
        model_args.reconstructor_name_or_path,
        tokenizer,
        revision=model_args.reconstructor_revision,
        lora_rank=model_args.lora_rank,
        lora_alpha=model_args.lora_alpha,
        layout=model_args.layout,
        hidden_size=model_args.policy_hidden_size,
        dilations=model_args.policy_dilations,
        window=model_args.window,
        logit_bound=model_args.logit_bound,
        ngram_buckets=model_args.ngram_buckets,
    )
    if model.policy.ngrams is not None:
        model.policy.ngrams.fit(train["input_ids"])
    sizes = {n: sum(p.numel() for p in m.parameters() if p.requires_grad)
             for n, m in (("policy", model.policy), ("adapter", model.reconstructor))}  # fmt: skip
    console.print(f"Trainable: policy {sizes['policy']:,}, adapter {sizes['adapter']:,} parameters")

    trainer = ForgetTrainer(
        model=model, args=args, train_dataset=train, eval_dataset=validation, processing_class=tokenizer,
        run_record=as_record(data_args, model_args, args) | {"trainable_parameters": sizes},
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    trainer.save_state()

    if len(test) and trainer.is_world_process_zero():
        loader = DataLoader(test, batch_size=args.per_device_eval_batch_size, collate_fn=trainer.data_collator)
        device = args.device
        batches = [(b["input_ids"].to(device), b["attention_mask"].to(device).bool()) for b in loader]
        scorers = [Policy(model), *baselines(model.reconstructor, tokenizer, train["input_ids"], args.seed)]
        rows = evaluation.compare(scorers, model.reconstructor, batches, args.eval_rates, args.seed)
        evaluation.write_json(
            Path(args.output_dir, "eval_results.json"),
            {"scorers": rows, "dataset": data_args.dataset_name, "layout": model_args.layout, "seed": args.seed},
        )
        trainer.create_model_card()
        evaluation.print_table(rows, console)
    trainer.end()


if __name__ == "__main__":
    main()

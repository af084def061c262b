"""
Train policy and reconstructor in one loop, compare the policy with the baselines, save the model folder.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/train.py --config recipes/quick_test.yaml

Every key of the run file can be overridden: `--max_steps 50 --reward_funcs simple`. `--help` lists them all.
"""

import logging
import os
import shutil
import sys
from pathlib import Path


# tokforget sends nothing on its own, its host's ping included.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
sys.path.append(os.getcwd())  # a reward of one's own lies where one stands, not beside this script

from tokforget.data.arguments import DataArguments
from tokforget.launch import check_launcher, check_run
from tokforget.models.arguments import ModelArguments
from tokforget.parsing import as_record, parse_arguments, refuse
from tokforget.training.checkpoints import check_output_dir, checkpoint_to_resume
from tokforget.training.config import ForgetConfig


def load_model(model_args: ModelArguments, tokenizer, max_length: int):
    """The policy that was named, or a fresh one, over the reconstructor that was named."""
    from tokforget.models.folders import check_model_folder, local_folder
    from tokforget.models.forget_model import ForgetModel, ForgetModelConfig
    from tokforget.models.loading import load_tokenizer

    shape = {
        "hidden_size": model_args.policy_hidden_size, "dilations": model_args.policy_dilations, "window": model_args.window,
        "logit_bound": model_args.logit_bound, "ngram_buckets": model_args.ngram_buckets,
    }  # fmt: skip
    folder = None
    if model_args.policy_name_or_path is not None:
        folder = local_folder(model_args.policy_name_or_path)
        check_model_folder(folder, with_adapter=False)
        if load_tokenizer(str(folder)).get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"The policy {model_args.policy_name_or_path} reads another vocabulary than the reconstructor "
                f"{model_args.reconstructor_name_or_path}. Take one that was trained over it."
            )
        trained = ForgetModelConfig.from_pretrained(folder)
        shape = {name: getattr(trained, name) for name in (*shape, "kernel_size", "head_size")}
    model = ForgetModel.from_base(
        model_args.reconstructor_name_or_path,
        tokenizer,
        revision=model_args.reconstructor_revision,
        lora_rank=model_args.lora_rank,
        lora_alpha=model_args.lora_alpha,
        layout=model_args.layout,
        **shape,
    )
    if folder is not None:
        model.load_policy(folder)
    model.reconstructor.check_max_length(max_length)
    return model


def with_sampled_texts(model, train, args: ForgetConfig, resumed: bool):
    """The training blocks, and behind them those that the base model wrote."""
    from datasets import Features, concatenate_datasets

    from tokforget.training.sampled_texts import draw_once, sample_blocks

    def draw() -> list[list[int]]:
        model.to(args.device)
        with bf16_autocast(args):
            return sample_blocks(
                model.reconstructor, train["input_ids"], args.sampled_texts, args.sampled_prompt_tokens, args.seed
            )

    sampled = draw_once(args.output_dir, draw, resumed)
    ids = train.select_columns(["input_ids"])
    return concatenate_datasets([ids, sampled.cast(Features({"input_ids": ids.features["input_ids"]}))])


def bf16_autocast(args: ForgetConfig):
    """
    What the trainer does in its steps, for the work of frozen weights before them. Not for training: weights are cast once
    in a context, and steps taken inside it would not be seen.
    """
    import torch

    return torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16)


def start_from_ranking(model, tokenizer, train, args: ForgetConfig, console) -> None:
    """The warm start: alike in every process, for it hangs on texts and seed alone."""
    import torch

    from tokforget.training.warm_start import teacher_bits, warm_start, write_lesson

    texts = [torch.as_tensor(text) for text in train["input_ids"][: args.warm_start_texts]]
    if args.lesson_path is not None:
        bits = [torch.as_tensor(of_text) for of_text in train["bits"][: args.warm_start_texts]]
    else:
        with bf16_autocast(args):
            bits = teacher_bits(model, texts, args.warm_start_teacher)
        if args.process_index == 0:
            write_lesson(Path(args.output_dir, args.lesson_dir), texts, bits)
    losses = warm_start(
        model, texts, bits, args.warm_start_steps, args.warm_start_learning_rate, args.warm_start_batch_size,
        args.min_rate, args.max_rate, args.seed, args.warm_start_sharpness,
    )  # fmt: skip
    folder = Path(args.output_dir, args.warm_start_dir)
    if args.process_index == 0:  # what the policy gradient starts from, to be compared with what it makes of it
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    first, last = (sum(part) / len(part) for part in (losses[:10], losses[-10:]))
    console.print(
        f"Warm start on {len(texts)} texts by {args.lesson_path or args.warm_start_teacher}: deviance {first:.2f} in the first ten steps, "
        f"{last:.2f} bits in the last."
    )


def compare_with_baselines(
    trainer, tokenizer, training_texts, test, layout: str, dataset_name: str, data_fingerprint: str
) -> list[dict]:
    """The policy and every baseline on the test blocks, shared out over the processes; rows to `eval_results.json`."""
    from torch.utils.data import DataLoader

    from tokforget.evaluation.baselines import CLOSING_BASELINES, Ground, baselines
    from tokforget.evaluation.comparison import compare
    from tokforget.evaluation.scorers import Policy
    from tokforget.files import write_json

    args, model = trainer.args, trainer.model
    loader = DataLoader(test, batch_size=args.per_device_eval_batch_size, collate_fn=trainer.data_collator)
    batches = [(b["input_ids"].to(args.device), b["attention_mask"].to(args.device).bool()) for b in loader]
    with trainer.whole_weights():
        ground = Ground(model.reconstructor, tokenizer, training_texts, seeds=[args.seed])
        scorers = [Policy(model), *baselines(CLOSING_BASELINES, ground)]
        rows = compare(scorers, model.reconstructor, batches, args.eval_rates, args.seed)
    content = {"scorers": rows, "dataset": dataset_name, "layout": layout, "seed": args.seed}
    content["data_fingerprint"] = data_fingerprint
    if trainer.is_world_process_zero():
        write_json(Path(args.output_dir, "eval_results.json"), content)
        trainer.create_model_card()
    return rows


def main(argv: list[str] | None = None) -> None:
    check_launcher()
    data_args, model_args, args = parse_arguments((DataArguments, ModelArguments, ForgetConfig), argv, __doc__)
    if model_args.window >= data_args.max_length:
        refuse(f"`window` ({model_args.window}) must be below `max_length` ({data_args.max_length}): a text is decided in "
               "at least two windows.")  # fmt: skip
    check_run(args)
    check_output_dir(args)
    checkpoint = checkpoint_to_resume(args)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)

    import transformers
    from rich.console import Console

    from tokforget.data.blocks import draw_blocks
    from tokforget.evaluation.comparison import print_table
    from tokforget.hub.client import HubError
    from tokforget.models.loading import load_tokenizer
    from tokforget.models.sharded_weights import load_whole
    from tokforget.training.faults import faults_in_one_line
    from tokforget.training.forget_trainer import ForgetTrainer
    from tokforget.training.warm_start import read_lesson

    console = Console(quiet=args.process_index > 0)
    transformers.set_seed(args.seed)
    load_whole(args)
    try:
        tokenizer = load_tokenizer(model_args.reconstructor_name_or_path, model_args.reconstructor_revision)
        train, validation, test, data = draw_blocks(data_args, tokenizer)
        model = load_model(model_args, tokenizer, data_args.max_length)
        corpus = train["input_ids"]  # what the baselines count
        if args.lesson_path is not None:
            train = read_lesson(args.lesson_path, corpus)
            data["blocks"]["sampled"] = len(train) - len(corpus)
        elif args.sampled_texts:
            train = with_sampled_texts(model, train, args, resumed=checkpoint is not None)
            data["blocks"]["sampled"] = args.sampled_texts
    except (ValueError, OSError) as error:
        refuse(str(error))
    if model.policy.ngrams is not None:
        model.policy.ngrams.fit(train["input_ids"])
    sizes = {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad)
        for name, part in (("policy", model.policy), ("adapter", model.reconstructor))
    }
    console.print(
        f"Blocks of up to {data_args.max_length} tokens: {len(train)} train, {len(validation)} validation, {len(test)} test. "
        f"Trainable parameters: policy {sizes['policy']:,}, adapter {sizes['adapter']:,}."
    )

    try:
        trainer = ForgetTrainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            run_record=as_record(data_args, model_args, args) | {"trainable_parameters": sizes, "data": data},
        )
    except HubError as error:  # with `push_to_hub` the repository is made now
        refuse(str(error))
    if args.warm_start_steps and checkpoint is None:
        start_from_ranking(model, tokenizer, train, args, console)
    with faults_in_one_line():
        trainer.train(resume_from_checkpoint=checkpoint)
        # With `push_to_hub` the folder is sent below, with its measurements.
        trainer.save_model(args.output_dir, _internal_call=True)
    if len(test):
        rows = compare_with_baselines(
            trainer,
            tokenizer,
            corpus,
            test,
            model_args.layout,
            data_args.dataset_name,
            data["fingerprint"],
        )
        print_table(rows, console)
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

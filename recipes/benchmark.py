"""
What the policy costs, as ratios measured in one run: medians over alternating repetitions, after warm-up.

    python recipes/benchmark.py                                    # both ratios, one thread
    python recipes/benchmark.py --reconstructor_name_or_path <folder> --max_length 128 --batch_size 8

1. joint step / reconstructor step: one optimiser step of the joint loop against forward, backward and optimiser step of
   the reconstructor alone, on the very keep masks that the policy drew.
2. policy / language model: keep mask of a 512-token text at rate 0.5 (trunk, decisions, top-k; ids in, mask out)
   against one forward of a GPT-2-124M-shaped model with random weights over the same tokens. The policy reads its stored
   table, as it does when it compresses.

Absolute times depend on the machine and on its neighbours; the ratios less so.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
warnings.filterwarnings("ignore", category=FutureWarning)

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tokforget.config import ForgetConfig
from tokforget.data import BlockCollator, load_blocks
from tokforget.modeling import ForgetModel, ForgetModelConfig
from tokforget.reconstructor import tokenizer_source
from tokforget.trainer import ForgetTrainer


def medians(repeats: int, *functions: Callable[[], None]) -> list[float]:
    """Median seconds of each function; the functions take turns, so that a slow minute hits all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, own in zip(functions, times):
            start = time.perf_counter()
            function()
            if repeat:  # the first round warms up
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def joint_step(name: str, dataset: str, max_length: int, batch_size: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a joint step and of a reconstructor step on the same masks."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source(name))
    blocks = load_blocks(dataset, tokenizer, max_length, max_length)
    model = ForgetModel.from_base(name, tokenizer, window=max_length // 4)
    model.policy.ngrams.fit(blocks["train"]["input_ids"])
    with tempfile.TemporaryDirectory() as scratch:
        args = ForgetConfig(output_dir=scratch, use_cpu=True, report_to="none", per_device_train_batch_size=batch_size)
        trainer = ForgetTrainer(model=model, args=args, train_dataset=blocks["train"], processing_class=tokenizer)
    inputs = BlockCollator(model.config.marker_token_id)(list(blocks["train"].select(range(batch_size))))
    trainer.create_optimizer()
    adapter = [p for p in model.reconstructor.parameters() if p.requires_grad]
    own_optimizer = torch.optim.AdamW(adapter, lr=0.0)
    rows: dict[str, torch.Tensor] = {}
    token_nll = model.reconstructor.token_nll

    def remember(input_ids, keep_mask, valid):
        rows.update(input_ids=input_ids, keep_mask=keep_mask, valid=valid)
        return token_nll(input_ids, keep_mask, valid)

    model.reconstructor.token_nll = remember
    model.train()

    def joint():
        trainer.optimizer.zero_grad()
        trainer.compute_loss(model, inputs).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()

    def alone():
        own_optimizer.zero_grad()
        scores = token_nll(**rows)
        (scores.nll.sum(1) / (~rows["keep_mask"] & rows["valid"]).sum(1)).mean().backward()
        torch.nn.utils.clip_grad_norm_(adapter, 1.0)
        own_optimizer.step()

    joint_seconds, alone_seconds = medians(repeats, joint, alone)
    return joint_seconds, alone_seconds


def policy_pass(num_tokens: int, window: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a keep mask by the policy and of a forward of a GPT-2-124M-shaped model."""
    language_model = GPT2LMHeadModel(GPT2Config()).eval()
    model = ForgetModel(ForgetModelConfig(vocab_size=50_257, base_hidden_size=768, window=window)).eval()
    model.policy.ngrams.fit([torch.randint(0, 50_257, (100_000,)).tolist()])
    model.policy.tokens.table.normal_()
    torch.nn.init.normal_(model.policy.to_logit.weight)
    ids = torch.randint(0, 50_257, (1, num_tokens))
    attention_mask, rate = torch.ones_like(ids), torch.tensor([0.5])

    def decide():
        with torch.inference_mode():
            for _ in range(20):
                model.keep_mask(ids, attention_mask, rate)

    def forward():
        with torch.inference_mode():
            language_model(ids, use_cache=False)

    policy_seconds, model_seconds = medians(repeats, decide, forward)
    return policy_seconds / 20, model_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reconstructor_name_or_path", default="embedded")
    parser.add_argument("--dataset_name", default="embedded")
    parser.add_argument("--max_length", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=12)
    parser.add_argument("--num_tokens", type=int, default=512, help="of the text that is compressed")
    parser.add_argument("--window", type=int, default=64, help="tokens per decision when compressing")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--num_threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(0)
    joint, alone = joint_step(
        args.reconstructor_name_or_path, args.dataset_name, args.max_length, args.batch_size, args.repeats
    )
    policy, forward = policy_pass(args.num_tokens, args.window, args.repeats)
    table = Table(
        title=f"{platform.machine()}, {args.num_threads} thread(s), torch {torch.__version__}, medians of {args.repeats}"
    )
    for column in ("what", "seconds", "against", "seconds", "ratio"):
        table.add_column(column, justify="left" if column in ("what", "against") else "right")
    table.add_row(
        "joint step", f"{joint:.3f}", "reconstructor step, same masks", f"{alone:.3f}", f"{joint / alone:.2f}x"
    )
    table.add_row(f"policy, {args.num_tokens} tokens", f"{policy:.4f}", "GPT-2-124M-shaped forward", f"{forward:.3f}",
                  f"{100 * policy / forward:.2f} %")  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()

"""
Measure the cost of the policy as ratios within one run: medians over alternating repetitions, after a warm-up.

    python recipes/benchmark.py                                    # all tables except that of bulk runs, one thread
    python recipes/benchmark.py --only compress                    # one part: train, policy, compress, backends, service, bulk or launches
    python recipes/benchmark.py --reconstructor_name_or_path <folder> --max_length 128 --batch_size 8

1. joint step / reconstructor step: one optimiser step of the joint loop against forward, backward and optimiser step of
   the reconstructor alone, on the same keep masks; its tokens per second; its counted FLOPs relative to the rate of
   large matrix products; and its parts. `--device cuda` measures on a GPU, in bfloat16 if the GPU supports it.
2. policy / language model: keep mask of a 512-token text at rate 0.5 (trunk, decisions, top-k; ids in, mask out)
   against one forward pass of a GPT-2-124M-shaped model with random weights over the same tokens. The policy uses its
   stored table, as in compressing.
3. compress / language model: the whole `Compressor.compress` of such a text less the time inside the tokenizer, against
   the same forward pass. The inverse is the speed-up over self-information with that model.
4. batch: policy, selection and joining of 1,000 texts against the tokenizer's time for them.
5. length: processor seconds per token of texts of 1,000 to 1,000,000 tokens, relative to the shortest; and the growth
   of peak memory when a stream is four times as long.
6. end to end: prompt and 32 new tokens with the GPT-2-124M-shaped model, whole against compressed at rate 0.5; the
   share of the speed-up of free compression that is left.

7. backends, a separate table (`--only backends`): the packaged compressor, or that of `--model`, with each backend on
   `--texts` texts, for each number of `--threads`: tokens per second of wall time, processor time per token and
   relative to the tokenizer's, processor seconds and memory of `tokforget compress` for a file of 10 kB in a new
   process, and texts with the same mask as torch. Further rows show language models with random weights on windows of
   the same texts: token classifiers of the shapes that LLMLingua-2 uses (BERT-base, XLM-RoBERTa-large), one with 149M
   parameters like ModernBERT-base, and GPT-2 124M. `--texts 50 --repeats 3` is quick.

8. service, a separate table (`--only service`): `tokforget serve` in a new process, with one worker, and clients that
send requests one
   after another over open connections: requests per second, the service's processor seconds per request, percentiles
   of the milliseconds until an answer is read, requests per compression call, and answers other than 200. Each line
   sends `--num_requests` texts of about 250 tokens. The clients run on the same machine; the title gives its load in
   the last minute.

9. bulk, a separate table (`--only bulk`): rows per second of `datasets.map`, Ray Data and Spark on this machine (those
   that are installed), with one worker and with two, over `--num_rows` texts of about 250 tokens. The time includes
   sending the model, but not the start of the engine, and for `datasets.map` not that of the first process. Medians
   over `--repeats` rounds in which the engines alternate; the last column is the rate of two workers relative to one.

10. launches, a separate table (`--only launches`): operations that the host sends for the forward and backward passes
of a joint step and of the reconstructor's step on the same masks, counted on the CPU in bfloat16, with the rows in
groups as on a CPU and in one pass as on a GPU; those that compute, about one kernel each; and those for which the host
waits. Small kernels end before the next is launched, so that these numbers bound a GPU's step. They depend on the
number of the base model's layers, not on its width.

Parts 3 to 9 use the standard library's documentation, the packaged tokenizer, and a policy of the default shape with
random weights (the speed does not depend on them), or the model of `--model`.

Absolute times depend on the machine and on its load; the ratios depend on them less.
"""

import argparse
import http.client
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import urllib.request
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # compare everything with one thread

import numpy as np
import psutil
import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForTokenClassification,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

from tokforget.compression.compressor import BACKENDS, Compressor
from tokforget.data.blocks import BlockCollator, load_blocks
from tokforget.data.embedded_corpus import embedded_documents
from tokforget.integrations.huggingface import compress_column
from tokforget.models.cross_entropy import CHUNK_TOKENS
from tokforget.models.folders import export_onnx, local_folder, read_tokenizer
from tokforget.models.forget_model import ForgetModel, ForgetModelConfig
from tokforget.models.loading import load_tokenizer
from tokforget.models.onnx_policy import GRAPHS
from tokforget.models.policy import SEARCHES, KeepMaskPolicy
from tokforget.models.reconstructor import PASSES
from tokforget.optional import MissingPackage
from tokforget.packaged import base_model_path, reader_model_path
from tokforget.training.config import ForgetConfig
from tokforget.training.forget_trainer import ForgetTrainer


def medians(repeats: int, *functions: Callable[[], None]) -> list[float]:
    """Median seconds of each function. The functions alternate, so that a slow minute affects all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, own in zip(functions, times):
            start = time.perf_counter()
            function()
            if repeat:  # the first round warms up
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


class JointStep:
    """
    A joint step, and a step of the reconstructor alone on the same masks, on a device and in the precision of a run
    there. The weights change by a negligible amount.
    """

    def __init__(
        self, name: str, dataset: str, max_length: int, batch_size: int, device: str, bf16: bool | None = None
    ):
        tokenizer = load_tokenizer(name)
        blocks = load_blocks(dataset, tokenizer, max_length, max_length)
        self.model = ForgetModel.from_base(name, tokenizer, window=max_length // 4)
        self.model.policy.ngrams.fit(blocks["train"]["input_ids"])
        with tempfile.TemporaryDirectory() as scratch:
            self.args = ForgetConfig(
                output_dir=scratch,
                use_cpu=device == "cpu",
                bf16=bf16,
                report_to="none",
                per_device_train_batch_size=batch_size,
                reconstructor_text_fraction=1.0,
                reward_funcs=["information_theoretic"],
            )
            self.trainer = ForgetTrainer(
                model=self.model, args=self.args, train_dataset=blocks["train"], processing_class=tokenizer
            )
        collator = BlockCollator(self.model.config.marker_token_id)
        self.inputs = {
            name: column.to(self.args.device)
            for name, column in collator(list(blocks["train"].select(range(batch_size)))).items()
        }
        self.tokens = int(self.inputs["attention_mask"].sum())
        self.trainer.create_optimizer()
        self.adapter = [p for p in self.model.reconstructor.parameters() if p.requires_grad]
        self.own_optimizer = torch.optim.AdamW(self.adapter, lr=0.0)
        self.parts: dict[str, list[float]] = {}
        self.watch: Callable[[str], AbstractContextManager] = lambda name: nullcontext()
        self.rows: dict[str, torch.Tensor] = {}
        policy, reconstructor = self.model.policy, self.model.reconstructor
        self.token_nll = reconstructor.token_nll
        policy.decide = self._part("policy decides", policy.decide)
        reconstructor.token_nll = self._part("reconstructor scores", self._remember)
        self.backward = self._part("backward", lambda loss: loss.backward())
        self.step = self._part("clip and step", self._clip_and_step)
        self.model.train()

    def _remember(self, input_ids, keep_mask, valid):
        self.rows.update(input_ids=input_ids, keep_mask=keep_mask, valid=valid)
        return self.token_nll(input_ids, keep_mask, valid)

    def _clip_and_step(self):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.trainer.optimizer.step()

    def _part(self, name: str, function: Callable) -> Callable:
        def watched(*args, **kwargs):
            with self.watch(name):
                return function(*args, **kwargs)

        return watched

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        start = self.now()  # synchronises, which slows down an asynchronous device: only to time the parts
        yield
        self.parts.setdefault(name, []).append(self.now() - start)

    def now(self) -> float:
        if self.args.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def joint(self) -> None:
        self.trainer.optimizer.zero_grad()
        self.joint_gradients()
        self.step()
        self.now()

    def joint_gradients(self) -> None:
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            loss = self.trainer.compute_loss(self.model, self.inputs)
        self.backward(loss)

    def alone(self) -> None:
        self.own_optimizer.zero_grad()
        self.own_gradients()
        torch.nn.utils.clip_grad_norm_(self.adapter, 1.0)
        self.own_optimizer.step()
        self.now()

    def own_gradients(self) -> None:
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            scores = self.token_nll(**self.rows)
            dropped = (~self.rows["keep_mask"] & self.rows["valid"]).sum(1)
            loss = (scores.nll.sum(1) / dropped).mean()
        loss.backward()

    def flops(self) -> int:
        """FLOPs of the matrix products and the attention in one joint step."""
        counter = FlopCounterMode(display=False)
        with counter:
            self.joint()
        return counter.get_total_flops()

    def seconds_by_part(self, repeats: int) -> dict[str, float]:
        """Mean seconds of each part of a joint step, with a synchronisation after each, and of the rest."""
        self.watch, whole = self._clock, 0.0
        for _ in range(repeats):
            start = self.now()
            self.joint()
            whole += self.now() - start
        self.watch = lambda name: nullcontext()
        parts = {name: sum(times) / repeats for name, times in self.parts.items()}
        return parts | {"rewards, advantages, the rest": whole / repeats - sum(parts.values())}


class LaunchCounter(TorchDispatchMode):
    """
    Counts the ATen operations of each part of a step, on any device: a GPU gets the same ones from the host.

    `launches` are those that compute something, about one kernel each. `waits` are those among them whose result has a
    size or a Python value that depends on the numbers, so that the host must wait until a GPU has come this far. Copies
    between devices and `tolist`, which wait as well, cannot be seen on a CPU.
    """

    # Memory alone; and the generators here are those of the CPU, whatever the device.
    _NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "rand", "randn"}
    _WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"}

    def __init__(self):
        super().__init__()
        self.operations, self.launches, self.waits = Counter(), Counter(), Counter()
        self._part = "the rest"

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        outer, self._part = self._part, name
        try:
            yield
        finally:
            self._part = outer

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.operations[self._part] += 1
        self.launches[self._part] += not func.is_view and name not in self._NO_LAUNCH
        self.waits[self._part] += name in self._WAITS or _by_mask(name, args)
        return func(*args, **(kwargs or {}))


def _by_mask(name: str, args: tuple) -> bool:
    """Whether an operation takes a boolean mask for indices, which it must count first."""
    return name in ("index", "index_put", "index_put_") and any(
        isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )


def count_launches(step: JointStep, compute: Callable[[], None]) -> LaunchCounter:
    """Count the forward and backward passes of `compute`, which is `step.joint_gradients` or `step.own_gradients`."""
    step.model.zero_grad()
    counter = LaunchCounter()
    step.watch = counter.part
    try:
        with counter:
            compute()
    finally:
        step.watch = lambda name: nullcontext()
    return counter


def launch_rows(args: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Rows of the table about launches."""
    step = JointStep(
        args.reconstructor_name_or_path, args.dataset_name, args.max_length, args.batch_size, "cpu", bf16=True
    )
    model, forwards = step.model.reconstructor.model, []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    settings = {"in groups, as on a CPU": "cpu", "in one pass, as on a GPU": "cuda"}
    for setting, device in settings.items():
        with ExitStack() as stack:
            for by_device in (PASSES, CHUNK_TOKENS, SEARCHES):
                stack.enter_context(patch.dict(by_device, cpu=by_device[device]))
            step.joint_gradients()  # the first call also tests the head
            forwards.clear()
            joint = count_launches(step, step.joint_gradients)
            num_forwards = len(forwards)
            alone = count_launches(step, step.own_gradients)
        for name, of_step in (("joint", joint), ("reconstructor's own", alone)):
            totals = (f"{count.total():,}" for count in (of_step.operations, of_step.launches, of_step.waits))
            ratio = f"{of_step.launches.total() / alone.launches.total():.2f}x"
            yield f"{name} step, rows {setting}", f"{num_forwards}", *totals, ratio
        for part, launches in joint.launches.items():
            share = f"{100 * launches / joint.launches.total():.0f} %"
            yield f"  {part}", "", f"{joint.operations[part]:,}", f"{launches:,}", f"{joint.waits[part]:,}", share


def joint_rows(args: argparse.Namespace) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows of the table about training."""
    step = JointStep(args.reconstructor_name_or_path, args.dataset_name, args.max_length, args.batch_size, args.device)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    joint, alone = medians(args.repeats, step.joint, step.alone)
    yield ("joint step", f"{joint:.4f}", "reconstructor step, same masks", f"{alone:.4f}", f"{joint / alone:.2f}x")
    yield ("joint step", f"{joint:.4f}", "original tokens per second", f"{step.tokens / joint:,.0f}", "")
    flops, highest = step.flops(), matrix_rate(step.args.device, step.args.bf16)
    yield (f"its {flops / 1e12:.3f} TFLOP", f"{joint:.4f}", "TFLOP/s, of those of large products",
           f"{flops / joint / 1e12:.3g}", f"{100 * flops / joint / highest:.1f} % of {highest / 1e12:.3g}")  # fmt: skip
    if args.device == "cuda":
        yield ("GPU memory at its highest", "", "GiB", f"{torch.cuda.max_memory_allocated() / 2**30:.2f}", "")
    parts = step.seconds_by_part(args.repeats)
    whole = sum(parts.values())
    for name, seconds in parts.items():
        share = f"{100 * seconds / whole:.0f} %"
        yield f"  {name}", f"{seconds:.4f}", "the step, a wait after each", f"{whole:.4f}", share


def matrix_rate(device: torch.device, bf16: bool) -> float:
    """FLOP/s of square matrix products on random numbers, as the reference for a step."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product():
        for _ in range(10):
            left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()

    (seconds,) = medians(5, product)
    return 10 * 2 * size**3 / seconds


def policy_pass(num_tokens: int, window: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a keep mask by the policy and of a forward pass of a GPT-2-124M-shaped model."""
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


class TimedTokenizer:
    """A tokenizer that sums the time spent in it."""

    def __init__(self, tokenizer):
        self.tokenizer, self.seconds = tokenizer, 0.0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def encode_batch(self, *args, **kwargs):
        return self._timed(self.tokenizer.encode_batch, *args, **kwargs)

    def encode_batch_fast(self, *args, **kwargs):
        return self._timed(self.tokenizer.encode_batch_fast, *args, **kwargs)

    def _timed(self, function, *args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return result


def make_compressor(model: str | None) -> Compressor:
    """
    The compressor of a trained model, or of a policy of the default shape with random weights and the packaged
    tokenizer.
    """
    if model is not None:
        return Compressor.from_pretrained(model)
    tokenizer = read_tokenizer(Path(base_model_path()))
    policy = KeepMaskPolicy(tokenizer.get_vocab_size(), 768)
    policy.ngrams.fit([torch.randint(0, tokenizer.get_vocab_size(), (100_000,)).tolist()])
    policy.tokens.table.normal_()
    torch.nn.init.normal_(policy.to_logit.weight)
    return Compressor(policy.eval().requires_grad_(False), tokenizer)


def of_tokens(compressor: Compressor, text: str, num_tokens: int) -> str:
    """The beginning of a text that has about `num_tokens` tokens, repeated if it is too short."""
    text *= 1 + 8 * num_tokens // len(text)
    offsets = compressor.tokenizer.encode(text[: 8 * num_tokens], add_special_tokens=False).offsets
    return text[: offsets[num_tokens - 1][1]]


def without_tokenizer(compressor: Compressor, texts: str | list[str]) -> tuple[float, float]:
    """Seconds of one `compress` outside the tokenizer, and seconds of only tokenising the texts."""
    timed = TimedTokenizer(compressor.tokenizer)
    compressor.tokenizer = timed
    start = time.perf_counter()
    compressor.compress(texts, rate=0.5)
    outside = time.perf_counter() - start - timed.seconds
    compressor.tokenizer, timed.seconds = timed.tokenizer, 0.0
    timed.encode_batch([texts] if isinstance(texts, str) else texts, add_special_tokens=False)
    return outside, timed.seconds


def compressor_rows(model: str | None, num_tokens: int, repeats: int) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows of the table about the compressor."""
    compressor = make_compressor(model)
    corpus = "\n\n".join(embedded_documents().values())
    language_model = GPT2LMHeadModel(GPT2Config()).eval()
    text = of_tokens(compressor, corpus, num_tokens)
    ids = torch.randint(0, 50_257, (1, num_tokens))
    outside: list[float] = []

    def forward():
        with torch.inference_mode():
            language_model(ids, use_cache=False)

    def compress():
        outside.extend(without_tokenizer(compressor, text)[0] for _ in range(10))

    _, forward_seconds = medians(repeats, compress, forward)
    own = statistics.median(outside[10:])
    yield (f"compress, {num_tokens} tokens, tokenizer apart", f"{own:.4f}", "GPT-2-124M-shaped forward",
           f"{forward_seconds:.3f}", f"{100 * own / forward_seconds:.2f} %")  # fmt: skip
    yield ("self-information, that model", f"{forward_seconds:.3f}", "compress, tokenizer apart", f"{own:.4f}",
           f"{forward_seconds / own:.0f}x")  # fmt: skip

    step = len(corpus) // 1000
    texts = [corpus[i * step : i * step + min(step, 2000)] for i in range(1000)]
    times = [without_tokenizer(compressor, texts) for _ in range(3)]
    own, tokenizing = (statistics.median(column) for column in zip(*times))
    yield ("compress, 1,000 texts, tokenizer apart", f"{own:.3f}", "tokenizing them", f"{tokenizing:.3f}",
           f"{own / tokenizing:.1f}x")  # fmt: skip

    shortest = None
    for length in (1_000, 10_000, 100_000, 1_000_000):
        long = of_tokens(compressor, corpus, length)
        seconds = min(_seconds(lambda: compressor.compress(long, rate=0.5)) for _ in range(3 if length < 1e5 else 1))  # noqa: B023
        shortest = shortest or seconds / length
        yield (f"compress, {length:,} tokens, all of it", f"{seconds:.3f}", "per token, of 1,000 tokens", f"{shortest:.2e}",
               f"{seconds / length / shortest:.2f}x")  # fmt: skip

    for times_longer in (1, 4):
        lines = (line for _ in range(times_longer) for line in corpus[:250_000].splitlines(keepends=True))
        tracemalloc.start()
        seconds = _seconds(lambda: deque(compressor.compress_stream(lines, rate=0.5), maxlen=0))  # noqa: B023
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        yield (f"stream of {times_longer * 250_000:,} characters", f"{seconds:.2f}", "peak of Python's and NumPy's memory",
               f"{peak:.1f} MiB", "")  # fmt: skip

    prompt = torch.randint(0, 50_257, (1, num_tokens))
    options = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False, "pad_token_id": 0}
    whole, half, compressing = medians(
        repeats,
        lambda: language_model.generate(prompt, attention_mask=torch.ones_like(prompt), **options),
        lambda: language_model.generate(prompt[:, ::2], attention_mask=torch.ones_like(prompt[:, ::2]), **options),
        lambda: compressor.compress(text, rate=0.5),
    )
    yield (f"{num_tokens} tokens and 32 new ones", f"{whole:.3f}", "compressed to half, compressing included",
           f"{half + compressing:.3f}", f"{whole / (half + compressing):.2f}x")  # fmt: skip
    yield ("of the speed-up of free compression", f"{half:.3f}", "is left", f"{half + compressing:.3f}",
           f"{half / (half + compressing):.3f}")  # fmt: skip


# A small vocabulary, because the time does not depend on the number of rows in the embedding table.
LANGUAGE_MODELS = {
    "BERT-base-shaped token classifier": lambda: BertForTokenClassification(BertConfig(vocab_size=1000)),
    "XLM-R-large-shaped token classifier": lambda: XLMRobertaForTokenClassification(
        XLMRobertaConfig(vocab_size=1000, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
                         max_position_embeddings=514)
    ),
    "149M-encoder-shaped token classifier": lambda: ModernBertForTokenClassification(
        ModernBertConfig(vocab_size=1000, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
    ),
    "GPT-2-124M-shaped forward": lambda: GPT2LMHeadModel(GPT2Config()),
}  # fmt: skip


def cold_start(model: str | None, backend: str, text: str, repeats: int) -> tuple[float, float]:
    """Median processor seconds and peak MiB of `tokforget compress` for this text in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        path.write_text(text, encoding="utf-8")
        words = ["compress", str(path), "--quiet", "--backend", backend, "-o", str(Path(folder, "short.txt"))]
        words += ["--model", model] if model else []
        # The reported peak is that of all children so far, so each child gets its own parent process.
        code = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
            "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime, used.ru_maxrss)"
        )
        command = [sys.executable, "-c", code, sys.executable, "-m", "tokforget", *words]
        runs = [
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(repeats)
        ]
    return statistics.median(float(seconds) for seconds, _ in runs), max(int(kib) for _, kib in runs) / 1024


class Meter:
    """Wall and processor seconds of alternating calls."""

    def __init__(self):
        self.times: dict[str, list[tuple[float, float]]] = {}

    def __call__(self, name: str, function: Callable[[], object]) -> None:
        start, spent = time.perf_counter(), time.process_time()
        function()
        self.times.setdefault(name, []).append((time.perf_counter() - start, time.process_time() - spent))

    def medians(self, name: str) -> tuple[float, float]:
        return tuple(statistics.median(column) for column in zip(*self.times[name]))


def backend_rows(
    folder: str, backends: list[str], num_threads: int, num_texts: int, num_tokens: int, repeats: int
) -> list[tuple[str, ...]]:
    """Rows of the table of backends, and of language models on the same texts; runs in a separate process."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    corpus = "\n\n".join(embedded_documents().values())
    step = len(corpus) // num_texts
    texts = [corpus[i * step : i * step + min(step, 2000)] for i in range(num_texts)]
    compressors = {name: Compressor.from_pretrained(folder, backend=name) for name in backends}
    tokenizer = compressors["torch"].tokenizer
    encode = lambda: tokenizer.encode_batch(texts, add_special_tokens=False)  # noqa: E731
    ids = np.concatenate([encoding.ids for encoding in encode()])
    kept, meter = {}, Meter()

    def compress(name: str) -> None:
        kept[name] = [result.kept_indices.tolist() for result in compressors[name].compress(texts, rate=0.5)]

    for name in backends:
        compressors[name].compress(texts[:20], rate=0.5)
    for _ in range(repeats):  # alternating, so that all meet the same load
        meter("its tokenizer", encode)
        for name in backends:
            meter(name, lambda: compress(name))  # noqa: B023
    tokenizing = meter.medians("its tokenizer")[1] / len(ids)

    def row(name: str, wall: float, spent: float, *more: str) -> tuple[str, ...]:
        """A row with wall and processor seconds per token."""
        told = (f"{1 / wall:,.0f}", f"{1e6 * spent:.1f}", f"{spent / tokenizing:.1f}x", *more)
        return (name, str(num_threads), *told, *[""] * (3 - len(more)))

    rows = []
    for name in backends:
        start, memory = cold_start(folder, name, corpus[:10_000], repeats)
        alike = sum(a == b for a, b in zip(kept[name], kept["torch"]))
        found = f"{start:.2f}", f"{memory:.0f}", f"{alike:,} of {len(texts):,}"
        rows.append(row(f"compress, {name}", *(seconds / len(ids) for seconds in meter.medians(name)), *found))
    rows.append(row("its tokenizer", *(seconds / len(ids) for seconds in meter.medians("its tokenizer"))))
    # Only a part of the same texts, one window after another, because all would take an hour.
    windows = torch.from_numpy(5 + ids[: num_tokens * (len(ids) // num_tokens)] % 995).view(-1, 1, num_tokens)
    with torch.inference_mode():
        for name, build in LANGUAGE_MODELS.items():
            network = build().eval()
            network(windows[0])
            for window in windows[:: max(1, len(windows) // repeats)][:repeats]:
                meter(name, lambda: network(window))  # noqa: B023
            rows.append(row(name, *(seconds / num_tokens for seconds in meter.medians(name))))
    return rows


def all_backend_rows(
    model: str | None, threads: list[int], num_texts: int, num_tokens: int, repeats: int
) -> Iterator[tuple[str, ...]]:
    """
    The table of backends. Libraries read their number of threads when they are loaded, so each number has a process.
    """
    folder = local_folder(model) if model else reader_model_path()
    backends = [name for name in BACKENDS if name not in GRAPHS]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            export_onnx(folder, Path(scratch, "model"), list(GRAPHS))
            folder, backends = Path(scratch, "model"), list(BACKENDS)
        except MissingPackage as error:
            print(f"Without ONNX Runtime: {error}", file=sys.stderr)
        for number in threads:
            names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
            os.environ |= {name: str(number) for name in names} | {"TOKENIZERS_PARALLELISM": str(number > 1).lower()}
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                done = process.submit(backend_rows, str(folder), backends, number, num_texts, num_tokens, repeats)
                yield from done.result()


# -- the service -------------------------------------------------------------------------------------------------------
CONCURRENCY = (1, 4, 16, 64)


def service_rows(model: str | None, num_requests: int) -> Iterator[tuple[str, ...]]:
    """The table of the service under load, with a row for each number of concurrent clients."""
    corpus = "\n\n".join(embedded_documents().values())
    step = len(corpus) // num_requests
    texts = [corpus[i * step : i * step + 1000] for i in range(num_requests)]
    # A queue larger than the number of clients, because this measures answers under load and not refusals.
    words = ["serve", "--port", "0", "--timeout", "3600", "--queue", "256", *(["--model", model] if model else [])]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", "tokforget", *words], stderr=log, stdin=subprocess.DEVNULL)
        try:
            port = _port_of(process, log)
            ask_all(port, texts[:16], 4)
            for clients in CONCURRENCY:
                before = _service_numbers(port, process.pid)
                times, others, seconds = ask_all(port, texts, clients)
                spent, batches, requests = (b - a for a, b in zip(before, _service_numbers(port, process.pid)))
                cuts = statistics.quantiles(times, n=100, method="inclusive")
                yield (str(clients), f"{len(texts) / seconds:.1f}", f"{1000 * spent / len(texts):.1f}",
                       *(f"{1000 * cuts[p - 1]:.0f}" for p in (50, 95, 99)), f"{1000 * max(times):.0f}", f"{requests / batches:.1f}",
                       str(others))  # fmt: skip
        finally:
            process.terminate()
            process.wait(60)


def _port_of(process: subprocess.Popen, log) -> int:
    while process.poll() is None:
        log.seek(0)
        if found := re.search(rb" at http://\S+:(\d+),", log.read()):
            return int(found[1])
        time.sleep(0.05)
    log.seek(0)
    raise RuntimeError(f"the service did not start: {log.read().decode()}")


def ask_all(port: int, texts: list[str], clients: int) -> tuple[list[float], int, float]:
    """
    Seconds of each request, number of answers other than 200, and total seconds, with this number of concurrent
    clients.
    """
    waiting, times, others = deque(texts), [], []
    headers = {"Content-Type": "application/json"}

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            try:
                body = json.dumps({"texts": waiting.popleft(), "rate": 0.5})
            except IndexError:
                return connection.close()
            start = time.perf_counter()
            connection.request("POST", "/v1/compress", body, headers)
            answer = connection.getresponse()
            answer.read()
            times.append(time.perf_counter() - start)
            if answer.status != 200:
                others.append(answer.status)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, len(others), time.perf_counter() - start


def _service_numbers(port: int, pid: int) -> tuple[float, float, float]:
    """
    Processor seconds of the service and its children so far, calls of the compressor, and requests in these calls.
    """
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        page = answer.read().decode()
    number = lambda name: float(re.search(rf"^{name} (\S+)$", page, re.MULTILINE)[1])  # noqa: E731
    family = psutil.Process(pid)
    times = [one.cpu_times() for one in (family, *family.children(recursive=True))]
    return (
        sum(t.user + t.system for t in times),
        number("tokforget_batch_requests_count"),
        number("tokforget_batch_requests_sum"),
    )


# -- bulk runs ---------------------------------------------------------------------------------------------------------
WORKERS = (1, 2)
Run = Callable[[int], int]


@contextmanager
def map_runs(rows: list[dict], compressor: Compressor) -> Iterator[Run]:
    """
    Runs of `datasets.map`. These three functions take rows and the compressor, and yield functions from workers to
    output rows.
    """
    dataset, function = Dataset.from_list(rows), compress_column(compressor, rate=0.5)
    with tempfile.TemporaryDirectory() as scratch:
        number = count()
        disable_progress_bars()
        yield lambda workers: len(
            dataset.map(function, batched=True, batch_size=64, num_proc=workers, load_from_cache_file=False,
                        cache_file_name=f"{scratch}/{next(number)}.arrow")
        )  # fmt: skip
        enable_progress_bars()


@contextmanager
def ray_runs(rows: list[dict], compressor: Compressor) -> Iterator[Run]:
    """Runs of Ray Data on this machine, with CPUs for reading in addition to the two actors."""
    import ray.data

    from tokforget.integrations.ray import compress_ray_dataset

    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default of 15 would give way to other processes
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error", _temp_dir=scratch)
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_items(rows, override_num_blocks=8)
        run = lambda workers: compress_ray_dataset(  # noqa: E731
            dataset, rate=0.5, model=compressor, concurrency=workers
        ).materialize()
        yield lambda workers: run(workers).count()
        ray.shutdown()


@contextmanager
def spark_runs(rows: list[dict], compressor: Compressor) -> Iterator[Run]:
    """Runs of Spark on this machine; the number of partitions, and so of concurrent tasks, is that of the workers."""
    from pyspark.sql import SparkSession

    from tokforget.integrations.spark import compress_spark_dataframe

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    spark = SparkSession.builder.master(f"local[{max(WORKERS)}]").config("spark.ui.enabled", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    frame = spark.createDataFrame([(row["text"],) for row in rows], ["text"])
    yield lambda workers: len(
        compress_spark_dataframe(frame.repartition(workers), rate=0.5, model=compressor).select("compressed").collect()
    )
    spark.stop()


def bulk_rows(model: str | None, num_rows: int, repeats: int) -> Iterator[tuple[str, ...]]:
    """The table of bulk runs, with one row per engine."""
    corpus, compressor = "\n\n".join(embedded_documents().values()), Compressor.from_pretrained(model)
    step = len(corpus) // num_rows
    rows = [{"text": corpus[number * step : number * step + 1000]} for number in range(num_rows)]
    installed = {"datasets.map": map_runs}
    if find_spec("ray"):
        installed["Ray Data"] = ray_runs
    if find_spec("pyspark") and (shutil.which("java") or "JAVA_HOME" in os.environ):
        installed["Spark"] = spark_runs
    spent: dict[tuple[str, int], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        runs = {name: stack.enter_context(start(rows, compressor)) for name, start in installed.items()}
        for repeat in range(repeats + 1):  # alternating, so that all meet the same load
            for name, run in runs.items():
                for workers in WORKERS:
                    start = time.perf_counter()
                    came = run(workers)
                    if came != num_rows:
                        raise RuntimeError(f"{name} made {came} rows of {num_rows}.")
                    if repeat:  # the first round warms up
                        spent[name, workers].append(time.perf_counter() - start)
    for name in runs:
        one, two = (num_rows / statistics.median(spent[name, workers]) for workers in WORKERS)
        yield (name, f"{one:.0f}", f"{two:.0f}", f"{two / one:.2f}x")


def _seconds(function: Callable[[], object]) -> float:
    """Processor seconds, because a long run is affected more by the load of the machine than a short one."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reconstructor_name_or_path", default="embedded")
    parser.add_argument("--dataset_name", default="embedded")
    parser.add_argument("--max_length", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=12)
    parser.add_argument("--num_tokens", type=int, default=512, help="tokens of the compressed text")
    parser.add_argument("--window", type=int, default=64, help="tokens per decision when compressing")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--model", help="a trained model's folder, for the rows of the compressor")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="device of the joint step; the rest runs on CPUs"
    )
    parser.add_argument(
        "--only",
        choices=["train", "policy", "compress", "backends", "service", "bulk", "launches"],
        help="one part of the table",
    )
    parser.add_argument("--texts", type=int, default=1000, help="texts for the table of backends")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=[1, 2],
        help="numbers of threads for the table of backends; each is measured separately",
    )
    parser.add_argument(
        "--num_requests", type=int, default=500, help="requests for each row of the table of the service"
    )
    parser.add_argument("--num_rows", type=int, default=2000, help="rows for each run in the table of bulk runs")
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    table = Table(title=f"{where}, {args.num_threads} thread(s), torch {torch.__version__}, medians of {args.repeats}")
    for column in ("what", "seconds", "against", "seconds", "ratio"):
        table.add_column(column, justify="left" if column in ("what", "against") else "right")
    if args.only in (None, "train"):
        for row in joint_rows(args):
            table.add_row(*row)
    if args.only in (None, "policy"):
        policy, forward = policy_pass(args.num_tokens, args.window, args.repeats)
        table.add_row(f"policy, {args.num_tokens} tokens", f"{policy:.4f}", "GPT-2-124M-shaped forward",
                      f"{forward:.3f}", f"{100 * policy / forward:.2f} %")  # fmt: skip
    if args.only in (None, "compress"):
        for row in compressor_rows(args.model, args.num_tokens, args.repeats):
            table.add_row(*row)
    if table.row_count:
        Console().print(table)
    if args.only in (None, "backends"):
        backends = Table(
            title=f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.texts} texts, medians of {args.repeats}"
        )
        columns = (
            "what",
            "threads",
            "tokens/s",
            "CPU us per token",
            "of the tokenizer's",
            "cold start, s",
            "MiB",
            "masks of torch",
        )
        for column in columns:
            backends.add_column(column, justify="left" if column == "what" else "right")
        for row in all_backend_rows(args.model, args.threads, args.texts, args.num_tokens, args.repeats):
            backends.add_row(*row)
        Console(width=150).print(backends)  # also if the output is a file
    if args.only in (None, "service"):
        rows = list(service_rows(args.model, args.num_requests))
        service = Table(
            title=f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.num_requests} requests a line"
        )
        for column in ("clients at once", "requests/s", "CPU ms per request", "p50, ms", "p95, ms", "p99, ms", "slowest, ms",
                       "requests per call", "not 200"):  # fmt: skip
            service.add_column(column, justify="right")
        for row in rows:
            service.add_row(*row)
        Console(width=130).print(service)
    if args.only in (None, "launches"):
        launches = Table(title=f"{args.batch_size} texts of {args.max_length} tokens, torch {torch.__version__}")
        for column in ("forward and backward pass of a", "forwards", "operations", "launches", "waits", "ratio"):
            launches.add_column(column, justify="left" if column.startswith("forward and") else "right")
        for row in launch_rows(args):
            launches.add_row(*row)
        Console(width=130).print(launches)
    if args.only == "bulk":  # it takes minutes, and few have these engines
        rows = list(bulk_rows(args.model, args.num_rows, args.repeats))
        bulk = Table(
            title=f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.num_rows:,} rows, medians of {args.repeats}"
        )
        for column in ("engine", "rows/s, one worker", "two workers", "ratio"):
            bulk.add_column(column, justify="left" if column == "engine" else "right")
        for row in rows:
            bulk.add_row(*row)
        Console(width=130).print(bulk)


if __name__ == "__main__":
    main()

"""Shared by all tests: no network, and a real model small enough to train in a second."""

import gc
import importlib.util
import os
import secrets
import tempfile
from functools import cache


# Before any Hugging Face library is imported: they read these once.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "CI": "1", "TOKENIZERS_PARALLELISM": "false"}
# Ray reads these once a process, when anything imports it; without a token it would leave one in the user's home.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="tokforget-hf-")

import pytest
import torch
from threadpoolctl import threadpool_limits
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tokforget import Compressor
from tokforget.models.folders import export_onnx
from tokforget.models.forget_model import ForgetModel
from tokforget.packaged import reader_model_path


# Tensors here are tiny: two threads that share a core with another process cost more than they bring, and with another
# number of threads sums are rounded otherwise, while some tests compare runs to the bit.
torch.set_num_threads(1)
threadpool_limits(1)

# Of `ForgetConfig`: the joint loop alone from a policy of chance, every text training the reconstructor, rewards in bits. What
# is shown in seconds about a step needs no sampled texts and no warm start.
ALL_BY_GRADIENT = {
    "sampled_texts": 0, "warm_start_steps": 0, "policy_learning_rate": 3e-3, "reconstructor_learning_rate": 2e-3,
    "reward_funcs": ["information_theoretic"], "entropy_coef": 0.05, "reconstructor_text_fraction": 1.0,
}  # fmt: skip


@cache
def packaged_compressor() -> Compressor:
    """The packaged model, loaded once in each process."""
    return Compressor.from_pretrained()


@pytest.fixture
def packaged() -> Compressor:
    return packaged_compressor()


def pytest_collection_finish() -> None:
    """The libraries are imported: no collection needs to go through their million objects again, 0.3 s each time."""
    gc.freeze()


END = "<|endoftext|>"
PAIRS_VOCABULARY = 24


def make_tokenizer(texts: list[str], vocab_size: int = 300) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END)


def make_gpt2(vocab_size: int, seed: int = 0, **config) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    shape = {"n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **(shape | config)))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    words = [
        "the cat sat on the mat",
        "a dog ran to the red house",
        "we saw 12 birds fly over the sea",
        "it rained all day long",
    ]
    return [". ".join(words[(i + j) % 4] + f" {i * 7 % 13}" for j in range(5)) + "." for i in range(60)]


@pytest.fixture(scope="session")
def tokenizer(texts) -> PreTrainedTokenizerFast:
    return make_tokenizer(texts)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory, tokenizer) -> str:
    """A two-layer GPT-2 with its tokenizer, saved as any causal language model is."""
    folder = tmp_path_factory.mktemp("base")
    make_gpt2(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def onnx_folder(tmp_path_factory):
    """The packaged model with its graphs for ONNX Runtime, in both precisions."""
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install 'tokforget[onnx]'")
    folder = tmp_path_factory.mktemp("onnx") / "model"
    export_onnx(reader_model_path(), folder, ("onnx", "onnx-int8"))
    return folder


@pytest.fixture
def model(base_folder, tokenizer) -> ForgetModel:
    return make_model(base_folder, tokenizer)


def make_model(base_folder: str, tokenizer, seed: int = 0, **config) -> ForgetModel:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "dilations": [1, 2], "head_size": 16, "window": 4, "ngram_buckets": 256}
    model = ForgetModel.from_base(base_folder, tokenizer, lora_rank=4, lora_alpha=8, **(shape | config))
    if model.policy.ngrams is not None:
        model.policy.ngrams.fit([list(range(5, 25)) * 3])
    # A fresh policy is indifferent; tests of its arithmetic want one with opinions.
    torch.nn.init.normal_(model.policy.to_logit.weight)
    return model


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Three texts of 12, 7 and 3 tokens: ids `(3, 12)` and their validity."""
    generator = torch.Generator().manual_seed(3)
    valid = torch.arange(12) < torch.tensor([[12], [7], [3]])
    return torch.randint(1, 200, (3, 12), generator=generator).masked_fill(~valid, 0), valid


def pair_texts(num_texts: int, num_tokens: int, seed: int) -> torch.Tensor:
    """Texts in which every second token repeats the first: `(num_texts, num_tokens)` ids from 1 on."""
    firsts = torch.randint(
        1, PAIRS_VOCABULARY, (num_texts, num_tokens // 2), generator=torch.Generator().manual_seed(seed)
    )
    return firsts.repeat_interleave(2, 1)

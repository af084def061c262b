"""
Any causal language model as reconstructor, any fast tokenizer, texts longer than the context: the whole loop on tiny models
of several families, each with a tokenizer of another kind.
"""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.conftest import ALL_BY_GRADIENT
from tokforget import Compressor
from tokforget.data.blocks import load_blocks
from tokforget.evaluation.arguments import EvaluationArguments
from tokforget.evaluation.run import EvaluationRun
from tokforget.models.forget_model import ForgetModel
from tokforget.models.loading import add_adapter
from tokforget.models.reconstructor import LAYOUTS, Reconstructor
from tokforget.models.reconstructor_folder import load_reconstructor, load_trainable
from tokforget.training.config import ForgetConfig
from tokforget.training.forget_trainer import ForgetTrainer
from tokforget.training.warm_start import target_bits, warm_start


ROTARY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "max_position_embeddings": 64}  # fmt: skip
# Special tokens of each kind of tokenizer: no mask and no pad; the same, and a begin token that is put in front by default;
# a pad token that is not the end token; a mask token.
TOKENIZERS = {
    "gpt2": {"eos_token": "</s>"},
    "llama": {"bos_token": "<s>", "eos_token": "</s>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
    "gpt_neox": {"eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"},
    "opt": {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"},
}
BEGIN_ADDED = ("llama", "mistral", "opt")
FAMILIES = list(TOKENIZERS)


def make_tokenizer(kind: str, texts: list[str]) -> PreTrainedTokenizerFast:
    special = TOKENIZERS[kind]
    tokenizer = Tokenizer(models.BPE())
    names = list(dict.fromkeys(special.values()))
    if (
        kind == "llama"
    ):  # SentencePiece's way: a mark for each space, bytes for what is unknown, a first space of its own
        names = ["<unk>", *names]
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        names += [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    alphabet = [] if kind == "llama" else pre_tokenizers.ByteLevel.alphabet()
    # One text at a time and no words: SentencePiece's BPE would else merge across spaces.
    lines = [word for text in texts for word in text.replace(" ", " ▁").split(" ")] if kind == "llama" else texts
    size = len(names) + (120 if kind == "llama" else 320)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    normalizer, tokenizer.normalizer = tokenizer.normalizer, None
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.normalizer = normalizer
    if kind in BEGIN_ADDED:
        begin = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_base(kind: str, vocab_size: int):
    torch.manual_seed(1)
    shape = ROTARY | {"vocab_size": vocab_size}
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0,
                       eos_token_id=0)
        )  # fmt: skip
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2, tie_word_embeddings=False))
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**shape, num_key_value_heads=2, sliding_window=8))
    if kind == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**shape, bos_token_id=0, eos_token_id=0))
    # Its dropout is a function with a rate of 0.1, and its positions are counted from the attention mask.
    return OPTForCausalLM(OPTConfig(vocab_size=vocab_size, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48,
                                    num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64))  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory, texts, source) -> dict[str, tuple[str, PreTrainedTokenizerFast, DatasetDict]]:
    """Folder, tokenizer and blocks of up to 24 tokens for each family."""
    found = {}
    for kind in FAMILIES:
        folder, tokenizer = tmp_path_factory.mktemp(kind), make_tokenizer(kind, texts)
        # A vocabulary rounded up, as many published models have: some ids are no token of the tokenizer.
        make_base(kind, -(-len(tokenizer) // 64) * 64).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[kind] = (str(folder), tokenizer, load_blocks(source, tokenizer, max_length=24))
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory, texts) -> str:
    """Documents that are longer than any model's context here."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    words = sorted({word for text in texts for word in text.replace(".", "").split()})
    draw = random.Random(0)
    documents = [" ".join(draw.choice(words) for _ in range(40)) + "." for _ in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


# Two families are run each time, and all of them in the slow suite.
RUNS = [
    pytest.param((kind, layout), id=f"{kind}-{layout}", marks=() if kind in ("gpt2", "llama") else pytest.mark.slow)
    for kind in FAMILIES for layout in LAYOUTS
]  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def run(request, bases, tmp_path_factory):
    """Warm start, a few joint steps, and the folder that they leave: trainer, tokenizer, folder."""
    kind, layout = request.param
    base, tokenizer, blocks = bases[kind]
    rows = blocks["train"]
    torch.manual_seed(0)
    model = ForgetModel.from_base(
        base, tokenizer, layout=layout, lora_rank=4, lora_alpha=16, hidden_size=16, dilations=[1, 2], head_size=16,
        window=8, ngram_buckets=256,
    )  # fmt: skip
    model.policy.ngrams.fit(rows["input_ids"])
    folder = tmp_path_factory.mktemp("run") / "model"
    rates = {"policy_learning_rate": 1e-2, "reconstructor_learning_rate": 2e-2}
    args = ForgetConfig(
        output_dir=str(folder), **ALL_BY_GRADIENT | rates, max_steps=10, per_device_train_batch_size=8, logging_steps=2, warmup_steps=1, use_cpu=True,
        report_to="none", disable_tqdm=True,
        save_strategy="no", seed=0,
    )  # fmt: skip
    trainer = ForgetTrainer(
        model, args, rows, processing_class=tokenizer, run_record=args.to_dict() | {"layout": layout, "max_length": 24}
    )
    trainer.before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.bits_before = bits_of_training_texts(trainer)
    texts = [torch.tensor(row) for row in rows["input_ids"][:16]]
    trainer.targets = target_bits(model, texts, "self_information")
    trainer.warm_losses = warm_start(
        model, texts, trainer.targets, 60, 0.2, 0.8, seed=0, learning_rate=1e-2, batch_size=8
    )
    trainer.train()
    trainer.save_model(str(folder))
    model.eval()
    return trainer, tokenizer, folder


def bits_of_training_texts(trainer) -> float:
    """Bits of all dropped tokens when every second token of the first texts is missing."""
    rows = trainer.data_collator([trainer.train_dataset[n] for n in range(16)])
    valid = rows["attention_mask"].bool()
    keep_mask = valid & (torch.arange(valid.shape[1]) % 2 == 0)
    with torch.no_grad():
        return float(trainer.model.reconstructor.token_nll(rows["input_ids"], keep_mask, valid).nll.sum())


def held_out(tokenizer, num_texts: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `(3, 20)` and validity of texts of 20, 13 and 5 tokens."""
    valid = torch.arange(20) < torch.tensor([[20], [13], [5]])
    high = len(tokenizer)
    ids = torch.randint(len(tokenizer.all_special_ids), high, valid.shape, generator=torch.Generator().manual_seed(4))
    return ids.masked_fill(~valid, 0), valid


# -- the whole loop ----------------------------------------------------------------------------------------------------
def test_both_parts_learn_and_the_base_does_not(run):
    trainer = run[0]
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, trainer.before[name])}
    frozen = {name for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert not moved & frozen and len(frozen) > 10
    assert any(n.startswith("policy.") for n in moved) and any("lora_" in n for n in moved)
    logs = [log for log in trainer.state.log_history if "reconstruction_loss" in log]
    assert all(math.isfinite(log[key]) for log in logs for key in ("policy_loss", "grad_norm", "bits_lost"))
    assert bits_of_training_texts(trainer) < 0.99 * trainer.bits_before
    assert sum(trainer.warm_losses[-10:]) < sum(trainer.warm_losses[:10])


def test_bits_are_those_of_the_plain_model(run, bases):
    """Without tokforget: the base model, its adapter loaded by PEFT, one unpadded row at a time."""
    trainer, tokenizer, folder = run
    layout = trainer.model.config.layout
    kind = trainer.model.reconstructor.base_model.config.model_type
    plain = AutoModelForCausalLM.from_pretrained(bases[kind][0])
    plain = PeftModel.from_pretrained(plain, folder / "adapter").eval()
    marker = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.eos_token_id
    input_ids, valid = held_out(tokenizer)
    keep_mask = (torch.rand(valid.shape, generator=torch.Generator().manual_seed(5)) < 0.5) & valid
    # In training mode: a forward is reward and loss at once, and no dropout may come between.
    bits = trainer.model.train().reconstructor.token_nll(input_ids, keep_mask, valid).nll
    trainer.model.eval()
    for row, length in enumerate(valid.sum(1).tolist()):
        ids, keep = input_ids[row, :length], keep_mask[row, :length]
        if layout == "prefix":
            shown, options = torch.cat([ids[keep], torch.tensor([marker]), ids]), {}
            first = int(keep.sum())
        else:
            shown, first = torch.cat([torch.tensor([marker]), torch.where(keep, ids, marker)]), 0
            full = torch.zeros(1, 1, length + 1, length + 1)
            options = {"attention_mask": full, "position_ids": torch.arange(length + 1)[None]}
        with torch.no_grad():
            log_p = torch.log_softmax(plain(input_ids=shown[None], **options).logits[0, first:], -1)
        expected = -log_p[torch.arange(length), ids] / math.log(2) * ~keep
        assert torch.allclose(bits[row, :length].float(), expected, atol=2e-4)
        assert not bits[row, length:].any()


def test_what_is_saved_is_what_was_trained(run):
    trainer, tokenizer, folder = run
    again = ForgetModel.from_pretrained(folder)
    input_ids, valid = held_out(tokenizer)
    rate = torch.tensor([0.3, 0.5, 0.7])
    masks = trainer.model.keep_mask(input_ids, valid.long(), rate)
    assert torch.equal(masks, again.keep_mask(input_ids, valid.long(), rate))
    ours, theirs = (m.reconstructor.token_nll(input_ids, masks, valid).nll for m in (trainer.model, again))
    assert torch.equal(ours, theirs) and ours.any()


def test_restoring_keeps_what_was_kept(run):
    trainer, tokenizer, _ = run
    reconstructor, (input_ids, valid) = trainer.model.reconstructor, held_out(tokenizer)
    keep_mask = (torch.rand(valid.shape, generator=torch.Generator().manual_seed(6)) < 0.5) & valid
    restored = reconstructor.restore(input_ids.masked_fill(~keep_mask, 0), keep_mask, valid)
    assert torch.equal(restored.input_ids[keep_mask], input_ids[keep_mask])
    assert (restored.confidence[keep_mask] == 1).all() and not restored.confidence[~valid].any()
    dropped = ~keep_mask & valid
    assert (restored.input_ids[dropped] != reconstructor.marker_token_id).all()
    for row, length in enumerate(valid.sum(1).tolist()):  # a text alone is restored as among others
        alone = reconstructor.restore(*(part[row : row + 1, :length] for part in (input_ids, keep_mask, valid)))
        assert torch.equal(alone.input_ids[0], restored.input_ids[row, :length])


def test_the_target_is_the_plain_model(run, bases):
    trainer = run[0]
    plain = AutoModelForCausalLM.from_pretrained(bases[trainer.model.reconstructor.base_model.config.model_type][0])
    rows = trainer.train_dataset.texts["input_ids"][:2]
    for row, bits in zip(rows, trainer.targets):
        ids = torch.tensor([trainer.model.reconstructor.marker_token_id, *row])
        with torch.no_grad():
            log_p = torch.log_softmax(plain.eval()(input_ids=ids[None]).logits[0, :-1], -1)
        assert torch.allclose(bits, -log_p[torch.arange(len(row)), ids[1:]] / math.log(2), atol=2e-4)


def test_texts_longer_than_the_context(run):
    """The policy knows no limit; restoring goes in windows; a single row that is too long says so."""
    trainer, tokenizer, folder = run
    reconstructor = trainer.model.reconstructor
    words = ["the cat sat on the mat", "we saw 12 birds fly over the sea", "it rained all day long"]
    text = ". ".join(words[i % 3] + f" {i}" for i in range(40)) + "."
    compressor = Compressor.from_pretrained(folder)
    result = compressor.compress(text, rate=0.5)
    total = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert total > 3 * trainer.model.reconstructor.max_tokens and result.original_tokens == total
    assert result.compressed_tokens <= total // 2
    assert result.compressed_tokens == len(tokenizer(result.text, add_special_tokens=False)["input_ids"])
    restored = compressor.restore(result)
    assert len(restored.input_ids) == total
    assert np.array_equal(restored.input_ids[result.keep_mask], result.kept_ids)
    assert compressor.compress(text, rate=1.0).text == text
    whole = torch.ones(1, total, dtype=torch.long)
    for method in (reconstructor.restore, reconstructor.token_nll):
        with pytest.raises(ValueError, match=f"A text of {total} tokens does not fit: in the {reconstructor.layout} "
                                             f"layout this model takes at most {reconstructor.max_tokens}"):  # fmt: skip
            method(whole, whole.bool(), whole.bool())
    limit = reconstructor.max_tokens
    reconstructor.check_max_length(limit)
    fits = whole[:, :limit]
    assert reconstructor.token_nll(fits, ~fits.bool(), fits.bool()).nll.all()
    assert reconstructor.token_nll(fits, (torch.arange(limit) > 0)[None], fits.bool()).nll[0, 0] > 0
    reconstructor.restore(fits, (torch.arange(limit) > 0)[None], fits.bool())
    with pytest.raises(ValueError, match=f"`max_length` \\({limit + 1}\\) exceeds the {limit} tokens"):
        reconstructor.check_max_length(limit + 1)


def test_an_evaluation_beyond_the_judges_context_says_so(run):
    trainer, _, folder = run
    limit = trainer.model.reconstructor.max_tokens
    EvaluationRun(
        EvaluationArguments("unused", model_path=[str(folder)], max_length=limit, min_length=8, use_cpu=True)
    )
    with pytest.raises(ValueError, match=f"`max_length` \\({limit + 1}\\) exceeds the {limit} tokens"):
        EvaluationRun(
            EvaluationArguments("unused", model_path=[str(folder)], max_length=limit + 1, min_length=8, use_cpu=True)
        )


# -- tokenizers --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", FAMILIES)
def test_blocks_hold_the_documents_tokens_and_no_others(kind, bases, source):
    _, tokenizer, blocks = bases[kind]
    added = tokenizer("the cat")["input_ids"][0] == tokenizer.bos_token_id
    assert added == (kind in BEGIN_ADDED), "the tokenizer is of the kind that it is said to be"
    lines = Path(source).read_text().splitlines()
    expected = [tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"] for line in lines]
    assert not {*tokenizer.all_special_ids} & {i for ids in expected for i in ids}
    found: dict[str, list[int]] = {}
    for split in ("train", "validation", "test"):
        for row in blocks[split]:
            assert len(row["input_ids"]) <= 24
            found.setdefault(row["document"], []).extend(row["input_ids"])
    assert min(map(len, expected)) > 24, "each document is longer than a block"
    assert len(found) == 60 and sorted(found.values()) == sorted(expected), "no token is cut off, none is added"


def test_a_tokenizer_without_any_special_token_is_refused(bases, texts):
    bare = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer("gpt2", texts).backend_tokenizer)
    with pytest.raises(ValueError, match="neither a mask nor an end nor a begin token"):
        load_trainable(bases["gpt2"][0], bare, "prefix")


# -- what cannot be ----------------------------------------------------------------------------------------------------
UNIDIRECTIONAL = {
    # Its causal mask is a buffer that no mask of ours opens: the right side would silently be missing.
    "gpt_neo": lambda size: GPTNeoForCausalLM(
        GPTNeoConfig(vocab_size=size, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=64,
                     attention_types=[[["global", "local"], 1]], window_size=8, bos_token_id=0, eos_token_id=0)
    ),
    # Its positions are biases that are computed from a two-dimensional mask.
    "bloom": lambda size: BloomForCausalLM(BloomConfig(vocab_size=size, hidden_size=32, n_layer=2, n_head=4)),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNIDIRECTIONAL)
def test_infill_is_refused_where_a_model_cannot_look_to_the_right(kind, bases, tmp_path):
    tokenizer = bases["gpt2"][1]
    torch.manual_seed(1)
    UNIDIRECTIONAL[kind](len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for load in (load_trainable, load_reconstructor):
        with pytest.raises(
            ValueError, match=f"'infill' needs attention to both sides, which a model of type '{kind}'"
        ):
            load(str(tmp_path), tokenizer, "infill")
    reconstructor = load_trainable(str(tmp_path), tokenizer, "prefix")
    input_ids, valid = held_out(tokenizer)
    assert (reconstructor.token_nll(input_ids, ~valid, valid).nll[valid] > 0).all()


def test_dropout_is_off_wherever_it_is_written_down():
    for model in (make_base("opt", 64), make_base("gpt2", 64)):
        reconstructor = Reconstructor(add_adapter(model, 2, 4), "prefix", marker_token_id=0).train()
        ids, valid = torch.arange(1, 13)[None], torch.ones(1, 12, dtype=torch.bool)
        first, second = (reconstructor.token_nll(ids, ~valid, valid).nll for _ in range(2))
        assert torch.equal(first, second)

"""The model folder: what is in it, what comes back, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.conftest import make_model
from tokforget import Compressor
from tokforget.hub.staging import stage
from tokforget.models.forget_model import ForgetModel, check_model_folder
from tokforget.models.loading import load_base_model, load_tokenizer


@pytest.fixture
def saved(model, tmp_path):
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def masks(model, batch):
    model.eval()
    return model.keep_mask(batch[0], batch[1].long(), torch.tensor([0.3, 0.5, 0.7]))


def test_a_fresh_adapter_changes_nothing(base_folder, model, batch):
    plain = AutoModelForCausalLM.from_pretrained(base_folder)(batch[0]).logits
    assert torch.equal(model.reconstructor.model(batch[0]).logits, plain)


def test_the_folder_holds_policy_and_adapter_apart(saved):
    assert sorted(os.listdir(saved)) == ["adapter", "config.json", "model.safetensors"]
    assert sorted(os.listdir(saved / "adapter")) == ["adapter_config.json", "adapter_model.safetensors"]
    assert all(name.startswith("policy.") for name in load_file(saved / "model.safetensors"))
    assert all("lora_" in name for name in load_file(saved / "adapter" / "adapter_model.safetensors"))


@pytest.mark.parametrize("loader", [ForgetModel, AutoModel])
def test_what_is_loaded_is_what_was_saved(loader, saved, model, batch):
    loaded = loader.from_pretrained(saved)
    assert isinstance(loaded, ForgetModel)
    expected = {n: p for n, p in model.state_dict().items() if "base_embeddings" not in n}
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    keep_mask = masks(model, batch)
    assert torch.equal(masks(loaded, batch), keep_mask)
    with torch.no_grad():
        scores = [m.reconstructor.token_nll(batch[0], keep_mask, batch[1]).nll for m in (model.eval(), loaded.eval())]
    assert torch.equal(*scores)


def test_the_policy_alone_decides_the_same_without_the_base_model(saved, model, batch):
    alone = ForgetModel.from_pretrained(saved, with_reconstructor=False)
    assert alone.reconstructor is None
    assert torch.equal(masks(alone, batch), masks(model, batch))


def test_peft_loads_the_adapter_by_itself(saved, base_folder, model, batch):
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    plain = PeftModel.from_pretrained(base, saved / "adapter").eval()
    assert torch.equal(plain(batch[0]).logits, model.reconstructor.model.eval()(batch[0]).logits)


def test_training_goes_on_from_a_folder(saved, tokenizer, model):
    """`reconstructor_name_or_path` takes a model folder: its adapter, a fresh policy."""
    again = ForgetModel.from_base(str(saved), tokenizer, hidden_size=16, ngram_buckets=0)
    ours, theirs = (dict(m.reconstructor.named_parameters()) for m in (model, again))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) and ours[n].requires_grad == theirs[n].requires_grad for n in ours)


def test_config_survives(saved, model):
    config = AutoConfig.from_pretrained(saved)
    assert config.model_type == "tokforget"
    for name in ("window", "dilations", "layout", "vocab_size", "marker_token_id", "base_model_name_or_path"):
        assert getattr(config, name) == getattr(model.config, name)


def test_trained_and_untrained_differ(base_folder, tokenizer, batch):
    first, second = (make_model(base_folder, tokenizer, seed=seed) for seed in (0, 1))
    assert not torch.equal(masks(first, batch), masks(second, batch))


# -- refused -----------------------------------------------------------------------------------------------------------
def test_a_folder_that_is_no_model(tmp_path, base_folder):
    with pytest.raises(ValueError, match="is not a tokforget model: it lacks config.json"):
        ForgetModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it lacks adapter/adapter_config.json"):
        ForgetModel.from_pretrained(base_folder)


@pytest.mark.parametrize("name", ["no/such-model", "outputs/not/there"])
def test_a_name_that_is_neither_here_nor_on_the_hub(name):
    with pytest.raises(ValueError, match="is no local folder and could not be had from the Hub"):
        ForgetModel.from_pretrained(name)


@pytest.mark.parametrize("load", [load_tokenizer, load_base_model])
def test_offline_nothing_is_said_of_a_connection(load, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="never downloaded here, and HF_HUB_OFFLINE is set. Unset that variable"
    ) as error:
        load("nobody/no-such-model")
    assert "onnection" not in str(error.value) and "\n" not in str(error.value)


def test_another_kind_of_model(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="of type 'gpt2'"):
        ForgetModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter/adapter_model.safetensors"])
def test_truncated_weights(saved, name):
    (saved / name).write_bytes((saved / name).read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        ForgetModel.from_pretrained(saved)


def test_weights_of_another_shape(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"hidden_size": 24}))
    with pytest.raises(ValueError, match="does not fit its config.json"):
        ForgetModel.from_pretrained(saved)


def test_a_tokenizer_larger_than_the_model(base_folder):
    words = {"<|endoftext|>": 0, **{f"w{i}": i for i in range(1, 400)}}
    wide = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w1")), eos_token="<|endoftext|>"
    )
    with pytest.raises(ValueError, match="embeds only 300"):
        ForgetModel.from_base(base_folder, wide)


def test_a_model_without_a_known_vocabulary():
    from tokforget.models.forget_model import ForgetModelConfig

    with pytest.raises(ValueError, match="needs to know the base model's vocabulary, got vocab_size=0"):
        ForgetModel(ForgetModelConfig())


def test_an_interrupted_save_keeps_the_former_weights(saved, model, monkeypatch):
    """Killed while the weights are written: what was there before still loads."""
    from tokforget.models import forget_model as modeling

    before = load_file(saved / "model.safetensors")

    def dies(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(modeling, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(saved)
    check_model_folder(saved)
    after = load_file(saved / "model.safetensors")
    assert all(torch.equal(before[n], after[n]) for n in before)
    ForgetModel.from_pretrained(saved)


def test_a_local_base_is_found_from_elsewhere_or_missed_in_one_line(base_folder, tokenizer, tmp_path, monkeypatch):
    shutil.copytree(base_folder, tmp_path / "mybase")
    monkeypatch.chdir(tmp_path)
    model = make_model("mybase", tokenizer)
    model.save_pretrained("saved")
    tokenizer.save_pretrained("saved")
    result = Compressor.from_pretrained("saved").compress("the cat sat on the mat", rate=0.5)
    (tmp_path / "elsewhere").mkdir()
    compressor = Compressor.from_pretrained("saved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert compressor.restore(result, progress=False).is_restoration
    assert ForgetModel.from_pretrained(tmp_path / "saved").config.base_model_name_or_path == str(tmp_path / "mybase")

    stage(tmp_path / "saved", tmp_path / "pushed", "user/model")
    card = (tmp_path / "pushed" / "README.md").read_text()
    assert str(tmp_path) not in card and "base_model:" not in card and "`mybase`" in card
    assert ForgetModel.from_pretrained(tmp_path / "pushed").reconstructor is not None
    shutil.rmtree(tmp_path / "mybase")
    with pytest.raises(
        ValueError, match=r"The base model '.*mybase' is a local folder that is not there\. Put it there, or"
    ):
        ForgetModel.from_pretrained(tmp_path / "pushed")

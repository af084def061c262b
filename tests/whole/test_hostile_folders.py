"""Folders from elsewhere: whatever is wrong with one is refused in one line, runs nothing and takes no memory."""

import json
import pickle
import random
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.conftest import make_model
from tests.training.test_forget_trainer import make_trainer
from tokforget.compression.compressor import Compressor
from tokforget.models.forget_model import ForgetModel
from tokforget.models.loading import load_tokenizer
from tokforget.models.reconstructor_folder import load_reconstructor
from tokforget.training.checkpoints import check_checkpoint, last_checkpoint
from tokforget.training.faults import CheckpointError


class Bomb:
    """What a pickle can do when it is read: here, leave a file behind."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base_folder, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    make_model(base_folder, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def load_compressor(folder: Path, tokenizer) -> object:
    return Compressor.from_pretrained(folder)


def load_model(folder: Path, tokenizer) -> object:
    return ForgetModel.from_pretrained(folder)


def load_adapter_alone(folder: Path, tokenizer) -> object:
    return load_reconstructor(str(folder / "adapter"), tokenizer, "prefix")


def load_base(folder: Path, tokenizer) -> object:
    load_tokenizer(str(folder))
    return load_reconstructor(str(folder), tokenizer, "prefix")


def refused(load: Callable, folder: Path, tokenizer, message: str = "") -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as caught:
        load(folder, tokenizer)
    text = str(caught.value)
    assert "\n" not in text and message in text, text
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, f"{grown} KiB were taken for what was refused"


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# -- configs -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 10**12}, "`vocab_size` must be"),
        ({"vocab_size": 2**24, "hidden_size": 2**16}, "does not fit its config.json"),
        ({"ngram_buckets": 2**50}, "`ngram_buckets` must be"),
        ({"ngram_buckets": 2**40}, "does not fit its config.json"),
        ({"ngram_buckets": 255}, "power of two"),
        ({"base_hidden_size": 2**20}, "does not fit its config.json"),
        ({"head_size": 2**16}, "does not fit its config.json"),
        ({"hidden_size": True}, "`hidden_size` must be"),
        ({"hidden_size": "16"}, "`hidden_size` must be"),
        ({"hidden_size": None}, "`hidden_size` must be"),
        ({"window": 0}, "`window` must be"),
        ({"window": 4.0}, "`window` must be"),
        ({"dilations": [1] * 10**5}, "`dilations` must be"),
        ({"dilations": [1, 10**9]}, "`dilations` must be"),
        ({"dilations": {}}, "`dilations` must be"),
        ({"logit_bound": float("nan")}, "`logit_bound` must be"),
        ({"logit_bound": float("inf")}, "`logit_bound` must be"),
        ({"layout": "../prefix"}, "`layout` must be"),
        ({"marker_token_id": 10**6}, "`marker_token_id` must be"),
        ({"model_type": "gpt2"}, "of type 'gpt2'"),
        ({"model_type": ["tokforget"]}, "of type ['tokforget']"),
        ({"auto_map": {"AutoModel": "modeling_evil.Evil"}}, "asks for code of its own"),
        ({"base_model_name_or_path": ""}, "`base_model_name_or_path` must be"),
        ({"base_model_name_or_path": {"a": 1}}, "`base_model_name_or_path` must be"),
        ({"base_model_name_or_path": "http://127.0.0.1/model"}, "`base_model_name_or_path` must be"),
        ({"base_model_name_or_path": "a\x00b"}, "`base_model_name_or_path` must be"),
        ({"base_model_revision": 7}, "`base_model_revision` must be"),
    ],
)
def test_config_that_is_refused(values, message, folder, tokenizer):
    edit(folder / "config.json", **values)
    refused(load_compressor, folder, tokenizer, message)
    refused(load_model, folder, tokenizer, message)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b"\xff\xfe\x00", b"[" * 10**5, b"null", b" " * (2**26 + 1)]
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "adapter/adapter_config.json"])
def test_json_that_is_no_mapping(name, content, folder, tokenizer):
    (folder / name).write_bytes(content)
    refused(load_adapter_alone if "adapter" in name else load_model, folder, tokenizer, name)


def test_code_beside_the_config_is_not_run(folder, tokenizer, tmp_path):
    trace = tmp_path / "trace"
    (folder / "modeling_evil.py").write_text(f"open({str(trace)!r}, 'w')\n")
    names = {"AutoConfig": "modeling_evil.Evil", "AutoTokenizer": ["modeling_evil.Evil", None]}
    edit(folder / "tokenizer_config.json", auto_map=names)
    for load in (load_compressor, load_model):
        refused(load, folder, tokenizer, "asks for code of its own")
    edit(folder / "adapter/adapter_config.json", auto_map=names)
    refused(load_adapter_alone, folder, tokenizer, "asks for code of its own")
    assert not trace.exists()


# -- adapters ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 10**9}, "`r` must be"),
        ({"r": 2}, "could not be loaded"),
        ({"rank_pattern": {".*": 10**9}}, "`rank_pattern` must be"),
        ({"rank_pattern": [4]}, "`rank_pattern` must be"),
        ({"lora_alpha": "8"}, "`lora_alpha` must be"),
        ({"peft_type": "XLORA"}, "`peft_type` must be"),
        ({"auto_mapping": {"base_model_class": "Popen", "parent_library": "subprocess"}}, "`auto_mapping` must be"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "`megatron_config` must be"),
        ({"layer_replication": [[0, 10**6]]}, "`layer_replication` must be"),
        ({"base_model_name_or_path": None}, "`base_model_name_or_path` must be"),
        ({"base_model_name_or_path": "https://127.0.0.1/x"}, "`base_model_name_or_path` must be"),
        ({"base_model_name_or_path": "../" * 20 + "etc"}, "could not be loaded"),
        ({"base_model_name_or_path": "no-such/model"}, "could not be loaded"),
        ({"target_modules": ["c_proj"]}, "does not fit"),
        ({"target_modules": ["no_such_layer"]}, "could not be loaded"),
        ({"target_modules": 7}, "could not be loaded"),
        ({"modules_to_save": ["wte"]}, "could not be loaded"),
    ],
)
def test_adapter_that_is_refused(values, message, folder, tokenizer):
    edit(folder / "adapter/adapter_config.json", **values)
    refused(load_adapter_alone, folder, tokenizer, message)


def test_adapter_of_other_names_is_not_drawn_anew(folder, tokenizer):
    path = folder / "adapter/adapter_model.safetensors"
    weights = load_file(path)
    first = next(name for name in weights if "lora_B" in name)
    save_file({name.replace("lora_B", "lora_b") if name == first else name: t for name, t in weights.items()}, path)
    for load in (load_adapter_alone, load_model):
        refused(load, folder, tokenizer, "does not fit")


# -- weights -----------------------------------------------------------------------------------------------------------
def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def oversized_header(data: bytes) -> bytes:
    return (2**40).to_bytes(8, "little") + data[8:]


def no_bytes(data: bytes) -> bytes:
    return b""


def longer(data: bytes) -> bytes:
    return data + b"more"


def one_huge_tensor(data: bytes) -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(64)


@pytest.mark.parametrize("damage", [cut, oversized_header, no_bytes, longer, one_huge_tensor])
@pytest.mark.parametrize("name", ["model.safetensors", "adapter/adapter_model.safetensors"])
def test_damaged_weights(damage, name, folder, tokenizer):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    refused(load_model, folder, tokenizer, "is not a whole safetensors file")
    refused(load_adapter_alone if "adapter" in name else load_compressor, folder, tokenizer, "is not a whole")


def test_weights_of_other_shapes(folder, tokenizer):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["policy.norm.weight"] = torch.zeros(17)
    save_file(weights, path)
    for load in (load_compressor, load_model):
        refused(load, folder, tokenizer, "'policy.norm.weight'")


# -- pickles and links -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl", "weights.pt", "adapter/adapter_model.bin"])
def test_pickles_are_refused_unread(name, folder, tokenizer, tmp_path):
    trace = tmp_path / "trace"
    (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    refused(load_model, folder, tokenizer, "is a pickle")
    if "adapter" in name:
        (folder / "adapter/adapter_model.safetensors").unlink()
        refused(load_adapter_alone, folder, tokenizer, "is a pickle")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "adapter", "adapter/adapter_config.json"])  # fmt: skip
def test_links_out_of_the_folder_are_refused(name, folder, tokenizer, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder / name, elsewhere)
    (folder / name).symlink_to(Path("../" * (1 + name.count("/"))) / "elsewhere")
    refused(load_model, folder, tokenizer, "is a link to outside")
    if "adapter" not in name:
        refused(load_compressor, folder, tokenizer, "is a link to outside")


def test_links_within_the_folder_and_to_the_folder_load(folder, tokenizer, tmp_path):
    shutil.move(folder / "model.safetensors", folder / "weights-1")
    (folder / "model.safetensors").symlink_to("weights-1")
    (tmp_path / "latest").symlink_to(folder)
    assert load_model(tmp_path / "latest", tokenizer) and load_compressor(tmp_path / "latest", tokenizer)


@pytest.mark.parametrize("evil", [False, True])
def test_the_hub_cache_is_made_of_links(evil, whole, tokenizer, tmp_path):
    """`snapshots/<commit>/<file>` is a link to `../../blobs/<hash>`, from `adapter/` one level higher."""
    repository = tmp_path / "models--user--name"
    snapshot = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in whole.rglob("*") if p.is_file())):
        shutil.copy(path, repository / "blobs" / str(number))
        link = snapshot / path.relative_to(whole)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("../" * len(link.relative_to(repository).parent.parts)) / "blobs" / str(number))
    if evil:
        shutil.copy(whole / "config.json", tmp_path / "config.json")
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to("../../../config.json")
        refused(load_compressor, snapshot, tokenizer, "is a link to outside")
    else:
        assert load_compressor(snapshot, tokenizer) and load_model(snapshot, tokenizer)
        assert load_adapter_alone(snapshot, tokenizer)


# -- tokenizers --------------------------------------------------------------------------------------------------------
def test_tokenizer_that_is_refused(folder, tokenizer):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    for broken in (b"", b"{}", b"[" * 10**5, b"\xff", json.dumps(content | {"model": {"type": "None"}}).encode()):
        path.write_bytes(broken)
        refused(load_compressor, folder, tokenizer, "tokenizer.json is not a tokenizer")
    content["model"]["vocab"]["zebra"] = 10**9
    path.write_text(json.dumps(content))
    refused(load_compressor, folder, tokenizer, "token ids up to 1000000000")
    with path.open("wb") as file:
        file.truncate(2**28)  # a hole: it takes no room on the disk
    refused(load_compressor, folder, tokenizer, "a tokenizer has at most")


# -- base models -------------------------------------------------------------------------------------------------------
@pytest.fixture
def base(base_folder, tmp_path) -> Path:
    return Path(shutil.copytree(base_folder, tmp_path / "base"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_layer": 10**7}, "`n_layer` is 1e+07"),
        ({"n_layer": 300}, "weights, and"),
        ({"vocab_size": 10**12}, "`vocab_size` is 1e+12"),
        ({"vocab_size": 10**8}, "weights, and"),
        ({"n_embd": 64}, "could not be loaded"),
        ({"n_embd": "x"}, "could not be loaded"),
        ({"n_positions": 10**9}, "weights, and"),
        ({"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, "asks for code of its own"),
        ({"model_type": "evil"}, "could not be loaded"),
    ],
)
def test_base_model_that_is_refused(values, message, base, tokenizer):
    edit(base / "config.json", **values)
    refused(load_base, base, tokenizer, message)


def test_base_model_as_a_pickle(base, tokenizer, tmp_path):
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    refused(load_base, base, tokenizer, "holds no model.safetensors")
    assert not (tmp_path / "trace").exists()


def test_shards_outside_of_the_folder(base, tokenizer, tmp_path):
    shutil.move(base / "model.safetensors", tmp_path / "x.safetensors")
    index = {
        "metadata": {},
        "weight_map": {name: "../x.safetensors" for name in load_file(tmp_path / "x.safetensors")},
    }
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(load_base, base, tokenizer, "names weights outside of its folder")


def test_base_model_of_another_shape_than_the_policy_was_trained_over(folder, base, tokenizer):
    other = make_model(str(base), tokenizer)
    other.reconstructor.base_model.resize_token_embeddings(400)
    other.reconstructor.base_model.save_pretrained(base)
    edit(folder / "config.json", base_model_name_or_path=str(base))
    refused(load_model, folder, tokenizer, "was trained over embeddings")


# -- checkpoints -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory, base_folder, tokenizer) -> Path:
    out = tmp_path_factory.mktemp("run")
    make_trainer(base_folder, tokenizer, out, max_steps=4, save_strategy="steps", save_steps=2).train()
    return out


def replace_by_bomb(path: Path, trace: Path) -> None:
    torch.save({"state": Bomb(trace), "param_groups": []}, path)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_pickles_of_a_checkpoint_run_nothing(name, run, base_folder, tokenizer, tmp_path):
    out = Path(shutil.copytree(run, tmp_path / "run"))
    replace_by_bomb(out / "checkpoint-2" / name, tmp_path / "trace")
    trainer = make_trainer(base_folder, tokenizer, out, max_steps=4)
    with pytest.raises(CheckpointError) as caught:
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    assert "\n" not in str(caught.value) and "does not fit this run" in str(caught.value)
    assert not (tmp_path / "trace").exists()


def test_a_damaged_checkpoint_is_left_out(run, tmp_path, caplog):
    names = [path.relative_to(run / "checkpoint-4") for path in (run / "checkpoint-4").rglob("*") if path.is_file()]
    needed = [n for n in names if n.suffix in (".pt", ".pth", ".safetensors") or n.name == "trainer_state.json"]
    assert len(needed) == 6
    for number, name in enumerate(needed):
        out = Path(shutil.copytree(run, tmp_path / str(number)))
        path = out / "checkpoint-4" / name
        path.write_bytes(path.read_bytes()[:-100])
        assert last_checkpoint(out) == out / "checkpoint-2" and str(path) in caplog.text, name
        path.unlink()
        assert last_checkpoint(out) == out / "checkpoint-2", name


def test_a_flipped_bit_in_the_optimizer_is_found(run, tmp_path):
    out = Path(shutil.copytree(run, tmp_path / "run"))
    path = out / "checkpoint-4" / "optimizer.pt"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        tensor = archive.read(largest)
    data = bytearray(path.read_bytes())
    data[data.index(tensor) + len(tensor) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        check_checkpoint(out / "checkpoint-4")


@pytest.mark.parametrize("tag", ["../elsewhere", "", "..", "global_step9", "/tmp"])
def test_a_sharded_checkpoint_names_a_folder_beside_it(tag, run, tmp_path):
    """DeepSpeed's `latest` says which folder to read, and it reads pickles."""
    out = Path(shutil.copytree(run, tmp_path / "run"))
    (tmp_path / "run" / "elsewhere").mkdir()
    (out / "checkpoint-4" / "global_step4").mkdir()
    (out / "checkpoint-4" / "latest").write_text("global_step4")
    check_checkpoint(out / "checkpoint-4")
    (out / "checkpoint-4" / "latest").write_text(tag)
    with pytest.raises(ValueError, match="is no folder beside it"):
        check_checkpoint(out / "checkpoint-4")


def test_a_checkpoint_of_another_model_is_refused(run, base_folder, tokenizer, tmp_path):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, max_steps=4)
    trainer.model = make_model(base_folder, tokenizer, hidden_size=32)
    with pytest.raises(CheckpointError, match="does not fit"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))


# -- anything ----------------------------------------------------------------------------------------------------------
def corrupt(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    kind = draw.choice(["flip", "cut", "garbage", "insert", "header"])
    at = draw.randrange(min(len(data), 3000) if kind == "header" else len(data))
    if kind in ("flip", "header"):
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = draw.randbytes(draw.randrange(1, 9))
    else:
        data[at : at + 16] = draw.randbytes(16)
    path.write_bytes(data)


def loads_or_is_refused(whole: Path, target: Path, tokenizer, seed: int) -> list[bool]:
    draw = random.Random(seed)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(whole, target)
    corrupt(draw.choice(sorted(p for p in target.rglob("*") if p.is_file())), draw)
    loaded = []
    for load in (load_compressor, load_model, load_adapter_alone):
        try:
            load(target, tokenizer)
            loaded.append(True)
        except ValueError as error:
            assert "\n" not in str(error), f"seed {seed}: {error}"
            loaded.append(False)
    return loaded


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**9))
def test_a_corrupt_file_loads_or_is_refused(seed, whole, tokenizer, tmp_path_factory):
    assert len(loads_or_is_refused(whole, tmp_path_factory.getbasetemp() / "corrupt", tokenizer, seed)) == 3


@pytest.mark.slow
def test_many_corrupt_files_load_or_are_refused(whole, tokenizer, tmp_path):
    results = [loads_or_is_refused(whole, tmp_path / "corrupt", tokenizer, seed) for seed in range(400)]
    refusals = sum(not all(loaded) for loaded in results)
    assert 100 < refusals < 400, f"{refusals} of 400 refused: the corruptions are too weak or too strong"

"""
What fresh processes do with the loopback Hub: `python -m tests.support.hub_clients <function> <arguments as JSON>`.

A process of its own because `HF_ENDPOINT` is read when huggingface_hub is imported. Prints one JSON object at the end.
"""

import contextlib
import io
import json
import logging
import re
import sys
import warnings
from pathlib import Path


warnings.filterwarnings("ignore", category=FutureWarning)
TEXTS = ["we saw 12 birds fly over the sea. it rained all day long.", "a dog ran to the red house 7"]


def digest(module) -> str:
    """Of all weights of a torch module, bit by bit."""
    import hashlib

    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(
            tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else str(tensor).encode()
        )
    return total.hexdigest()


def recipe(name: str, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a recipe."""
    from importlib import import_module

    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            import_module(f"recipes.{name}").main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


# -- sending -----------------------------------------------------------------------------------------------------------
def train_and_push(base: str, out: str, data: str) -> dict:
    """Both trainers with `push_to_hub`, the model's own methods, and the recipe."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer

    from tokforget import ForgetConfig, ForgetModel, ForgetTrainer, ReconstructorConfig, ReconstructorTrainer
    from tokforget.hub import client as hub
    from tokforget.models.reconstructor_folder import load_trainable

    hub._WAITS = (0.05, 0.05)
    log = io.StringIO()
    logging.getLogger("tokforget").addHandler(logging.StreamHandler(log))
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    texts = Dataset.from_dict({"input_ids": torch.randint(1, 200, (4, 16)).tolist()})
    common = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": [], "disable_tqdm": True,
              "save_steps": 1, "push_to_hub": True, "logging_steps": 1}  # fmt: skip
    shape = {"hidden_size": 16, "dilations": [1, 2], "head_size": 16, "window": 4, "ngram_buckets": 256}
    joint = Path(out, "joint")
    joint.mkdir(parents=True)
    (joint / "notes.txt").write_text("not for others")
    model = ForgetModel.from_base(base, tokenizer, lora_rank=4, lora_alpha=8, **shape)
    args = ForgetConfig(
        output_dir=str(joint),
        hub_model_id="user/joint",
        hub_strategy="every_save",
        num_masks=2,
        sampled_texts=0,
        warm_start_steps=0,
        reconstructor_text_fraction=1.0,
        **common,
    )
    trainer = ForgetTrainer(model, args, texts, processing_class=tokenizer)
    trainer.train()
    pushed = trainer.push_to_hub()

    reconstructor = load_trainable(base, tokenizer, "prefix", lora_rank=4, lora_alpha=8)
    out_dir = str(Path(out, "restorer"))
    args = ReconstructorConfig(output_dir=out_dir, hub_model_id="user/restorer", hub_private_repo=True, **common)
    record = args.to_dict() | {"layout": "prefix", "base_model_name_or_path": base, "lora_rank": 4, "use_peft": True}
    restorer = ReconstructorTrainer(reconstructor, args, texts, processing_class=tokenizer, run_record=record)
    restorer.train()
    restorer.push_to_hub(commit_message="a restorer")

    model.push_to_hub("user/bare", private=True, commit_message="weights")
    tokenizer.push_to_hub("user/bare")
    model.save_pretrained(Path(out, "saved"), push_to_hub=True, repo_id="user/saved", revision="next")
    data_pushed = recipe("push_to_hub", "--folder", data, "--repo_id", "user/data", "--commit_message", "the data")
    model_pushed = recipe("push_to_hub", "--folder", str(joint), "--repo_id", "by-name", "--license", "mit")
    return {"commit": pushed.commit, "log": log.getvalue(), "data": data_pushed, "by_name": model_pushed}


# -- getting -----------------------------------------------------------------------------------------------------------
def load_everything(base: str, out: str, data: str, first: str) -> dict:
    """Every client's way of getting what was sent, each compared with the folder it was sent from."""
    from datasets import load_dataset
    from peft import PeftModel
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    from tokforget import Compressor, ForgetModel
    from tokforget.data.blocks import data_fingerprint, load_blocks
    from tokforget.models.loading import load_tokenizer
    from tokforget.models.reconstructor_folder import load_reconstructor, load_trainable

    same, joint = {}, str(Path(out, "joint"))

    def texts(compressor) -> list:
        return [(r.text, r.kept_ids.tolist()) for r in compressor.compress(TEXTS, rate=0.5)]

    local = Compressor.from_pretrained(joint, backend="torch")
    same["compressor"] = texts(Compressor.from_pretrained("user/joint")) == texts(local)
    checkpoint = Compressor.from_pretrained(str(Path(joint, "checkpoint-1")), backend="torch")
    old = Compressor.from_pretrained("user/joint", revision=first, backend="torch")
    same["compressor of a commit"] = digest(old.policy) == digest(checkpoint.policy) != digest(local.policy)
    same["compressor of a tag"] = digest(
        Compressor.from_pretrained("user/joint", revision="v1", backend="torch").policy
    ) == digest(old.policy)
    mine = ForgetModel.from_pretrained(joint)
    same["ForgetModel"] = digest(ForgetModel.from_pretrained("user/joint")) == digest(mine)
    found = AutoModel.from_pretrained("user/joint", revision="main")
    same["AutoModel"] = type(found) is ForgetModel and digest(found) == digest(mine)
    saved = AutoModel.from_pretrained("user/saved", revision="next")
    same["a branch"] = digest(saved) == digest(mine)
    same["ForgetModel.push_to_hub"] = texts(Compressor.from_pretrained("user/bare")) == texts(local)
    adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "user/joint", subfolder="adapter")
    same["PeftModel"] = digest(adapter) == digest(mine.reconstructor.model)
    tokenizer = AutoTokenizer.from_pretrained("user/joint")
    same["tokenizer"] = tokenizer.get_vocab() == AutoTokenizer.from_pretrained(joint).get_vocab()
    restorer, own = (
        load_reconstructor("user/restorer", tokenizer),
        load_reconstructor(str(Path(out, "restorer")), tokenizer),
    )
    same["reconstructor"] = digest(restorer) == digest(own) and restorer.layout == "prefix"
    trainable = load_trainable("user/restorer", load_tokenizer("user/restorer"), "prefix")
    same["going on with a reconstructor"] = digest(trainable) == digest(own)
    same["a reconstructor's revision"] = digest(
        load_trainable("user/restorer", tokenizer, "prefix", "main")
    ) == digest(own)
    blocks, local_blocks = load_dataset("user/data"), load_blocks(data, tokenizer, 24, 4)
    manifest = json.loads(Path(data, "manifest.json").read_text())
    same["load_dataset"] = all(blocks[split][:] == local_blocks[split][:] for split in local_blocks)
    same["fingerprint"] = data_fingerprint(blocks) == manifest["fingerprint"]
    same["load_blocks"] = data_fingerprint(load_blocks("user/data", tokenizer, 24, 4)) == manifest["fingerprint"]
    try:
        load_blocks("user/changed", tokenizer, 24, 4)
        same["changed blocks"] = "were accepted"
    except ValueError as error:
        same["changed blocks"] = "are not those of their manifest.json" in str(error)
    try:
        load_trainable("user/restorer", tokenizer, "infill")
        same["another layout"] = "was accepted"
    except ValueError as error:
        same["another layout"] = "was trained for 'prefix'" in str(error)
    return {"same": same, "cards": {name: run_card(name) for name in ("user/joint", "user/restorer", "user/data")}}


def run_card(repo_id: str) -> str:
    """What the code of a card prints, copied from the Hub and run as it stands."""
    from huggingface_hub import hf_hub_download

    repo_type = "dataset" if repo_id == "user/data" else "model"
    card = Path(hf_hub_download(repo_id, "README.md", repo_type=repo_type)).read_text()
    out = io.StringIO()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    with contextlib.redirect_stdout(out):
        for block in blocks:
            exec(compile(block, repo_id, "exec"), {})
    return f"{len(blocks)} blocks: {out.getvalue()}"


# -- faults ------------------------------------------------------------------------------------------------------------
def ask_for(fault: list | None) -> int:
    """Let the Hub fail as told, from now on; how often the fault before struck."""
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    request = Request(f"{constants.ENDPOINT}/faults", json.dumps(fault).encode(), method="POST")
    with urlopen(request) as answer:
        return json.load(answer)["struck"]


def send_under_faults(folder: str, cases: list) -> list:
    """Send a folder once per case (repository, fault, token): what came of it in words, and how often the fault struck."""
    from tokforget.hub import client as hub

    hub._WAITS = (0.05, 0.05)
    said = []
    for repo_id, fault, token in cases:
        ask_for(fault)
        try:
            done = hub.upload(folder, repo_id, token=token, message="a push")
            words = f"done {done.repo_id}"
        except hub.HubError as error:
            words = f"refused {error}"
        said.append((words, ask_for(None)))
    return said


def send_again(folders: list) -> list:
    """Send several folders one after another to the same repository (folder, revision, mark): where each arrived."""
    from tokforget.hub import client as hub

    hub._WAITS = (0.05, 0.05)
    said = []
    for folder, revision, mark in folders:
        try:
            owned = ("*.json", "*.safetensors", "README.md")
            said.append(
                hub.upload(folder, "user/model", revision=revision, message="a push", owned=owned, mark=mark).commit
            )
        except hub.HubError as error:
            said.append(str(error))
    return said


def download_under_faults(cases: list) -> list:
    """Download into an empty cache once per case (repository, fault, options): `ok` or the error."""
    import tempfile

    from tokforget.models.folders import local_folder

    said = []
    for name, fault, options in cases:
        ask_for(fault)
        with tempfile.TemporaryDirectory() as cache:
            try:
                folder = local_folder(name, cache_dir=cache, **options)
                words = f"ok {len([path for path in folder.rglob('*') if path.is_file()])}"
            except ValueError as error:
                words = str(error)
        said.append((words, ask_for(None)))
    return said


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        result = globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps(result))

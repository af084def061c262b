"""Sending to the Hub: the real client against a Hub on this machine, whole pushes, broken ones, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loopback_hub import READ_TOKEN, ROOT, TOKEN, LoopbackHub


pytestmark = pytest.mark.slow


SEND = """
import logging, sys
logging.basicConfig(format="%(message)s", level=logging.WARNING)
from tokforget import hub
hub._WAITS = (0.05, 0.05)
folder, revision = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
try:
    done = hub.upload(folder, "user/model", revision=revision, message="a push", owned=("*.json", "*.safetensors", "README.md"))
    print("done", done.repo_id, done.commit)
except hub.HubError as error:
    print("refused", error)
"""


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small file, a large one for the other store, and a card."""
    folder = tmp_path / "folder"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "adapter" / "weights.safetensors").write_bytes(bytes(range(256)) * 400)
    (folder / "README.md").write_text("---\ntags:\n- tokforget\n---\n\n# A model\n")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def send(env: dict[str, str], folder: Path, *words: str) -> tuple[str, str]:
    """What a fresh process prints when it sends the folder, and what it logs."""
    done = subprocess.run(
        [sys.executable, "-c", SEND, folder, *words], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, done.stdout
    return done.stdout, done.stderr


# -- what goes wrong is retried, or one line ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "path", "status", "headers"),
    [
        ("PUT", "/store/", 0, {}),
        ("PUT", "/store/", 500, {}),
        ("POST", "/commit/", 0, {}),
        ("POST", "/commit/", 409, {}),
        ("POST", "/commit/", 429, {"Retry-After": "0"}),
        ("POST", "/commit/", 500, {}),
        ("POST", "/preupload/", 429, {"Retry-After": "0"}),
        ("POST", "/repos/create", 500, {}),
        ("POST", "/repos/create", 0, {}),
        ("POST", "/paths-info/", 503, {}),
    ],
)
def test_what_fails_once_is_sent_again_and_arrives_whole(hub, folder, tmp_path, method, path, status, headers):
    hub.fail(method, path, status, headers=headers)
    said, logged = send(hub.environment(tmp_path), folder)
    assert hub.calm() == 1 and said.startswith("done user/model"), said
    assert hub.files("user/model") == content(folder)
    assert hub.messages("user/model") == ["a push", "initial commit"], "one commit"
    assert "Traceback" not in logged


@pytest.mark.parametrize(
    ("method", "path", "status", "headers", "words"),
    [
        ("POST", "/commit/", 0, {}, ["is not known to have arrived", "RemoteProtocolError"]),
        ("POST", "/commit/", 409, {}, ["409 injected 409", "Somebody else is changing"]),
        ("POST", "/commit/", 429, {"Retry-After": "3600"}, ["It asks to wait 3600 s", "slow down"]),
        ("POST", "/commit/", 500, {}, ["500 injected 500"]),
        ("POST", "/preupload/", 404, {}, ["404 injected 404", "Check the id"]),
        ("POST", "/repos/create", 401, {}, ["could not be created", "401", "hf auth login"]),
    ],
)  # fmt: skip
def test_what_goes_on_failing_is_one_line_and_nothing_half_made(
    hub, folder, tmp_path, method, path, status, headers, words
):
    hub.fail(method, path, status, times=99, headers=headers)
    said, logged = send(hub.environment(tmp_path), folder)
    assert hub.calm() == (3 if status in (0, 409, 500) else 1)
    assert said.startswith("refused ") and all(word in said for word in words), said
    assert not hub.repos or hub.files("user/model") == {}
    assert "Traceback" not in logged


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, ["401", "hf auth login", "HF_TOKEN"]),
        ("hf_wrong", ["401 Invalid credentials", "hf auth login"]),
        (READ_TOKEN, ["403", "may not do that"]),
    ],
)
def test_a_token_that_may_not_write_is_refused(hub, folder, tmp_path, token, words):
    said, _ = send(hub.environment(tmp_path, token), folder)
    assert said.startswith("refused ") and all(word in said for word in words), said
    assert not hub.repos


def test_no_hub_at_all_is_one_line(folder, tmp_path):
    with LoopbackHub() as hub:
        env = hub.environment(tmp_path)
    said, _ = send(env, folder)
    assert said.startswith("refused ") and "could not be created or opened" in said and "ConnectError" in said
    said, _ = send(env | {"HF_HUB_OFFLINE": "1"}, folder)
    assert "OfflineModeIsEnabled" in said


def test_a_commit_that_lost_a_file_is_not_called_done(hub, folder, tmp_path):
    hub.lost = "config.json"
    said, _ = send(hub.environment(tmp_path), folder)
    assert (
        said.startswith("refused ") and "is not whole" in said and "1 of 3 files" in said and "'config.json'" in said
    )


# -- a second push -----------------------------------------------------------------------------------------------------
def test_a_second_push_leaves_nothing_of_the_first_and_all_that_is_not_ours(hub, folder, tmp_path):
    env = hub.environment(tmp_path)
    send(env, folder)
    hub.publish("user/model", hub.files("user/model") | {"notes.txt": b"by hand", "paper.pdf": b"%PDF"})
    (folder / "adapter" / "weights.safetensors").rename(folder / "model.safetensors")
    said, _ = send(env, folder)
    assert said.startswith("done") and hub.files("user/model") == content(folder) | {
        "notes.txt": b"by hand", "paper.pdf": b"%PDF",
    }  # fmt: skip
    again, _ = send(env, folder)
    assert again == said and len(hub.messages("user/model")) == 4, "nothing changed, nothing is committed"


def test_a_branch_is_made_and_a_commit_is_no_place_to_push(hub, folder, tmp_path):
    env = hub.environment(tmp_path)
    said, _ = send(env, folder, "next")
    assert (
        said.startswith("done")
        and hub.files("user/model", "next") == content(folder)
        and hub.files("user/model") == {}
    )
    assert send(env, folder, "next")[0] == said
    said, _ = send(env, folder, "0" * 40)
    assert "is a commit; a push needs a branch" in said


# -- everything there and back -----------------------------------------------------------------------------------------
MODEL_FILES = {
    "README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.json", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json", "training_config.json",
}  # fmt: skip
RECONSTRUCTOR_FILES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "training_config.json",
}  # fmt: skip


def client(hub: LoopbackHub, home: Path, function: str, token: str | None = TOKEN, **arguments):
    """The result of a function of `hub_clients.py` in a fresh process with an empty cache."""
    env = hub.environment(home, token)
    words = [sys.executable, "-m", "tests.hub_clients", function, json.dumps(arguments)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def pushed(tmp_path_factory, base_folder, texts):
    """A Hub to which both trainers, the model's methods and the recipe have sent; the folders; what was said."""
    from recipes.prepare_data import main

    place = tmp_path_factory.mktemp("pushed")
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = place / "data"
    main(["--data_path", str(place / "texts.jsonl"), "--tokenizer", base_folder, "--max_length", "24", "--min_length",
          "4", "--output_dir", str(data)])  # fmt: skip
    with LoopbackHub() as hub:
        hub.publish("user/joint", {"notes.md": b"mine", "eval_results.json": b"{}"})
        hub.fail("POST", "/user/joint/commit/", 500, times=3)  # the push of the first checkpoint
        said = client(hub, place / "home", "train_and_push", base=base_folder, out=str(place / "out"), data=str(data))
        assert hub.calm() == 3
        yield hub, place, said


def test_every_file_arrives_and_nothing_else(pushed):
    hub, place, said = pushed
    joint = hub.files("user/joint")
    assert joint.keys() == MODEL_FILES | {"notes.md"}, "what was there by hand stays, old measurements do not"
    folder = place / "out/joint"
    assert (folder / "checkpoint-2/optimizer.pt").is_file() and (folder / "notes.txt").is_file()
    for name in MODEL_FILES - {"README.md"}:
        assert joint[name] == (folder / name).read_bytes(), name
    assert hub.files("user/joint", said["commit"]) == joint
    assert hub.messages("user/joint") == ["End of training", "Training in progress, step 2", "publish"]
    assert "without a push of step 1" in said["log"] and "500 injected 500" in said["log"]
    assert hub.files("user/restorer").keys() == RECONSTRUCTOR_FILES
    assert hub.repos["models", "user/restorer"].private and not hub.repos["models", "user/by-name"].private
    assert hub.messages("user/restorer")[0] == "a restorer"
    weights = {name for name in MODEL_FILES if name.endswith((".safetensors", "config.json"))} - {
        "training_config.json", "tokenizer_config.json",
    }  # fmt: skip
    assert hub.files("user/bare").keys() == MODEL_FILES - {"training_config.json"}
    assert hub.files("user/saved", "next").keys() == weights | {"README.md"} and hub.files("user/saved") == {}


def test_the_recipe_says_where_it_went(pushed):
    hub, _, said = pushed
    code, out, _ = said["data"]
    assert code == 0 and out.rstrip().splitlines()[-1].startswith(f"Pushed: {hub.url}/datasets/user/data/commit/")
    assert hub.files("user/data", repo_type="datasets").keys() == {
        "README.md", "manifest.json", *(f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")),
    }  # fmt: skip
    assert hub.messages("user/data", repo_type="datasets")[0] == "the data"
    code, out, _ = said["by_name"]
    assert code == 0 and f"Pushed: {hub.url}/user/by-name/commit/" in out
    assert b"license: mit" in hub.files("user/by-name")["README.md"]


def test_every_checkpoint_that_is_pushed_is_a_whole_model(pushed):
    hub, _, _ = pushed
    repo = hub.repos["models", "user/joint"]
    at_step_2 = repo.history(repo.branches["main"])[1]
    assert hub.files("user/joint", at_step_2).keys() == MODEL_FILES | {"notes.md"}


def test_fresh_processes_get_the_same_bits(pushed, base_folder, tmp_path):
    hub, place, _ = pushed
    first = hub.publish_folder(
        "user/joint", place / "out/joint/checkpoint-1"
    )  # an older state, on the way to the newest
    hub.repos["models", "user/joint"].tags["v1"] = first
    hub.publish_folder("user/joint", place / "out/joint")
    arguments = {"base": base_folder, "out": str(place / "out"), "data": str(place / "data"), "first": first}
    result = client(hub, tmp_path / "empty", "load_everything", **arguments)
    assert len(result["same"]) == 16 and all(value is True for value in result["same"].values()), result["same"]
    assert {card.partition(":")[0] for card in result["cards"].values()} == {"1 blocks"}, result["cards"]


def test_downloads_break_off_in_one_line_or_are_resumed(pushed, tmp_path):
    hub, _, _ = pushed
    weights = "/resolve/.*/model.safetensors"
    cases = [
        ("user/saved", None, {"revision": "next"}, "ok"),
        ("user/saved", ("GET", weights, 0), {"revision": "next"}, "ok"),
        ("user/saved", ("GET", weights, 500, 9), {"revision": "next"}, "500 injected 500."),
        ("user/saved", ("GET", "/api/models/", 429, 1, {"Retry-After": "0"}), {"revision": "next"}, "ok"),
        ("user/saved", ("GET", "/resolve/", 401, 9), {"revision": "next"}, "401 injected 401. Check the id"),
        ("user/nothing", None, {}, "404 Repository not found. Check the id"),
        (
            "user/joint",
            None,
            {"revision": "v9"},
            "404 Invalid rev id: v9. Check the id (`user/name`) and the revision",
        ),
        ("user/restorer", None, {"token": False}, "401 Repository not found. Check the id (`user/name`); log in"),
        ("user/joint", None, {"token": "hf_wrong"}, "401 Invalid credentials"),
        ("user/restorer", None, {}, "404 Entry not found"),
        ("user//", None, {}, "HFValidationError"),
    ]
    commands = [(name, fault, options) for name, fault, options, _ in cases]
    for said, (name, fault, options, expected) in zip(
        client(hub, tmp_path, "download_under_faults", commands=commands), cases, strict=True
    ):
        assert expected in said and "\n" not in said, (name, fault, options, said)
    hub.calm()

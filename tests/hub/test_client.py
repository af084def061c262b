"""Sending to the Hub: the real client against a Hub on this machine, whole pushes, broken ones, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.loopback_hub import READ_TOKEN, ROOT, TOKEN, LoopbackHub
from tokforget.local_paths import without_local_paths
from tokforget.packaged import forget_model_path


pytestmark = pytest.mark.slow

HUB_PAGE = (ROOT / "docs" / "hub.md").read_text()


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


def client(hub: LoopbackHub, home: Path, function: str, token: str | None = TOKEN, offline: bool = False, **arguments):
    """The result of a function of `hub_clients.py` in a fresh process with an empty cache."""
    env = hub.environment(home, token) | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    words = [sys.executable, "-m", "tests.support.hub_clients", function, json.dumps(arguments)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-6000:]
    return json.loads(done.stdout)


# -- what goes wrong is retried, or one line ---------------------------------------------------------------------------
ONCE = [
    ("PUT", "/store/", 0),
    ("PUT", "/store/", 500),
    ("POST", "/commit/", 0),
    ("POST", "/commit/", 409),
    ("POST", "/commit/", 429, 1, {"Retry-After": "0"}),
    ("POST", "/commit/", 500),
    ("POST", "/preupload/", 429, 1, {"Retry-After": "0"}),
    ("POST", "/preupload/", 0),
    ("POST", "/repos/create", 500),
    ("POST", "/repos/create", 0),
    ("POST", "/validate-yaml", 429, 1, {"Retry-After": "0"}),
    ("POST", "/paths-info/", 503),
    ("GET", "/tree/", 0),
]


def test_what_fails_once_is_sent_again_and_arrives_whole(hub, folder, tmp_path):
    cases = [(f"user/model-{n}", fault, None) for n, fault in enumerate(ONCE)]
    for (repo_id, fault, _), (said, struck) in zip(
        cases, client(hub, tmp_path, "send_under_faults", folder=str(folder), cases=cases), strict=True
    ):
        assert (said, struck) == (f"done {repo_id}", 1), fault
        assert hub.files(repo_id) == content(folder), fault
        assert hub.messages(repo_id) == ["a push", "initial commit"], "one commit"


GOING_ON = [  # the fault, the token, how often it strikes, what is said
    (("POST", "/commit/", 0, 99), None, 3, ["is not known to have arrived", "RemoteProtocolError"]),
    (("POST", "/commit/", 409, 99), None, 3, ["409 injected 409. Somebody else is changing"]),
    (("POST", "/commit/", 429, 99, {"Retry-After": "3600"}), None, 1, ["It asks to wait 3600 s", "slow down"]),
    (("POST", "/commit/", 500, 99), None, 3, ["500 injected 500."]),
    (("POST", "/preupload/", 404, 99), None, 1, ["404 injected 404. Check the id"]),
    (("POST", "/preupload/", 401, 99), None, 1, ["401 injected 401. Check the id", "hf auth login", "HF_TOKEN"]),
    (None, "hf_wrong", 0, ["could not be created or opened", "401 Invalid credentials", "hf auth login"]),
    (None, READ_TOKEN, 0, ["403", "The token may not do that"]),
]


def test_what_goes_on_failing_is_one_line_and_nothing_half_made(hub, folder, tmp_path):
    cases = [(f"user/model-{n}", fault, token) for n, (fault, token, _, _) in enumerate(GOING_ON)]
    results = client(hub, tmp_path, "send_under_faults", folder=str(folder), cases=cases)
    for (repo_id, fault, token), (said, struck), (_, _, times, words) in zip(cases, results, GOING_ON, strict=True):
        assert said.startswith("refused ") and "\n" not in said and repo_id in said, said
        assert all(word in said for word in words) and struck == times, (said, struck)
        assert ("models", repo_id) not in hub.repos if token else hub.files(repo_id) == {}, fault


def test_no_token_and_another_users_name_are_refused(hub, folder, tmp_path):
    (none,) = client(
        hub, tmp_path, "send_under_faults", token=None, folder=str(folder), cases=[("user/model", None, None)]
    )
    (other,) = client(hub, tmp_path, "send_under_faults", folder=str(folder), cases=[("other/model", None, None)])
    assert "401" in none[0] and "hf auth login" in none[0] and not hub.repos
    assert "403" in other[0] and "under the namespace 'other'" in other[0] and not hub.repos


def test_no_hub_at_all_is_one_line(folder, tmp_path):
    with LoopbackHub() as gone:
        pass
    (said,) = client(gone, tmp_path, "send_again", folders=[(str(folder), None, None)])
    assert "could not be created or opened" in said and "ConnectError" in said and "\n" not in said
    (said,) = client(gone, tmp_path, "send_again", offline=True, folders=[(str(folder), None, None)])
    assert "OfflineModeIsEnabled" in said and "\n" not in said


def test_a_commit_that_lost_a_file_is_not_called_done(hub, folder, tmp_path):
    hub.lost = "config.json"
    (said,) = client(hub, tmp_path, "send_again", folders=[(str(folder), None, None)])
    assert "is not whole" in said and "1 of 3 files" in said and "'config.json'" in said


# -- a second push -----------------------------------------------------------------------------------------------------
def test_a_push_into_somebody_elses_repository_removes_nothing(hub, folder, tmp_path):
    others = {"model.safetensors": b"not ours", "vocab.json": b"{}"}
    hub.publish("user/model", others)
    client(hub, tmp_path, "send_again", folders=[(str(folder), None, "training_config.json")])
    assert hub.files("user/model") == content(folder) | others


def test_a_second_push_leaves_nothing_of_the_first_and_all_that_is_not_ours(hub, folder, tmp_path):
    others = {"notes.txt": b"by hand", "paper.pdf": b"%PDF", "config.json": b"[]", "model.safetensors": b"old"}
    hub.publish("user/model", others)
    second = tmp_path / "second"
    second.mkdir()
    (second / "README.md").write_bytes((folder / "README.md").read_bytes())
    (second / "tokenizer.json").write_text("{}")
    steps = [(folder, None, "config.json"), (second, None, "config.json"), (second, None, None), (second, "next", None),
             (second, "0" * 40, None)]  # fmt: skip
    arrived = client(hub, tmp_path, "send_again", folders=[(str(place), *where) for place, *where in steps])
    kept = {"notes.txt": b"by hand", "paper.pdf": b"%PDF"}
    assert hub.files("user/model", arrived[0]) == content(folder) | kept
    assert hub.files("user/model") == hub.files("user/model", "next") == content(second) | kept
    assert arrived[1] == arrived[2] == arrived[3], "nothing changed, nothing is committed"
    assert hub.messages("user/model") == ["a push", "a push", "publish"]
    assert "is a commit; a push needs a branch" in arrived[4]


# -- everything there and back -----------------------------------------------------------------------------------------
MODEL_FILES = {
    "README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.json", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json", "training_config.json",
}  # fmt: skip
RECONSTRUCTOR_FILES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "training_config.json",
}  # fmt: skip


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
        hub.publish("user/joint", {"notes.md": b"mine", "eval_results.json": b"{}", "training_config.json": b"{}"})
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
        if name.endswith("training_config.json"):  # which goes without the folders of this machine
            assert json.loads(joint[name]) == without_local_paths(json.loads((folder / name).read_text())), name
            assert str(folder).encode() not in joint[name]
        else:
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
    changed = hub.files("user/data", repo_type="datasets")
    changed["data/test-00000-of-00001.parquet"] = changed["data/validation-00000-of-00001.parquet"]
    hub.publish("user/changed", changed, "datasets")
    arguments = {"base": base_folder, "out": str(place / "out"), "data": str(place / "data"), "first": first}
    result = client(hub, tmp_path / "empty", "load_everything", **arguments)
    assert len(result["same"]) == 17 and all(value is True for value in result["same"].values()), result["same"]
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
    asked = [(name, fault, options) for name, fault, options, _ in cases]
    results = client(hub, tmp_path, "download_under_faults", cases=asked)
    for (said, struck), (name, fault, options, expected) in zip(results, cases, strict=True):
        assert expected in said and "\n" not in said and bool(struck) == bool(fault), (name, fault, options, said)


# -- the page of docs ------------------------------------------------------------------------------------------------
def test_the_page_on_sharing_runs_as_it_stands(hub, pushed, texts, tmp_path):
    """Each command of docs/hub.md in order, from a place that has what the quick test and the preparation leave."""
    section = HUB_PAGE
    commands = [
        line for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL) for line in block.splitlines() if line
    ]
    assert len(commands) >= 4 and any("--dry_run true" in command for command in commands)
    shutil.copytree(forget_model_path(), tmp_path / "outputs/quick_test")
    shutil.copytree(pushed[1] / "data", tmp_path / "outputs/data")
    for name in ("recipes", "accelerate_configs", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = hub.environment(tmp_path / "home")
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    for command in commands:
        done = subprocess.run(
            command,
            shell=True,
            executable="/bin/bash",
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, (command, done.stderr[-3000:])
    pushes = {
        re.search(r"--repo_id (\S+)", command)[1]
        for command in commands
        if "--dry_run" not in command and "--repo_id" in command
    }
    assert pushes == {repo_id for _, repo_id in hub.repos} and pushes, "what was only tried was not sent"
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, (block, done.stderr[-3000:])

"""Sending to the Hub: the real client against a Hub on this machine, whole pushes, broken ones, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.loopback_hub import READ_TOKEN, LoopbackHub


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
        (READ_TOKEN, ["403", "may not write"]),
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

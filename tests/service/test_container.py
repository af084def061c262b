"""The Dockerfile: its commands are run here in a fresh virtual environment, for a machine that tests need not have Docker."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def requirements(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


def test_the_file_and_the_extra_name_the_same_packages():
    tree = ast.parse((ROOT / "setup.py").read_text())
    (extra,) = (
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", None) == "SERVE"
    )
    assert requirements("requirements-serve.txt") == ["-r requirements-compress.txt", *extra]


def test_the_image_holds_what_it_needs_and_its_user_is_nobody():
    assert set((ROOT / ".dockerignore").read_text().split()) == {
        "*",
        "!dist",
        "!requirements-compress.txt",
        "!requirements-serve.txt",
    }
    last = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE) and "pip" not in last
    assert all("--no-index" in line for line in DOCKERFILE.splitlines() if "pip install" in line)


@pytest.mark.slow
def test_its_commands_build_a_service_that_its_check_calls_healthy(tmp_path):
    fetched = fetch_wheels(tmp_path)
    if fetched is not None:
        pytest.skip(f"no wheels: {fetched}")
    for line in re.findall(r"^RUN (.*(?:pip|venv).*)$", DOCKERFILE, re.MULTILINE):
        command = placed(line, tmp_path).replace("python -m venv", f"{sys.executable} -m venv")
        done = subprocess.run(command, shell=True, capture_output=True, text=True, env=clean() | {"PIP_NO_INDEX": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
    installed = {path.name.partition("-")[0].lower() for path in (tmp_path / "opt").rglob("*.dist-info")}
    assert {"tokforget", "fastapi", "uvicorn"} <= installed and not {"torch", "transformers", "trl"} & installed
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    entry = [
        placed(word, tmp_path).replace("8000", port)
        for word in json.loads(re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[1])
    ]
    check = [
        placed(word, tmp_path).replace("8000", port)
        for word in json.loads(re.search(r"^HEALTHCHECK .* CMD (.*)$", DOCKERFILE, re.MULTILINE)[1])
    ]
    (tmp_path / "token").write_text("0123456789abcdef")
    service = subprocess.Popen(
        [*entry, "--token-file", str(tmp_path / "token")], env=clean(), cwd=tmp_path, stderr=subprocess.PIPE
    )
    try:
        until = time.monotonic() + 300
        while subprocess.run(check, env=clean(), capture_output=True).returncode != 0:
            assert service.poll() is None and time.monotonic() < until, service.stderr.read()
            time.sleep(0.5)
    finally:
        service.terminate()
        assert service.wait(120) == 0
    assert subprocess.run(check, env=clean(), capture_output=True).returncode != 0, "and that one which is gone is not"


def fetch_wheels(folder: Path) -> str | None:
    """What `make wheels` fetches, for this Python; why it could not be done, where there is no network."""
    build = folder / "build"
    for name in ("recipes", "accelerate_configs", "hub_cards", "tokforget"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "-q", "--no-input"]
    build.mkdir()
    for name in ("requirements-compress.txt", "requirements-serve.txt"):
        shutil.copy(ROOT / name, build)
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", build / "dist", folder / "source"],
        check=True,
    )
    words = [
        *pip,
        "download",
        "--dest",
        build / "dist",
        "--only-binary",
        ":all:",
        "-r",
        build / "requirements-serve.txt",
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr[-300:]


def placed(words: str, folder: Path) -> str:
    return words.replace("/opt/tokforget", str(folder / "opt")).replace("/build", str(folder / "build"))


def clean() -> dict[str, str]:
    """Without this environment's packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

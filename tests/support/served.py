"""A service of one's own in a process: started, asked and stopped by tests and by tests/support/fuzz_service.py."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).parents[2]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return self.json["error"]["message"]


def ask(
    port: int, path: str, body=None, *, method: str | None = None, headers: dict | None = None, timeout: float = 60.0
) -> Answer:
    """One request over a connection of its own; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    kind = {} if data is None else {"Content-Type": "application/json"}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, data, kind | (headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


class Served:
    """
    `tokforget serve` on a free port of this machine, as a context manager.

    Args:
        *words (`str`): Of its command line.
        **variables (`str`): Of its environment.
    """

    def __init__(self, *words: str, **variables: str):
        self._log = tempfile.NamedTemporaryFile(mode="w+", encoding="utf-8", suffix=".log")  # noqa: SIM115
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | variables
        port = () if "--port" in words else ("--port", "0")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tokforget", "serve", *port, *words], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            env=environment, cwd=tempfile.gettempdir(),
        )  # fmt: skip
        self.port = self._wait_for_port()

    def _wait_for_port(self, seconds: float = 300.0) -> int:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := re.search(r" at http://\S+:(\d+),", self.log):
                return int(found[1])
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"it did not start: {self.log}")

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(encoding="utf-8")

    @property
    def workers(self) -> list[int]:
        """Process ids of the processes that compress (Linux)."""
        found = subprocess.run(
            ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        ).stdout
        return [int(line.split()[0]) for line in found.splitlines() if "spawn_main" in line]

    def ask(self, path: str, body=None, **options) -> Answer:
        return ask(self.port, path, body, **options)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 300.0) -> int:
        """Send a signal and wait for the end; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()

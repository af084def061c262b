"""What goes wrong outside: kills, stops under load, slow and vanishing clients, endless patterns, full queues. Nothing is lost, nothing stays."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest


pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from tests.support.served import ROOT, Served, ask
from tokforget.compression.compressor import Compressor


pytestmark = pytest.mark.slow
TEXT = "The bridge over the Arve was built in 1874 by the engineer Louis Favre. It carried a tram line until 1956. "
LONG = TEXT * 600  # some seconds of a core
ENDLESS = {"texts": "a" * 60, "protect": "re:(a+)+$b", "rate": 0.5}  # a pattern that tries 2^60 ways


@pytest.fixture(scope="module")
def expected() -> str:
    return Compressor.from_pretrained().compress(TEXT, rate=0.5).text


def post(path: str, body: bytes, length: int | None = None) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


def wait_until(condition, seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.05)


def metric(service: Served, name: str) -> float:
    page = service.ask("/metrics").body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name))


class Load:
    """Threads that ask one after the other until they are told to stop, and what they were answered."""

    def __init__(self, port: int, threads: int = 6, again: bool = False):
        self.port, self.again, self.running = port, again, True
        self.texts: list[str] = []
        self.others: list[str] = []
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        while self.running:
            try:
                answer = ask(self.port, "/v1/compress", {"texts": TEXT, "rate": 0.5}, timeout=120)
            except ConnectionRefusedError:  # nothing was taken, and nothing lost
                if not self.again:
                    return
                time.sleep(0.1)
            except (OSError, http.client.HTTPException) as error:
                self.others.append(type(error).__name__)
            else:
                if answer.status == 200:
                    self.texts.append(answer.json["text"])
                else:
                    self.others.append(str(answer.status))

    def stop(self) -> None:
        self.running = False
        for thread in self.threads:
            thread.join(120)
            assert not thread.is_alive()


def test_a_process_that_is_killed_under_load_costs_no_request(expected):
    with Served("--workers", "2", "--timeout", "600") as service:
        load = Load(service.port)
        for round_ in range(3):
            wait_until(lambda: len(load.texts) >= 10 * (round_ + 1) and len(service.workers) == 2)  # noqa: B023
            os.kill(service.workers[0], signal.SIGKILL)
        wait_until(lambda: len(service.workers) == 2 and metric(service, "tokforget_worker_restarts_total") == 3)
        count = len(load.texts)
        wait_until(lambda: len(load.texts) >= count + 10)
        load.stop()
        assert load.others == [] and set(load.texts) == {expected}
        assert service.stop() == 0


def test_a_service_that_is_killed_leaves_nothing_and_starts_again_at_its_address(expected):
    with Served("--timeout", "600") as service:
        port, workers = service.port, service.workers
        load = Load(port, again=True)
        wait_until(lambda: len(load.texts) >= 10)
        service.process.kill()
        service.process.wait()
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))
        with Served("--port", str(port), "--timeout", "600") as second:
            count = len(load.texts)
            wait_until(lambda: len(load.texts) >= count + 10)
            load.stop()
            assert set(load.texts) == {expected}
            # Those that it was working on, once each, and those that knocked while the system took it apart.
            assert len(load.others) <= 12 and {*load.others} <= {"RemoteDisconnected", "ConnectionResetError"}, (
                load.others
            )
            assert second.stop() == 0


def test_who_was_taken_is_answered_before_it_stops(expected):
    with Served("--stop-timeout", "600", "--timeout", "600") as service:
        load = Load(service.port, threads=8)
        wait_until(lambda: len(load.texts) >= 20)
        code = service.stop(signal.SIGTERM, seconds=300)
        load.stop()
        assert code == 0 and set(load.texts) == {expected} and load.others == []
        assert "stopped" in service.log.splitlines()[-1] and "ERROR" not in service.log


def test_who_has_connected_may_still_ask_after_the_signal(expected):
    body = post("/v1/compress", json.dumps({"texts": TEXT, "rate": 0.5}).encode())
    with Served("--timeout", "600") as service:
        address = ("127.0.0.1", service.port)
        early = [socket.create_connection(address, timeout=60) for _ in range(3)]
        wait_until(lambda: len(connections(service.process.pid)) == 3)
        early[0].sendall(body[:40])  # a part of the headers
        early[1].sendall(body[:-10])  # a part of the body
        os.kill(service.process.pid, signal.SIGSTOP)
        late = [socket.create_connection(address, timeout=60) for _ in range(3)]  # the system holds them
        late[0].sendall(body)
        service.process.send_signal(signal.SIGTERM)
        os.kill(service.process.pid, signal.SIGCONT)
        wait_until(lambda: refuses(address))  # it no longer listens
        for client, rest in zip([*early, *late[1:]], (body[40:], body[-10:], body, body, body)):
            client.sendall(rest)
        for client in [*early, *late]:
            answer = b"".join(iter(lambda: receive(client), b""))  # noqa: B023
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["text"] == expected
        assert service.process.wait(60) == 0


def refuses(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=60).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_stop_waits_no_longer_than_it_may():
    with Served("--stop-timeout", "1", "--timeout", "600") as service:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(service.ask("/v1/compress", ENDLESS, timeout=120)))
        thread.start()
        wait_until(lambda: metric(service, "tokforget_held_bytes") > 0)
        workers, began = service.workers, time.monotonic()
        assert service.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 120
        thread.join(60)
        assert [answer.status for answer in answers] == [503] and "being stopped" in answers[0].message
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))


def test_a_stop_while_a_process_is_started_again_leaves_none():
    with Served("--timeout", "600", "--stop-timeout", "1") as service:
        os.kill(service.workers[0], signal.SIGKILL)
        asking = threading.Thread(target=lambda: post_and_forget(service.port), daemon=True)
        asking.start()
        wait_until(lambda: len(service.workers) == 1)
        workers = service.workers
        assert service.stop() == 0
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))


def post_and_forget(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=300) as client:
        client.sendall(post("/v1/compress", json.dumps({"texts": TEXT}).encode()))
        receive(client)


def test_what_never_ends_is_ended_and_its_neighbours_are_answered(expected):
    with Served("--timeout", "3") as service:
        began = time.monotonic()
        answer = service.ask("/v1/compress", ENDLESS)
        assert (
            answer.status == 504 and "No answer within 3 seconds" in answer.message and time.monotonic() - began < 60
        )
        wait_until(lambda: metric(service, "tokforget_worker_restarts_total") == 1)
        wait_until(lambda: service.ask("/v1/compress", {"texts": TEXT, "rate": 0.5}).status == 200)
        assert metric(service, "tokforget_held_bytes") == 0
        assert service.stop() == 0


def test_who_goes_away_frees_his_place():
    with Served("--queue", "1", "--timeout", "600") as service:
        first = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(2)]
        first[0].sendall(post("/v1/compress", json.dumps(ENDLESS).encode()))
        wait_until(
            lambda: metric(service, "tokforget_held_bytes") > 0 and metric(service, "tokforget_queue_requests") == 0
        )
        time.sleep(0.2)
        first[1].sendall(post("/v1/compress", json.dumps({"texts": TEXT}).encode()))
        wait_until(lambda: metric(service, "tokforget_queue_requests") == 1)
        full = service.ask("/v1/compress", {"texts": TEXT})
        assert (
            full.status == 503
            and full.headers["retry-after"] == "1"
            and "All is busy: 1 requests wait" in full.message
        )
        assert service.ask("/health/live").status == 200, "it answers while all is busy"
        first[1].close()
        wait_until(lambda: metric(service, "tokforget_queue_requests") == 0)
        first[0].close()  # the process that works for nobody is ended
        assert service.ask("/v1/compress", {"texts": TEXT}).status == 200
        assert metric(service, "tokforget_worker_restarts_total") == 1
        wait_until(lambda: metric(service, "tokforget_held_bytes") == 0)


def test_slow_clients_are_closed_and_hold_nobody_up(expected):
    with Served("--read-timeout", "2", "--timeout", "600", "--max-body-mb", "16") as service:
        body = json.dumps({"texts": TEXT}).encode()
        sent = {
            "silent": b"",
            "headers": b"POST /v1/compress HTTP/1.1\r\nHost: loc",
            "body": post("/v1/compress", body)[:-5],
            "no body": post("/v1/compress", b"", length=100),
        }
        clients = {name: socket.create_connection(("127.0.0.1", service.port)) for name in sent}
        for name, data in sent.items():
            clients[name].sendall(data)
        drip = threading.Thread(target=drip_into, args=(clients["headers"],), daemon=True)
        drip.start()
        assert service.ask("/v1/compress", {"texts": TEXT, "rate": 0.5}).json["text"] == expected
        for client in clients.values():
            client.settimeout(60)
            answer = b"".join(iter(lambda: receive(client), b""))  # noqa: B023
            assert b" 408 " in answer.split(b"\r\n")[0] and b"within 2 seconds" in answer
        assert metric(service, "tokforget_held_bytes") == 0
        # One who does not read: his answer is larger than what the system holds for him.
        lazy = socket.socket()
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", service.port))
        lazy.sendall(post("/v1/compress", json.dumps({"texts": LONG * 4, "details": True}).encode()))
        wait_until(lambda: not connections(service.process.pid), seconds=300)


def drip_into(client: socket.socket) -> None:
    try:
        while True:
            time.sleep(0.3)
            client.sendall(b"a")
    except OSError:
        pass


def receive(client: socket.socket) -> bytes:
    try:
        return client.recv(65_536)
    except ConnectionResetError:
        return b""


def connections(pid: int) -> list[str]:
    """Open connections of a process: its sockets that are no listeners (Linux)."""
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    states = {row[9]: row[3] for row in table}
    links = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
        except OSError:
            continue
    return [link for link in links if link.startswith("socket:[") and states.get(link[8:-1]) == "01"]


def test_a_hundred_megabytes_are_refused_in_flat_memory():
    with Served() as service:
        before = memory(service.process.pid)
        answer = service.ask("/v1/compress", b"x" * 100_000_000, timeout=300)
        assert answer.status == 413 and "larger than 2,097,152 bytes" in answer.message

        def parts():
            for _ in range(100):
                yield b"x" * 1_000_000

        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=300)
        connection.request("POST", "/v1/compress", parts(), {"Content-Type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
        assert memory(service.process.pid) - before < 40
        assert service.ask("/v1/compress", {"texts": TEXT}).status == 200


def memory(pid: int) -> float:
    """The most MiB that a process has had (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--port", "99999"), "`--port` must be a whole number from 0 to 65,535, got 99999."),
        (("--host", "0.0.0.0"), "`--host` 0.0.0.0 can be reached from other machines, and there is no token"),
        (("--host", "192.0.2.1", "--without-token"), "It cannot listen on 192.0.2.1:0:"),
        (("--model", "/nowhere"), "/nowhere"),
        (("--base-model", "/nowhere"), "The base model '/nowhere' is a local folder that is not there."),
        (("--count-with", "/nowhere.json"), "/nowhere.json: no such file or folder."),
        (("--token-file", "/nowhere"), "/nowhere: No such file or directory."),
        (("--backend", "numpy", "--device", "cuda"), "`--backend` numpy runs on the CPU"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(words, said):
    port = () if "--port" in words else ("--port", "0")
    done = subprocess.run([sys.executable, "-m", "tokforget", "serve", *port, *words], capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("tokforget: error: ") and said in line


def test_an_address_that_is_taken_is_said():
    with Served() as service:
        done = subprocess.run([sys.executable, "-m", "tokforget", "serve", "--port", str(service.port)], capture_output=True, text=True,
                              timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (
        done.returncode == 2 and f"It cannot listen on 127.0.0.1:{service.port}: Address already in use" in done.stderr
    )


def test_without_its_packages_the_line_names_the_extra(tmp_path):
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        (tmp_path / f"{name}.py").write_text(f'raise ModuleNotFoundError("No module named {name}", name="{name}")\n')
    done = subprocess.run([sys.executable, "-m", "tokforget", "serve"], capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "tokforget: error: `tokforget serve` needs the package 'uvicorn': pip install 'tokforget[serve]'"
    ]


def test_a_thousand_requests_of_every_wrong_kind():
    done = subprocess.run([sys.executable, "tests/support/fuzz_service.py", "--requests", "1000", "--seed", "7"], cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "1,000 requests" in done.stdout and "NO" not in done.stdout.split("requests in")[1]

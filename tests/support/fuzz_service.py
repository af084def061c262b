"""
Send a service requests of every wrong kind, right ones between them, and check what must hold for any of them.

    python tests/support/fuzz_service.py --requests 10000 --seed 0

Bad JSON and bad UTF-8, wrong keys and kinds and values, hostile messages and results, wrong tokens, hosts, methods and paths, broken
HTTP, bodies cut short, too long, and in chunks that lie. Checked: every answer is one that is documented, and an error one line of
JSON; none is 500; nobody without the token gets anything; right requests between them have the answer that Python gives; no word of a
request stands in the log; the service is the same process at the end, holds no byte, and stops with exit code 0. Ends with exit code 1
and the request at the first failure.
"""

import argparse
import json
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.support.fuzz_compressor import (
    ENGLISH,
    ODD,
    broken,
    letters,
    log,
    markdown,
    prose,
    repeated,
    structured,
    table,
)
from tests.support.served import Served
from tokforget.compression.compressor import Compressor


TOKEN = "the-right-token-of-this-service"
CANARY = "zzcanary"  # in every request, and never in the log
ALLOWED = {200, 400, 401, 404, 405, 408, 413, 415, 421, 422, 503}
ROUTES = ["/v1/compress", "/v1/compress_messages", "/v1/explain", "/v1/restore"]
MAX_BODY = 262_144
NAMES = ["rate", "target_tokens", "threshold", "quality", "unit", "protect", "nested", "prefix_stable", "tags", "min_tokens", "on_impossible",
         "count_tokens", "mark_omissions", "omit_records", "question", "budget", "details", "system", "roles", "stable", "min_message_tokens", "min_rate",
         "memory", "abstain_below", "gap", "batch_size", "raet"]  # fmt: skip


def some_text(rng: random.Random) -> str:
    text = rng.choice([prose, letters, structured, markdown, log, table, broken, repeated])(rng)[:3000]
    return f"{CANARY} {text}" if rng.random() < 0.8 else text


def anything(rng: random.Random, depth: int = 0):
    """A value of JSON."""
    kinds = [None, True, False, 0, -1, 1, 0.5, 2**63, -(2**70), 1e308, 1e-320, "", "auto", "word", rng.choice(ODD), rng.choice(ENGLISH), some_text(rng),
             [0, 3], [[0, 3]], [[3, 1]], [[0, 10**9]], ["re:("], ["re:."], ["first:3"], ["last:" + "9" * 20], {}, [], ["numbers", None]]  # fmt: skip
    if depth < 4 and rng.random() < 0.3:
        size = rng.randint(0, 4)
        if rng.random() < 0.5:
            return [anything(rng, depth + 1) for _ in range(size)]
        return {
            rng.choice([*NAMES, "role", "content", "type", "text", CANARY]): anything(rng, depth + 1)
            for _ in range(size)
        }
    return rng.choice(kinds)


def messages(rng: random.Random) -> list:
    def part():
        return rng.choice([
            {"type": "text", "text": some_text(rng)}, {"type": "text"}, {"type": "text", "text": anything(rng)}, some_text(rng),
            {"type": "tool_result", "content": anything(rng)}, {"type": "tool_use", "name": anything(rng), "input": anything(rng)},
            {"type": "thinking", "thinking": anything(rng)}, {"type": anything(rng)}, {"type": ["text"]}, anything(rng),
        ])  # fmt: skip

    def message():
        one = {"role": rng.choice(["user", "assistant", "tool", "system", "function", "nobody"]),
               "content": rng.choice([some_text(rng), some_text(rng) * 3, None, [part() for _ in range(rng.randint(0, 3))]])}  # fmt: skip
        if rng.random() < 0.3:
            one["tool_calls"] = rng.choice([
                [{"id": "1", "function": {"name": "f", "arguments": some_text(rng)}}], anything(rng), [anything(rng)],
                [{"function": {"name": anything(rng), "arguments": anything(rng)}}],
            ])  # fmt: skip
        if rng.random() < 0.1:
            one["function_call"] = anything(rng)
        if rng.random() < 0.1:
            one[rng.choice(["role", "content", "name"])] = anything(rng)
        return one

    return [message() if rng.random() < 0.95 else anything(rng) for _ in range(rng.randint(0, 5))]


def body_for(rng: random.Random, route: str, saved: dict) -> dict:
    """Arguments of a route, some of them wrong."""
    fields: dict = {}
    if route == "/v1/compress":
        fields["texts"] = rng.choice(
            [some_text(rng), [some_text(rng) for _ in range(rng.randint(0, 4))], anything(rng)]
        )
    elif route == "/v1/explain":
        fields["text"] = rng.choice([some_text(rng), some_text(rng), anything(rng)])
    elif route == "/v1/compress_messages":
        fields["messages"] = rng.choice([messages(rng), messages(rng), messages(rng), anything(rng)])
        fields |= rng.choice(
            [{}, {"min_tokens": 0}, {"target_tokens": rng.randint(1, 400)}, {"stable": True}, {"memory": {}}]
        )
    else:
        result = dict(saved)
        for _ in range(rng.randint(0, 2)):
            name = rng.choice(list(result))
            changed = rng.choice(["value", "cut", "twist", "gone"])
            if changed == "gone":
                del result[name]
            elif changed == "value" or not isinstance(result[name], list):
                result[name] = anything(rng)
            elif changed == "cut":
                result[name] = result[name][:-1]
            else:
                result[name] = [anything(rng) if rng.random() < 0.3 else one for one in result[name]]
        fields["compressed"] = rng.choice([result, result, [result, dict(saved)], anything(rng)])
    fields |= rng.choice(
        [{}, {}, {"rate": rng.choice([0.1, 0.5, 1, 0.9])}, {"target_tokens": rng.randint(1, 100)}, {"unit": "auto"}]
    )
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        fields[rng.choice(NAMES)] = anything(rng)
    return fields


def spoiled(rng: random.Random, data: bytes) -> bytes:
    """JSON that is hit somewhere."""
    place = rng.randint(0, len(data))
    return rng.choice([
        lambda: data[:place], lambda: data[:place] + rng.randbytes(3) + data[place:], lambda: data[:place] + data[place + 1 :],
        lambda: b"\xef\xbb\xbf" + data, lambda: data.decode(errors="replace").encode("utf-16"), lambda: data + data, lambda: b"[" * 50_000,
        lambda: b'{"a":' * 20_000, lambda: b"", lambda: b"9" * 5000, lambda: b'{"texts": "a", "texts": "b"}', lambda: b"NaN",
    ])()  # fmt: skip


def head(
    rng: random.Random, method: bytes, path: bytes, length: bytes | None, token: str | None, **more: str
) -> bytes:
    lines = [
        method + b" " + path + b" HTTP/1.1",
        b"Host: " + more.pop("host", "localhost").encode(),
        b"Connection: close",
    ]
    lines += [b"Authorization: Bearer " + token.encode()] if token is not None else []
    lines += [b"Content-Length: " + length] if length is not None else []
    lines += [f"{name.replace('_', '-')}: {value}".encode("latin-1", "replace") for name, value in more.items()]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def request(rng: random.Random, saved: dict) -> tuple[str, bytes, set[int]]:
    """What kind it is, its bytes, and the statuses that it may be answered with (0: none at all)."""
    route = rng.choices(ROUTES, [8, 6, 3, 1])[0]  # restoring takes ten times as long
    data = json.dumps(body_for(rng, route, saved), ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    path, json_kind = route.encode(), {"content_type": "application/json"}
    kind = rng.choices(["arguments", "spoiled", "stranger", "host", "kind", "method", "path", "chunks", "length", "large", "http"],
                       [50, 15, 8, 3, 3, 3, 3, 4, 3, 1, 4])[0]  # fmt: skip
    length = str(len(data)).encode()
    if kind == "arguments":
        return kind, head(rng, b"POST", path, length, TOKEN, **json_kind) + data, {200, 400, 413, 422, 503}
    if kind == "spoiled":
        data = spoiled(rng, data)
        return (
            kind,
            head(rng, b"POST", path, str(len(data)).encode(), TOKEN, **json_kind) + data,
            {200, 400, 413, 422, 503},
        )
    if kind == "stranger":
        token = rng.choice([None, "", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "x" * 5000, CANARY])
        path = rng.choice([path, b"/metrics", b"/v1/", b"/v1/../metrics", b"/v1/%2e%2e/metrics"])
        return kind, head(rng, b"POST", path, length, token, **json_kind) + data, {401}
    if kind == "host":
        host = rng.choice(["evil.example", CANARY, "127.0.0.1.evil.example", "localhost.", "", "[::1", "@localhost"])
        return kind, head(rng, b"POST", path, length, TOKEN, host=host, **json_kind) + data, {421, 400}
    if kind == "kind":
        given = rng.choice(["text/plain", "application/jsonx", CANARY, "multipart/form-data; boundary=a", ""])
        return kind, head(rng, b"POST", path, length, TOKEN, content_type=given) + data, {415}
    if kind == "method":
        method = rng.choice([b"GET", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", CANARY.upper().encode()])
        return kind, head(rng, method, path, length, TOKEN, **json_kind) + data, {405}
    if kind == "path":
        path = rng.choice(
            [
                b"/" + CANARY.encode(),
                b"/v1/compress/",
                b"//v1/compress",
                b"/v1/compress%00",
                b"/etc/passwd",
                b"/v1/%F0%28",
                b"/\xc3\xa4",
            ]
        )
        return kind, head(rng, b"POST", path, length, TOKEN, **json_kind) + data, {404, 400}
    if kind == "chunks":
        parts = [data[i : i + 400] for i in range(0, len(data), 400)]
        sizes = [rng.choice([b"%x", b"%x", b"%x", b"-%x", b"%xg"]) % len(part) for part in parts]
        sent = b"".join(size + b"\r\n" + part + b"\r\n" for size, part in zip(sizes, parts)) + b"0\r\n\r\n"
        return (
            kind,
            head(rng, b"POST", path, None, TOKEN, transfer_encoding="chunked", **json_kind) + sent,
            {200, 400, 408, 413, 422, 503},
        )
    if kind == "length":
        given = rng.choice([b"-1", b"1e3", b"99999999999999999999999", b"0x10", b"5, 6", b"\xb2"])
        return kind, head(rng, b"POST", path, given, TOKEN, **json_kind) + data, {400, 413}
    if kind == "large":
        data = b'{"texts": "' + b"x" * (MAX_BODY + rng.randint(0, MAX_BODY)) + b'"}'
        return kind, head(rng, b"POST", path, str(len(data)).encode(), TOKEN, **json_kind) + data, {413}
    junk = rng.choice([rng.randbytes(rng.randint(1, 300)) + b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
                       b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"a" * 400_000 + b"\r\n\r\n",
                       b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc"])  # fmt: skip
    return kind, junk, {400, 405, 408, 0}  # of headers without an end the rest is not read, and the answer may be lost


def send(port: int, data: bytes, rng: random.Random) -> bytes:
    """The whole answer; some requests come in two pieces."""
    with socket.create_connection(("127.0.0.1", port), timeout=600) as client:
        cut = rng.randint(0, len(data)) if rng.random() < 0.1 else len(data)
        try:
            client.sendall(data[:cut])
            client.sendall(data[cut:])
        except OSError:  # it was refused before it was sent
            pass
        found = []
        try:
            while part := client.recv(65_536):
                found.append(part)
        except ConnectionResetError:
            pass
        return b"".join(found)


def check(kind: str, answer: bytes, allowed: set[int]) -> int:
    """The status; `AssertionError` if the answer is none that may be."""
    if not answer:
        assert 0 in allowed, "no answer"
        return 0
    start, _, rest = answer.partition(b"\r\n\r\n")
    status = int(start.split(b" ")[1])
    assert status in allowed and status in ALLOWED, f"status {status}, allowed are {sorted(allowed)}"
    fields = json.loads(rest)
    if status != 200:
        message = fields["error"]["message"]
        assert fields["error"]["status"] == status and message and "\n" not in message, f"message {message!r}"
        assert len(message) < 1000, f"message of {len(message)} characters"
        assert "Traceback" not in message and "site-packages" not in message, message
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    compressor = Compressor.from_pretrained("embedded")
    counts: Counter[tuple[str, int]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "token")
        file.write_text(TOKEN, encoding="ascii")
        words = ("--model", "embedded", "--base-model", "embedded", "--token-file", str(file), "--max-body-mb", "0.25", "--timeout", "600",
                 "--read-timeout", "1")  # fmt: skip
        with Served(*words) as served:
            right = {"Authorization": f"Bearer {TOKEN}"}
            saved = served.ask(
                "/v1/compress",
                {"texts": f"{CANARY} sat on the mat, and looked at it.", "details": True},
                headers=right,
            ).json
            began, workers = time.monotonic(), served.workers
            for number in range(args.requests):
                rng = random.Random(f"{args.seed} {number}")
                kind, data, allowed = request(rng, saved)
                try:
                    counts[kind, check(kind, send(served.port, data, rng), allowed)] += 1
                    if number % 50 == 0:
                        text = prose(rng)
                        answer = served.ask("/v1/compress", {"texts": text, "rate": 0.5}, headers=right)
                        assert (
                            answer.status == 200 and answer.json["text"] == compressor.compress(text, rate=0.5).text
                        ), "a right request"
                        counts["right", 200] += 1
                    assert served.process.poll() is None, "the service has ended"
                    if number % 500 == 499:
                        print(f"{number + 1:,} requests, {time.monotonic() - began:.0f} s", flush=True)
                except (AssertionError, ValueError, OSError) as error:
                    print(
                        f"request {number} of seed {args.seed}, {kind}: {type(error).__name__}: {error}\n{data[:2000]!r}"
                    )
                    print(
                        "\n".join(line for line in served.log.splitlines() if " ERROR " in line or " WARNING " in line)
                    )
                    return 1
            seconds = time.monotonic() - began
            page = served.ask("/metrics", headers=right).body.decode()
            checks = {
                "no word of a request in the log": CANARY not in served.log.lower() and TOKEN not in served.log,
                "no fault": "tokforget_faults_total 0.0" in page,
                "nothing held": "tokforget_held_bytes 0.0" in page and "tokforget_queue_requests 0.0" in page,
                "no process died": served.workers == workers and "tokforget_worker_restarts_total 0.0" in page,
                "stopped with exit code 0": served.stop() == 0,
            }
    for (kind, status), count in sorted(counts.items()):
        print(f"{kind:<10} {status or 'closed':>6} {count:>7,}")
    print(f"{args.requests:,} requests in {seconds:.0f} s")
    for name, holds in checks.items():
        print(f"{'yes' if holds else 'NO':<4} {name}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The service as clients meet it: a process of its own, asked over HTTP."""

import http.client
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.service.conftest import TOKEN
from tests.support.served import ask as ask_port
from tokforget.compression.compressor import Compressor


TEXT = "The bridge over the Arve was built in 1874 by the engineer Louis Favre. It carried a tram line until 1956."
RIGHT = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return Compressor.from_pretrained()


def test_a_text_and_a_list_come_back_in_their_shape(ask, compressor):
    single = ask("/v1/compress", {"texts": TEXT, "rate": 0.5, "question": "When was it built?"})
    assert single.status == 200 and single.headers["content-type"] == "application/json"
    assert single.json["text"] == compressor.compress(TEXT, rate=0.5, question="When was it built?").text
    several = ask("/v1/compress", {"texts": [TEXT, "", TEXT.upper()], "target_tokens": 12})
    expected = compressor.compress([TEXT, "", TEXT.upper()], target_tokens=12)
    assert [row["text"] for row in several.json["results"]] == [result.text for result in expected]
    assert [row["compressed_tokens"] <= 12 for row in several.json["results"]] == [True] * 3


def test_details_are_the_whole_result(ask, compressor):
    row = ask("/v1/compress", {"texts": TEXT, "rate": 0.5, "details": True}).json
    expected = compressor.compress(TEXT, rate=0.5)
    assert {name: row[name] for name in expected.to_dict() if name != "seconds"} == {
        name: value for name, value in json.loads(expected.to_json()).items() if name != "seconds"
    }
    assert [one["text"] for one in row["omitted"]] == [one.text for one in expected.omitted]


def test_requests_at_once_have_the_answers_of_single_calls(served, ask, compressor):
    texts = [f"{TEXT} Car number {i} of {i * 37} crossed it at {i % 24}:{i % 60:02d}." for i in range(24)]
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda text: ask("/v1/compress", {"texts": text, "rate": 0.6}), texts))
    assert [answer.json["text"] for answer in answers] == [compressor.compress(text, rate=0.6).text for text in texts]
    batches = re.search(r'tokforget_batch_requests_bucket{le="1.0"} (\d+)', ask("/metrics").body.decode())
    all_batches = re.search(r"tokforget_batch_requests_count (\d+)", ask("/metrics").body.decode())
    assert float(batches[1]) < float(all_batches[1]), "some were compressed together"


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/compress", {"texts": "a b", "rate": 2}, 422, "`rate` must lie in (0, 1], got 2."),
        ("/v1/compress", {"texts": "a b", "rate": 0.5, "quality": 0.5}, 422, "Pass one of `rate`, `target_tokens`"),
        ("/v1/compress", {"texts": ["a"] * 1025}, 422, "`texts` has 1,025 texts; at most 1,024"),
        ("/v1/compress", {"texts": "a", "count_tokens": "gpt-4o"}, 422, "`count_tokens` must be one of the vocabularies of this service"),
        ("/v1/compress", {"texts": "a", "protect": "numbrs"}, 422, "`protect` knows no 'numbrs'"),
        ("/v1/compress", b"{", 400, "The body is not JSON"),
        ("/v1/compress", b"x" * 600_000, 413, "The body is larger than 524,288 bytes (0.5 MiB)."),
        ("/v1/compress_messages", {"messages": [{"role": 5}]}, 422, "Message 0 has no `role` that is a string"),
        ("/v1/compress_messages", {"messages": [], "memory": {"a": -1}}, 422, "`memory` holds a number below 0"),
        ("/v1/explain", {"texts": "a"}, 422, "`texts` is no argument of /v1/explain. Did you mean `text`?"),
        ("/v1/restore", {"compressed": {}}, 404, "There is nothing at this address."),
        ("/v2/<script>", None, 404, "There is nothing at this address."),
        ("/v1/compress", None, 405, "/v1/compress does not take GET. It takes POST."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(ask, path, body, status, said):
    answer = ask(path, body)
    assert (answer.status, answer.json["error"]["status"]) == (status, status)
    assert said in answer.message and "\n" not in answer.message and "<script>" not in answer.message


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"X-Authorization": f"Bearer {TOKEN}"},
    ],
)
def test_nobody_comes_in_without_the_token(served, headers):
    for path, body in (
        ("/v1/compress", {"texts": "a"}),
        ("/v1/explain", {"text": "a"}),
        ("/v1/nothing", None),
        ("/metrics", None),
    ):
        answer = served.ask(path, body, headers=headers)
        assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer", path
        assert "send the header" in answer.message and TOKEN not in answer.body.decode()
    assert served.ask("/health/ready").status == served.ask("/").status == served.ask("/docs").status == 200


def test_two_tokens_in_one_request_are_none(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as client:
        client.sendall(f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\nAuthorization: Bearer {TOKEN}\r\n"
                       "Connection: close\r\n\r\n".encode())  # fmt: skip
        assert b" 401 " in client.recv(65_536).split(b"\r\n")[0]


@pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("127.0.0.1:8000", 200), ("[::1]:80", 200), ("LOCALHOST:1", 200),
                                              ("evil.example", 421), ("127.0.0.1.evil.example:80", 421), ("", 421)])  # fmt: skip
def test_it_is_called_by_its_own_names(served, host, status):
    assert served.ask("/health/live", headers={"Host": host}).status == status


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_of_another_site_can_send_is_refused(served, kind):
    answer = served.ask("/v1/compress", {"texts": "a"}, headers=RIGHT | {"Content-Type": kind})
    assert answer.status == 415 and "Content-Type: application/json" in answer.message
    packed = served.ask("/v1/compress", {"texts": "a"}, headers=RIGHT | {"Content-Encoding": "gzip"})
    assert packed.status == 415 and "Send it as it is" in packed.message


def test_a_body_without_a_length_is_measured_while_it_is_read(served):
    def parts():
        yield b'{"texts": "'
        for _ in range(600):
            yield b"x" * 1000

    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request(
        "POST", "/v1/compress", parts(), RIGHT | {"Content-Type": "application/json"}, encode_chunked=True
    )
    assert connection.getresponse().status == 413
    connection.close()


def test_every_answer_tells_browsers_what_they_may_do(ask):
    for path in ("/", "/docs", "/health/live", "/nothing", "/openapi.json"):
        headers = ask(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"
        policy = headers["content-security-policy"]
        assert (
            policy.startswith("default-src 'none'") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        )
        assert "access-control-allow-origin" not in headers and "server" not in headers


def test_pages_need_nothing_from_elsewhere(ask):
    for path in ("/", "/docs"):
        page = ask(path).body.decode()
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page) and '<link rel="stylesheet"' not in page
        assert len(re.findall("<style>", page)) == 1 and "onclick" not in page and "style=" not in page


def test_openapi_names_every_route_and_argument(ask):
    schema = ask("/openapi.json").json
    assert set(schema["paths"]) == {
        "/v1/compress",
        "/v1/compress_messages",
        "/v1/explain",
        "/health/live",
        "/health/ready",
        "/metrics",
    }
    body = schema["paths"]["/v1/compress"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"texts", "rate", "quality", "question", "protect", "unit", "count_tokens"} <= set(body["properties"])
    assert set(schema["paths"]["/v1/compress"]["post"]["responses"]) >= {"200", "401", "413", "422", "503", "504"}
    page = ask("/docs").body.decode()
    assert all(name in page for name in (*schema["paths"], *body["properties"]))


def test_metrics_count_requests_and_tokens(ask):
    def number(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", ask("/metrics").body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    names = ['tokforget_requests_total{route="/v1/compress",status="200"}', 'tokforget_tokens_in_total{route="/v1/compress"}',
             'tokforget_tokens_out_total{route="/v1/compress"}', 'tokforget_request_seconds_count{route="/v1/compress"}']  # fmt: skip
    before = [number(name) for name in names]
    row = ask("/v1/compress", {"texts": TEXT, "rate": 0.5}).json
    grown = [number(name) - old for name, old in zip(names, before)]
    assert grown == [1, row["original_tokens"], row["compressed_tokens"], 1]
    assert number("tokforget_queue_requests") == 0 and number("tokforget_held_bytes") == 0
    assert number('tokforget_info{version="0.1.0"}') == 1


def test_no_text_stands_in_the_log(served, ask):
    ask("/v1/compress?note=canary-in-query", {"texts": "canary-in-text is a word", "rate": 0.5})
    ask("/v1/compress", {"texts": "x", "canary-in-key": 1})
    ask("/v1/compress", b'{"texts": "canary-in-broken')
    ask("/canary-in-path", headers={"User-Agent": "canary-in-agent", "Referer": "http://canary-in-referer/"})
    ask("/v1/compress", {"texts": "a", "protect": "canary-in-protect"})
    ask("/v1/compress", method="CANARY")
    served.ask("/metrics", headers={"Authorization": "Bearer canary-in-token-0123456789"})
    until = time.monotonic() + 10
    while "GET /metrics 401" not in served.log and time.monotonic() < until:
        time.sleep(0.02)
    log = served.log
    assert "canary" not in log.lower() and TOKEN not in log
    assert re.search(r"127\.0\.0\.1 POST /v1/compress 422 [\d.]+ ms, \d+ B in, \d+ B out\n", log)


def test_what_is_no_http_is_answered_400(served):
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"\r\n" * 3 + b"nonsense\r\n\r\n",
                 b"GET /health/live HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):  # fmt: skip
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as client:
            client.sendall(sent + b"\n" * 4)
            answer = b"".join(iter(lambda: client.recv(65_536), b""))
        assert answer.startswith(b"HTTP/1.1 400 ") and b"This is no request of HTTP" in answer, sent


def test_a_connection_is_used_again(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    for _ in range(3):
        connection.request(
            "POST", "/v1/compress", json.dumps({"texts": TEXT}), RIGHT | {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["text"]
        own = connection.sock.getsockname()
        connection.request("GET", "/v1/nothing", headers={})
        assert connection.getresponse().read() and connection.sock.getsockname() == own
    connection.close()


def test_it_is_still_there(served):
    assert ask_port(served.port, "/health/ready").json == {"status": "ready"} and "fault" not in served.log

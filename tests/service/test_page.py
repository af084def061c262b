"""The page in a real browser: what is pasted is shown with its scores, shortened, and executed by nobody."""

import os
import shutil

import pytest


pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("playwright")

from playwright.sync_api import sync_playwright

from tests.service.conftest import TOKEN
from tests.support.served import Served
from tokforget.compression.compressor import Compressor


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]
TEXT = (
    "The bridge over the Arve was built in 1874 by the engineer Louis Favre. It carried a tram line until 1956. Since the flood of 1902 "
    "the pillars stand on concrete. Today some 14,000 cars cross it every day. It is not open to lorries above 7.5 t.\n\n"
    "<script>document.title = 'hacked'</script><img src=x onerror=\"document.title='hacked'\"> <b>bold</b> & \"quoted\" \u202eturned\u202c"
)
QUESTION = "How many cars use the bridge?"


@pytest.fixture(scope="module")
def service():
    with Served("--timeout", "600") as served:
        yield served


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A function that opens a page of a service; whatever the browser complains of fails the test."""
    opened, complaints = [], []

    def open_page(served, path: str = "/", **options):
        new = browser.new_page(**options)
        opened.append(new)
        new.set_default_timeout(120_000)
        new.on("console", lambda message: complaints.append(message.text))
        new.on("pageerror", lambda error: complaints.append(str(error)))
        new.on("request", lambda request: complaints.append(request.url) if f"127.0.0.1:{served.port}" not in request.url
               and not request.url.startswith("data:") else None)  # fmt: skip
        new.goto(f"http://127.0.0.1:{served.port}{path}")
        return new

    open_page.complaints = complaints
    yield open_page
    for one in opened:
        one.close()


def compress(page, text: str = TEXT, question: str = QUESTION) -> None:
    page.fill("#text", text)
    page.fill("#question", question)
    page.click("#go")
    page.wait_for_selector("#go:enabled")


def test_what_is_pasted_is_shown_with_scores_and_shortened(service, page):
    shown = page(service)
    assert not shown.is_visible("#result")
    compress(shown)
    expected = Compressor.from_pretrained().compress(TEXT, rate=0.5, unit="auto", question=QUESTION)
    whole = TEXT.replace("\u202e", "\ufffd").replace("\u202c", "\ufffd")
    assert shown.text_content("#map") == whole, "the heat map is the whole text"
    assert shown.text_content("#short") == expected.text.replace("\u202e", "\ufffd").replace("\u202c", "\ufffd")
    assert shown.text_content("#saved") == str(expected.original_tokens - expected.compressed_tokens)
    assert shown.text_content("#counts") == f"{expected.original_tokens} \u2192 {expected.compressed_tokens}"
    kept = shown.eval_on_selector_all(
        "#map span", "spans => spans.map(s => [s.className, s.title, getComputedStyle(s).backgroundColor])"
    )
    shown_by_python = Compressor.from_pretrained().explain(TEXT, rate=0.5, unit="auto", question=QUESTION)
    assert [state == "kept" for state, _, _ in kept] == [is_kept for _, _, is_kept in shown_by_python]
    assert all(title.startswith("score 0.") and colour.startswith("rgb(") for _, title, colour in kept)
    assert len({colour for _, _, colour in kept}) > 10, "colours tell scores apart"
    assert shown.title() == "tokforget" and shown.query_selector("#map b, #map script, #short b, #short img") is None
    assert page.complaints == []


def test_the_rate_is_what_the_slider_says(service, page):
    shown = page(service)
    shown.fill("#rate", "25")
    assert shown.text_content("#percent") == "25"
    shown.fill("#text", TEXT)
    shown.press("#text", "Control+Enter")
    shown.wait_for_selector("#result", state="visible")
    before, after = (int(part) for part in shown.text_content("#counts").split(" \u2192 "))
    assert after <= 0.25 * before and "%" in shown.text_content("#share")
    assert page.complaints == []


def test_an_error_is_said_and_hides_what_was_before(service, page):
    shown = page(service)
    compress(shown)
    assert shown.is_visible("#result")
    compress(shown, "a word " * 400_000)
    assert "The body is larger than" in shown.text_content("#error") and not shown.is_visible("#result")
    compress(shown)
    assert shown.text_content("#error") == "" and shown.is_visible("#result")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 360), ("dark", 360)])
def test_it_fits_and_can_be_read(service, page, scheme, width):
    shown = page(service, color_scheme=scheme, viewport={"width": width, "height": 900})
    compress(shown, TEXT + " " + "x" * 300)
    assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "no sideways scrolling"
    for selector in ("body", "header p", ".legend", "#short", "#map .kept", "#map .gone", "#go", "#saved"):
        assert contrast(shown, selector) >= 4.5, selector
    reference = page(service, "/docs", color_scheme=scheme, viewport={"width": width, "height": 900})
    assert reference.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert contrast(reference, "h2 .verb") >= 4.5 and page.complaints == []


def contrast(page, selector: str) -> float:
    """The least ratio of a text's luminance to that of what is behind it, as WCAG 2 counts it."""
    pairs = page.eval_on_selector_all(selector, """elements => elements.map(element => {
        let behind = element;
        while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        return [getComputedStyle(element).color, getComputedStyle(behind || document.body).backgroundColor];
    })""")  # fmt: skip
    assert pairs, selector
    ratios = []
    for pair in pairs:
        high, low = sorted((luminance(colour) for colour in pair), reverse=True)
        ratios.append((high + 0.05) / (low + 0.05))
    return min(ratios)


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_browser_refuses_a_script_that_is_not_the_pages(service, page):
    shown = page(service)
    shown.evaluate("""() => { const s = document.createElement("script"); s.textContent = "document.title = 'hacked'"; document.body.append(s);
                              const i = document.createElement("img"); i.src = "http://127.0.0.1:9/x"; document.body.append(i); }""")
    shown.wait_for_timeout(300)
    assert shown.title() == "tokforget"
    assert any("Content Security Policy" in line for line in page.complaints)


def test_another_site_gets_nothing(service, browser, tmp_path):
    """A page from elsewhere asks the service of this machine: the browser does not let it."""
    stranger = browser.new_page()
    stranger.goto("data:text/html,<title>stranger</title>")
    found = stranger.evaluate(
        """async (address) => { const got = [];
           for (const options of [{}, {method: "POST", headers: {"Content-Type": "application/json"}, body: '{"texts": "a"}'}])
             try { got.push((await fetch(address, options)).status); } catch (error) { got.push(error.name); }
           return got; }""",
        f"http://127.0.0.1:{service.port}/v1/compress",
    )
    stranger.close()
    assert found == ["TypeError", "TypeError"]


def test_with_a_token_the_page_asks_for_it(page, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with Served("--token-file", str(tmp_path / "token"), "--timeout", "600") as served:
        shown = page(served)
        shown.fill("#token", "wrong")
        compress(shown)
        assert "needs its token" in shown.text_content("#error")
        shown.fill("#token", TOKEN)
        compress(shown)
        assert shown.text_content("#error") == "" and shown.text_content("#short")
        assert shown.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]

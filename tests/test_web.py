"""The page at `/` in a headless Chromium, against a stand-in server whose answers are known."""

import contextlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev` (playwright)")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `serve`")

from local_server import running as real_server  # noqa: E402
from playwright.sync_api import Page, expect  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import FileResponse, JSONResponse, Response  # noqa: E402
from starlette.routing import Mount, Route  # noqa: E402
from starlette.staticfiles import StaticFiles  # noqa: E402
from test_bundle import write_bundle  # noqa: E402

import serving  # noqa: E402
from serving.http import operations  # noqa: E402

WEB = Path(serving.__file__).parent / "web"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CONTRAST = 4.5  # of WCAG 2.2, AA

if CHROMIUM is None:
    pytest.skip("needs a browser: `apt-get install chromium`", allow_module_level=True)

HEADS = {
    "sentiment": {"kind": "classification", "reads": "text", "task": "sentiment"},
    "emotions": {"kind": "multilabel", "reads": "text", "task": "emotions"},
    "names": {"kind": "tagging", "reads": "words", "task": "names"},
    "stars": {"kind": "regression", "reads": "text", "task": "stars"},
    "alike": {"kind": "similarity", "reads": "apart", "task": "alike"},
    "embedding": {"kind": "vector", "reads": "text", "task": "embedding"},
    "gaps": {"kind": "mlm", "reads": "masks", "task": "gaps"},
}
EMOTIONS = {f"emotion {number:02}": 0.6 / number for number in range(1, 29)}
NAMES = {"Sofia Coppola": "person", "Tokyo": "place"}
STEPS = {"wonderful": 0.3, "worth": 0.1, "drags": -0.2}
"""By so much each word moves the probability of `pos` from 0.5."""


def answer(text: str, other: str | None) -> dict[str, dict[str, Any]]:
    """What the stand-in says of a text (and a second)."""
    pos = 0.5 + sum(step for word, step in STEPS.items() if word in text)
    spans = [
        {"type": kind, "start": (at := text.index(name)), "end": at + len(name), "text": name, "score": 0.97}
        for name, kind in NAMES.items()
        if name in text
    ]
    vector = [round((-1) ** place * place / 384, 4) for place in range(384)]
    guesses = [{"token": token, "probability": p} for token, p in (("paris", 0.8), ("lyon", 0.1), ("nice", 0.05))]
    return {
        "sentiment": {"label": "pos" if pos > 0.5 else "neg", "probabilities": {"neg": 1 - pos, "pos": pos}},
        "emotions": {"labels": ["emotion 01", "emotion 02"], "probabilities": EMOTIONS},
        "names": {"spans": spans},
        "stars": {"value": 5 * pos},
        "alike": {"similarity": 0.82} if other else {"vector": vector},
        "embedding": {"vector": vector},
        "gaps": {"masks": [guesses] * text.count("[MASK]")},
    }


def stats(versions: int = 1) -> dict[str, Any]:
    """What `GET /stats` of the stand-in holds: two minutes of growing load, the first of them idle."""
    history = [
        {"time": 1_760_000_000 + second, "requests": second // 4, "texts": second // 3, "refused": 0, "failed": 0}
        | {name: scale * second / 10 if second > 60 else None for name, scale in (("p50", 1), ("p95", 2), ("p99", 3))}
        | {"queue": second % 7, "fill": 0.9 + second / 2000}
        for second in range(120)
    ]
    now = {
        "requests_per_second": 12.5,
        "texts_per_second": 14.0,
        "refused_per_second": 0.25,
        "failed_per_second": 0.0,
        "latency_ms": {"p50": 8.1, "p95": 20.0, "p99": 30.0},
        "queue": {"texts": 3, "tokens": 400, "limit": 256},
        "batch": {"fill": 0.97, "rows": 6.1},
    }
    workers = [{"pid": 4711, "state": "ready", "restarts": 0}, {"pid": 4712, "state": "starting", "restarts": 2}]
    one = {"state": "AVAILABLE", "error": None, "engine": "openvino", "precision": "int8", "requests": 1234}
    listed = [one | {"version": str(1 + number), "workers": workers, "heads": HEADS} for number in range(versions)]
    broken = {"version": "9", "state": "END", "error": "the warm-up failed: no file model.bin", "engine": "openvino"}
    listed.append(broken | {"precision": "int8", "requests": 0, "workers": [], "heads": {}})
    return {"uptime": 7384.2, "model": "many-tasks", "now": now, "history": history, "versions": listed}


class StandIn:
    """The server's answers; a test may set `refusals` (responses that come first), `key`, `versions`, `silent`."""

    def __init__(self) -> None:
        self.url = ""
        self.reset()

    def reset(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.refusals: list[Response] = []
        self.key: str | None = None
        self.versions = 1
        self.silent = False
        self.truncated = False

    def refuse(self, status: int, message: str, **headers: str) -> None:
        self.refusals.append(error(status, message, headers))

    async def classify(self, request: Request) -> Response:
        if not self._may(request):
            return error(401, "The key is missing or wrong")
        if self.refusals:
            return self.refusals.pop(0)
        body = await request.json()
        self.bodies.append(body)
        others = body.get("texts_b") or [None] * len(body["texts"])
        results = list(map(answer, body["texts"], others))
        model = {"name": "many-tasks", "version": body.get("version", "1")}
        return JSONResponse({"results": results, "truncated": [self.truncated] * len(results), "model": model})

    async def stats(self, request: Request) -> Response:
        if not self._may(request):
            return error(401, "The key is missing or wrong")
        return Response(status_code=502) if self.silent else JSONResponse(stats(self.versions))

    def _may(self, request: Request) -> bool:
        return self.key is None or request.headers.get("authorization") == f"Bearer {self.key}"

    def app(self) -> Starlette:
        async def page(request: Request) -> Response:
            return FileResponse(WEB / "index.html", headers=operations.SAFE)

        routes = [Route("/", page), Route("/classify", self.classify, methods=["POST"]), Route("/stats", self.stats)]
        return Starlette(routes=[*routes, Mount("/web", StaticFiles(directory=WEB))])


def error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"type": "refused", "message": message}}, status, headers)


@pytest.fixture(scope="module")
def running() -> Iterator[StandIn]:
    stand_in = StandIn()
    server = uvicorn.Server(uvicorn.Config(stand_in.app(), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    stand_in.url = f"http://127.0.0.1:{port}"
    yield stand_in
    server.should_exit = True
    thread.join()


@pytest.fixture
def server(running: StandIn) -> StandIn:
    running.reset()
    return running


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    expect.set_options(timeout=3000)
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM)


@pytest.fixture
def open_page(server: StandIn, browser: playwright.Browser) -> Iterator[Callable[..., Page]]:
    """`open_page(hash, **context)`: the page; at the end, none has said an error or asked another host."""
    with contextlib.ExitStack() as stack:
        faults: list[str] = []

        def open_(view: str = "", **context: Any) -> Page:
            page = stack.enter_context(contextlib.closing(browser.new_context(**context))).new_page()
            page.clock.install()
            page.set_default_timeout(3000)
            page.on("pageerror", lambda fault: faults.append(str(fault)))
            # The browser itself reports refusals as errors; those that a test wants are not the page's.
            page.on(
                "console", lambda said: said.type == "error" and not _refusal(said.text) and faults.append(said.text)
            )
            page.on("request", lambda sent: sent.url.startswith(server.url) or faults.append(sent.url))
            page.goto(f"{server.url}/{view}")
            return page

        yield open_
        assert faults == []


def _refusal(text: str) -> bool:
    return re.search(r"status of (401|422|429|502)|ERR_FAILED", text) is not None


def ask(page: Page, text: str) -> None:
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Ask the model").click()
    expect(page.locator("#said")).to_contain_text(" ms:")


def card(page: Page, head: str) -> playwright.Locator:
    return page.locator(f"article[data-head={head}]")


def test_the_labels_of_a_text_are_bars_as_long_as_their_probabilities(open_page):
    page = open_page()
    ask(page, "A wonderful film")
    rows = card(page, "sentiment").locator("li")
    assert rows.all_inner_texts() == ["pos\n80%", "neg\n20%"]
    widths = rows.locator(".bar").evaluate_all(
        "bars => bars.map(bar => parseFloat(getComputedStyle(bar, '::before').width) / bar.clientWidth)"
    )
    assert widths == pytest.approx([0.8, 0.2], abs=0.01)
    expect(page.locator("#said")).to_contain_text("sentiment: pos 80%")


def test_many_labels_show_the_best_ten_and_mark_those_over_their_threshold(open_page):
    page = open_page()
    ask(page, "A film")
    emotions = card(page, "emotions")
    expect(emotions.locator("li:visible")).to_have_count(10)
    expect(emotions.get_by_label("over its threshold")).to_have_count(2)
    emotions.get_by_role("button", name="Show all 28").click()
    expect(emotions.locator("li:visible")).to_have_count(28)


def test_entities_stand_at_their_characters_behind_astral_ones(open_page):
    page = open_page()
    ask(page, "🎬🎬 Sofia Coppola in <b>Tokyo</b>")
    names = card(page, "names")
    assert names.locator(".text").inner_text() == "🎬🎬 Sofia Coppolaperson 97% in <b>Tokyoplace 97%</b>"
    assert names.locator("mark").evaluate_all("marks => marks.map(mark => mark.firstChild.data)") == list(NAMES)


def test_values_similarities_vectors_and_guesses_are_shown(open_page):
    page = open_page()
    page.get_by_label("Second text").fill("Another film")
    ask(page, "A [MASK] film")
    expect(card(page, "stars").locator(".big")).to_have_text("2.5")
    expect(card(page, "alike").locator(".big")).to_have_text("0.82 cosine")
    expect(card(page, "embedding").locator(".big")).to_have_text("384 numbers")
    assert card(page, "gaps").locator("li").all_inner_texts() == ["paris\n80%", "lyon\n10%", "nice\n5%"]


def test_the_words_that_mattered_are_found_in_one_request_by_leaving_each_out(open_page, server):
    page = open_page()
    ask(page, "It drags, but the cast is wonderful and worth it")
    page.get_by_role("button", name="Which words mattered?").click()
    words = page.locator("#words")
    page.get_by_label("Explain").select_option("sentiment: pos")
    assert words.locator("li").all_inner_texts()[:3] == ["wonderful\n+0.300", "drags\n-0.200", "worth\n+0.100"]
    assert words.locator(".text .for").all_inner_texts() == ["wonderful", "worth"]
    assert words.locator(".text .against").all_inner_texts() == ["drags,"]
    assert words.locator(".text .against").get_attribute("title") == "-0.200"
    assert len(server.bodies) == 2
    assert len(server.bodies[1]["texts"]) == 1 + 10
    assert server.bodies[1]["texts"][:3] == [
        server.bodies[0]["texts"][0],
        "drags, but the cast is wonderful and worth it",
        "It but the cast is wonderful and worth it",
    ]


def test_the_words_of_long_pairs_are_left_out_in_groups(open_page, server):
    page = open_page()
    page.get_by_label("Second text").fill("one two three " * 30)
    ask(page, "wonderful " * 100)
    page.get_by_role("button", name="Which words mattered?").click()
    expect(page.locator("#words li")).to_have_count(8)
    body = server.bodies[1]
    assert len(body["texts"]) == len(body["texts_b"]) == 1 + 25 + 23  # 100 and 90 words, four at a time
    assert body["texts"][1] == "wonderful " * 96
    assert body["texts_b"][-1] == "one two three " * 29 + "one "


def test_words_are_those_of_the_language_with_the_marks_around_them(open_page):
    page = open_page()
    split = "async text => (await import('/web/words.js')).words(text).map(([start, end]) => text.slice(start, end))"
    said = "\u201cGreat\u201d, don't (really) miss [MASK]! \U0001f3ac\n"
    words = ["\u201cGreat\u201d, ", "don't ", "(really) ", "miss ", "[MASK]! ", "\U0001f3ac\n"]
    assert page.evaluate(split, said) == words
    assert page.evaluate(split, "\u7535\u5f71\u5f88\u597d\u3002") == ["\u7535\u5f71", "\u5f88\u597d\u3002"]
    assert page.evaluate(split, " ... ") == []


def test_a_truncated_text_is_said(open_page, server):
    server.truncated = True
    page = open_page()
    ask(page, "A film")
    expect(page.get_by_text("longer than the model reads")).to_be_visible()


def test_a_full_server_is_asked_again_after_its_time(open_page, server):
    server.refuse(429, "The queue is full", **{"retry-after": "20"})
    page = open_page()
    page.get_by_label("Text", exact=True).fill("A film")
    page.get_by_role("button", name="Ask the model").click()
    expect(page.locator("#said")).to_have_text("The queue is full. Asking again in 20 s.")
    page.clock.run_for(19_000)
    assert server.bodies == []
    page.clock.run_for(1000)
    expect(page.locator("#said")).to_contain_text("sentiment")


def test_a_refusal_shows_the_servers_message_and_what_to_do(open_page, server):
    server.refuse(422, "texts.0 must not be empty")
    page = open_page()
    page.get_by_label("Text", exact=True).fill(" ")
    page.get_by_role("button", name="Ask the model").click()
    expect(page.get_by_role("alert")).to_have_text("texts.0 must not be empty. Change it and ask again.")
    expect(page.locator("#answers > *")).to_have_count(0)


def test_a_key_is_asked_for_and_kept_in_this_tab_only(open_page, server):
    server.key = "secret"
    page = open_page()
    expect(page.locator("#state")).to_have_text("key needed")
    page.get_by_label("Text", exact=True).fill("A film")
    page.get_by_role("button", name="Ask the model").click()
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_contain_text("sentiment")
    expect(page.locator("#state")).to_have_text("ready")
    assert page.evaluate("[{...localStorage}, {...sessionStorage}, document.cookie]") == [{}, {"api-key": "secret"}, ""]
    assert "secret" not in page.locator("pre").text_content()


def test_one_of_several_versions_can_be_asked(open_page, server):
    page = open_page()
    expect(page.locator("#state")).to_have_text("ready")
    expect(page.get_by_label("Version")).to_be_hidden()
    server.versions = 2
    page.reload()
    page.get_by_label("Version").select_option("2")
    ask(page, "A film")
    assert server.bodies == [{"texts": ["A film"], "version": "2"}]
    expect(page.locator("#said")).to_contain_text("many-tasks, version 2,")


def test_the_request_can_be_copied_as_a_command(open_page, server):
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "It's 🎬")
    page.get_by_text("The same as a command").click()
    page.get_by_role("button", name="Copy the command").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == (
        f"curl -s {server.url}/classify -H 'content-type: application/json' \\\n"
        """  -d '{"texts":["It'\\''s 🎬"]}'"""
    )


def test_the_dashboard_shows_the_servers_numbers_in_words_too(open_page):
    page = open_page("#live")
    tiles = page.locator(".tile")
    expect(tiles).to_have_count(6)
    assert tiles.locator(".big").all_inner_texts() == ["12.5 /s", "14 /s", "8.1 ms", "3 texts", "97 %", "0.3 /s"]
    expect(tiles.nth(2)).to_contain_text("p50 8.1 p95 20 p99 30")
    expect(tiles.nth(2).get_by_role("img")).to_have_attribute(
        "aria-label",
        re.compile(
            r"^Latency, last two minutes. p50: from 6.1 ms to 11.9 ms, last 11.9 ms. p95: from 12.2 ms to 23.8 ms"
        ),
    )
    line = tiles.nth(2).locator("path").first.get_attribute("d")
    assert line.startswith("M62,50.85L63,50.70L64")  # nothing while idle, then one point a second
    assert line.endswith("L119,42.30L120,42.15V60H62Z")
    versions = page.locator("#versions article")
    expect(versions).to_have_count(2)
    expect(versions.first).to_contain_text("openvino · int8 · 1,234 requests")
    assert versions.first.locator("tbody tr").all_inner_texts() == [
        "process 4711\tready\t0",
        "process 4712\tstarting\t2",
    ]
    expect(versions.last).to_contain_text("the warm-up failed: no file model.bin")


def test_the_dashboard_says_when_its_numbers_are_old(open_page, server):
    page = open_page("#live")
    expect(page.locator(".tile")).to_have_count(6)
    server.silent = True
    page.clock.run_for(1000)
    expect(page.locator("#fresh")).to_contain_text("The server answered 502 Bad Gateway. The numbers are of ")
    page.route("**/stats", lambda route: route.abort())
    page.clock.run_for(1000)
    expect(page.locator("#fresh")).to_contain_text("The server does not answer. The numbers are of ")
    page.unroute("**/stats")
    expect(page.locator("#numbers")).to_have_class("stale")
    server.silent = False
    page.clock.run_for(1000)
    expect(page.locator("#fresh")).to_have_text("")
    expect(page.locator("#numbers")).not_to_have_class("stale")


def test_the_dashboard_asks_only_while_it_is_seen(open_page):
    page = open_page()
    asked: list[str] = []
    page.on("request", lambda sent: sent.url.endswith("/stats") and asked.append(sent.url))
    expect(page.locator("#state")).to_have_text("ready")
    page.clock.run_for(5000)
    assert len(asked) == 0
    with page.expect_response("**/stats"):
        page.get_by_role("tab", name="Live").click()
    for _ in range(3):
        with page.expect_response("**/stats"):
            page.clock.run_for(1000)
    assert len(asked) == 4
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true})")
    page.clock.run_for(5000)
    assert len(asked) == 4


def test_everything_is_reached_and_seen_without_a_mouse(open_page):
    page = open_page()
    expect(page.locator("#state")).to_have_text("ready")
    press, focus = page.keyboard.press, page.locator(":focus")
    press("Tab")
    expect(focus).to_have_text("Try")
    assert focus.evaluate("focus => getComputedStyle(focus).outlineStyle") == "solid"
    press("ArrowRight")
    expect(focus).to_have_text("Live")
    expect(page.get_by_role("tabpanel", name="Live")).to_be_visible()
    assert page.url.endswith("#live")
    press("ArrowRight")
    expect(page.get_by_role("tabpanel", name="Try")).to_be_visible()
    reach(page, "#text")
    page.keyboard.type("A wonderful film")
    press("Control+Enter")
    expect(page.locator("#said")).to_contain_text("pos 80%")
    for name in ("Show all 28", "Copy the vector", "Which words mattered?"):
        reach(page, f"button:text-is('{name}')")
    press("Enter")
    reach(page, "#target")
    press("End")
    expect(page.locator("#words")).to_contain_text("stars: value is 4")


def reach(page: Page, selector: str) -> None:
    """Presses Tab until what is meant has the focus."""
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.locator(f"{selector}:focus").count():
            return
    raise AssertionError(f"Tab does not lead to {selector}")


@pytest.mark.parametrize("view", ["#try", "#live"])
def test_a_narrow_screen_needs_no_scrolling_sideways(open_page, view):
    page = open_page(view, viewport={"width": 360, "height": 740})
    if view == "#try":
        ask(page, "🎬 Sofia Coppola " + "wonderful" * 30)
        page.get_by_role("button", name="Which words mattered?").click()
        expect(page.locator("#words li").first).to_be_visible()
    else:
        expect(page.locator(".tile")).to_have_count(6)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(open_page, server, scheme):
    server.truncated = True
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    ask(page, "🎬 Sofia Coppola is wonderful but it drags in Tokyo")
    page.get_by_role("button", name="Which words mattered?").click()
    expect(page.locator("#words li").first).to_be_visible()
    assert page.evaluate(LOW_CONTRAST, CONTRAST) == []
    page.goto(f"{server.url}/#live")
    expect(page.locator(".tile")).to_have_count(6)
    assert page.evaluate(LOW_CONTRAST, CONTRAST) == []


LOW_CONTRAST = """least => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const painted = colours => {
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(value => value / 255)
      .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const low = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].filter(child => child.nodeType === 3).map(child => child.data.trim()).join("");
    if (!text || !node.checkVisibility()) continue;
    const grounds = [];
    for (let each = node; each; each = each.parentElement) grounds.unshift(getComputedStyle(each).backgroundColor);
    const [ground, ink] = [painted(grounds), painted([...grounds, getComputedStyle(node).color])];
    const contrast = (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
    if (contrast < least) low.push(`${text.slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return low;
}"""


def test_the_page_needs_no_inline_script_or_style(server):
    page = (WEB / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|//", page.replace("<!doctype html>", ""))
    assert not json.dumps([path.read_text() for path in WEB.glob("*.js")]).count("innerHTML")


def test_the_real_server_brings_the_page_and_answers_it(browser, tmp_path):
    with real_server(write_bundle(tmp_path)) as address:
        page = browser.new_page()
        page.goto(address)
        ask(page, "good film")
        # Token ids 2, 6, 8 and 3: the dummy scores 2 and 1.
        assert card(page, "imdb").locator("li").all_inner_texts() == ["neg\n66.7%", "pos\n33.3%"]
        page.get_by_role("tab", name="Live").click()
        expect(page.locator("#versions")).to_contain_text("dummy · fp32 · 1 requests")
        page.close()

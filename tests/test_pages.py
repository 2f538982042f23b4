"""The pages of a report and of a comparison: what they say, in a headless Chromium that may ask nobody."""

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import page_payloads as payloads
import pytest

from bert_mtl import pages

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev` (playwright)")

from playwright.sync_api import Page, expect  # noqa: E402
from test_web import CHROMIUM, CONTRAST, LOW_CONTRAST  # noqa: E402


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    expect.set_options(timeout=3000)
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM)


@pytest.fixture(scope="module")
def report() -> dict:
    return payloads.report()


class Pages:
    """Pages in the browser, and what they did that they may not: errors, dialogues, requests beyond their own file."""

    def __init__(self, browser: playwright.Browser, folder: Path) -> None:
        self.browser, self.folder = browser, folder
        self.contexts: list[playwright.BrowserContext] = []
        self.faults: list[str] = []

    def open(self, html: str, **context: Any) -> Page:
        file = self.folder / "page.html"
        file.write_text(html, encoding="utf-8")
        self.contexts.append(self.browser.new_context(**context))
        page = self.contexts[-1].new_page()
        page.set_default_timeout(3000)
        page.on("pageerror", lambda fault: self.faults.append(str(fault)))
        page.on("console", lambda said: said.type in ("error", "warning") and self.faults.append(said.text))
        page.on("dialog", lambda dialog: self.faults.append(f"dialogue {dialog.message}") or dialog.dismiss())
        page.on("request", lambda sent: sent.url.split("#")[0] != file.as_uri() and self.faults.append(sent.url))
        page.goto(file.as_uri())
        return page


@pytest.fixture
def open_page(browser: playwright.Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """`open_page(html, **context)`: a page of the test's own."""
    opened = Pages(browser, tmp_path)
    yield opened.open
    for context in opened.contexts:
        context.close()
    assert opened.faults == []


@pytest.fixture(scope="module")
def shared(browser: playwright.Browser, tmp_path_factory: pytest.TempPathFactory, report: dict) -> Iterator[Callable]:
    """`shared(name)`: the one page of a kind, opened when it is first asked for."""
    opened = {name: Pages(browser, tmp_path_factory.mktemp(name)) for name in ("report", "compare")}

    @cache
    def page(name: str) -> Page:
        html = pages.report_page(report) if name == "report" else pages.compare_page(payloads.compare())
        return opened[name].open(html)

    yield page
    assert [fault for each in opened.values() for fault in each.faults] == []


@pytest.fixture
def page(shared: Callable[[str], Page]) -> Page:
    """The report. A test sets what it needs, as others have used the page before it."""
    return shared("report")


@pytest.fixture
def comparison(shared: Callable[[str], Page]) -> Page:
    return shared("compare")


def section(page: Page, head: str) -> playwright.Locator:
    return page.locator(f"section[id='head-{head}']")


def hits(page: Page, head: str) -> playwright.Locator:
    return section(page, head).locator("[role=status]")


def test_json_in_a_page_ends_no_script_and_has_no_numbers_that_are_not_finite():
    said = {"text": payloads.HOSTILE + "\ud83c", "numbers": [math.nan, math.inf, -math.inf, 0.5, 3]}
    text = str(pages.as_json(pages.plain(said)))
    assert not set("<>&\u2028\ud83c") & set(text)
    assert json.loads(text) == {"text": payloads.HOSTILE + "\ud83c", "numbers": [None, None, None, 0.5, 3]}


def test_numbers_have_about_four_digits():
    numbers = [0.92361, 3.14159, 41.4142, 1234.56, 22_713_216, 0.00004, 0.0, -0.5, None]
    written = ["0.9236", "3.142", "41.41", "1,234.6", "22,713,216", "4.0e−05", "0.0000", "−0.5000", "–"]
    assert list(map(pages.shown, numbers)) == written
    assert list(map(pages.percent, [0.0, 0.031, 0.5, 0.996, 1.0, None])) == [
        "0 %",
        "3.1 %",
        "50 %",
        "99.6 %",
        "100 %",
        "–",
    ]
    durations = [4.21, 59.0, 577.2, 3723.0, None]
    assert list(map(pages.duration, durations)) == ["4.2 s", "59 s", "9 min 37 s", "1 h 02 min", "–"]
    assert list(map(pages.probability, [0.0004, 0.0321, 1.0])) == ["< 0.001", "0.032", "1.000"]
    assert list(map(pages.signed, [0.0117, -0.0096])) == ["+0.0117", "−0.0096"]


def test_metrics_of_both_parts_stand_beside_each_other_the_selecting_one_first():
    dev = {"kind": "classification", "metric": "macro_f1", "examples": 9, "accuracy": 0.5, "macro_f1": 0.4, "auc": None}
    rows = pages.figure_rows({"dev": dev, "test": {"kind": "classification", "metric": "macro_f1", "examples": 0}})
    assert rows == [("macro_f1", {"dev": 0.4}), ("accuracy", {"dev": 0.5}), ("auc", {"dev": None})]


def test_many_labels_are_sorted_by_their_examples():
    labels = [f"label {place}" for place in range(13)]
    table = [[0] * 13 for _ in labels]
    table[4][4], table[4][0], table[7][7] = 6, 2, 9
    drawn = pages.heat(labels, table)
    assert drawn["labels"][:3] == ["label 7", "label 4", "label 0"]
    assert drawn["rows"][1]["total"] == 8
    assert drawn["rows"][1]["cells"][:3] == [
        {"count": 0, "share": 0},
        {"count": 6, "share": 0.75},
        {"count": 2, "share": 0.25},
    ]
    assert drawn["many"] and drawn["upright"]
    assert pages.heat(["pos", "neg"], [[1, 2], [3, 4]])["labels"] == ["pos", "neg"]
    assert pages.confused_pairs(labels, table) == [
        {"label": "label 4", "predicted": "label 0", "count": 2, "share": 0.25}
    ]


def test_the_scale_of_differences_holds_every_interval():
    against = [{"difference": 0.01, "low": -0.02, "high": 0.04}, None]
    assert pages.reach(against) == pytest.approx(0.0432)
    assert pages.reach([None]) == 1
    scores = [{"mean": 0.91234}, {"mean": 0.91231}, None, {"mean": 0.5}]
    assert pages.best(scores, True) == {0, 1}
    assert pages.best(scores, False) == {3}
    assert pages.best(scores[:1], True) == set()


def test_average_precision_is_the_mean_over_recall():
    assert pages.average_precision({"precision": [1.0, 0.5, None]}) == 0.75
    assert pages.average_precision({"precision": [None]}) is None


EYES = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""What eyes make of linear RGB (Machado et al. 2009)."""


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_of_series_differ_to_all_eyes(eyes, scheme):
    style = (pages.WEB / "page.css").read_text().split("@media screen")[scheme]
    codes = dict(re.findall(r"--(hue-\d|card): (#[0-9a-f]+)", style))
    assert len(codes) == pages.HUES + 1
    linear = {name: linear_rgb(code.replace("#fff", "#ffffff")) for name, code in codes.items()}
    card = linear.pop("card") @ LUMINANCE
    for colour in linear.values():
        low, high = sorted((card, colour @ LUMINANCE))
        assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 2.2, of graphics
    seen = [lab(np.array(EYES[eyes]) @ colour) for colour in linear.values()]
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) >= 20


LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def linear_rgb(code: str) -> np.ndarray:
    values = np.array([int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], LUMINANCE, [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(linear, 0, 1) / to_xyz.sum(axis=1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_report_says_first_what_was_learned_and_how_well(page):
    expect(page.locator("h1")).to_have_text("five-tasks-7b1f")
    expect(page.locator(".chip.sample")).to_have_text("built-in sample")
    facts = dict(zip(page.locator(".top dt").all_inner_texts(), page.locator(".top dd").all_inner_texts(), strict=True))
    assert facts["Epoch kept"] == "2 of 3"
    assert facts["Training time"] == "9 min 37 s"
    assert facts["Commit"] == "16eb58b0c1 with changes of its own"
    rows = page.locator("#summary table").first.locator("tbody tr").all_inner_texts()
    assert [row.split() for row in rows[2:4]] == [
        ["goemotions", "0.5131", "0.5131", "macro-F1", "multilabel", "5,427", "5,427"],
        ["snips_intent", "0.9800", "0.9886", "accuracy", "classification", "700", "700"],
    ]
    assert page.locator("#exits tbody tr").all_inner_texts() == ["imdb@2\taccuracy\t0.7900\t0.7900\t1,000"]


def test_errors_are_found_by_all_words_of_a_search(page, report):
    errors = report["heads"]["stsb"]["parts"]["test"]["errors"]
    texts = [f"{error['text']} {error['text_b']}".lower() for error in errors]
    found = sum("film" in text and "borrowed" in text for text in texts)
    assert 2 <= found <= 50
    stsb = section(page, "stsb")
    stsb.get_by_label("Search").fill("FILM  borrowed")
    expect(hits(page, "stsb")).to_have_text(f"{found} errors of 120")
    expect(stsb.locator(".texts > li")).to_have_count(found)
    assert {mark.lower() for mark in stsb.locator("mark.hit").all_inner_texts()} == {"film", "borrowed"}
    stsb.get_by_label("Search").fill("no such word")
    expect(hits(page, "stsb")).to_have_text("0 errors of 120")


def test_errors_are_filtered_by_labels_sorted_and_read_page_by_page(page, report):
    errors = report["heads"]["imdb"]["parts"]["test"]["errors"]
    imdb = section(page, "imdb")
    shown = imdb.locator(".texts > li")
    expect(shown).to_have_count(50)
    imdb.get_by_role("button", name="Next").click()
    imdb.get_by_role("button", name="Next").click()
    expect(shown).to_have_count(20)
    expect(imdb.locator(".pager")).to_contain_text("Page 3 of 3")
    imdb.get_by_label("True label").select_option("neg")
    of_neg = [error for error in errors if error["label"] == "neg"]
    expect(hits(page, "imdb")).to_have_text(f"{len(of_neg)} errors of 120")
    imdb.get_by_label("Sort").select_option("Least confident first")
    least = f"{of_neg[-1]['probability']:.4g}"
    expect(shown.first.locator(".answers")).to_have_text(f"labelneg answeredpos probability{least}".replace(" ", ""))
    imdb.get_by_label("Answer", exact=True).select_option("neg")
    expect(hits(page, "imdb")).to_have_text("0 errors of 120")


def test_labels_of_several_and_of_none_can_be_asked_for(page, report):
    errors = report["heads"]["goemotions"]["parts"]["test"]["errors"]
    none = sum(not error["labels"] for error in errors)
    assert none == 40
    section(page, "goemotions").get_by_label("True label").select_option("(none)")
    expect(hits(page, "goemotions")).to_have_text("40 errors of 120")
    joy = sum("joy" in error["predicted"] for error in errors)
    section(page, "goemotions").get_by_label("True label").select_option("")
    section(page, "goemotions").get_by_label("Answer", exact=True).select_option("joy")
    expect(hits(page, "goemotions")).to_contain_text(f"{joy} error")


def test_the_confusion_matrix_has_its_counts_and_leads_to_the_texts(page, report):
    trec = section(page, "trec")
    part = report["heads"]["trec"]["parts"]["test"]
    table = trec.locator("[data-of=test] .confusion")
    cells = table.locator("tbody td[data-true]").evaluate_all("cells => cells.map(cell => +cell.firstChild.data)")
    assert cells == [count for row in part["confusion"] for count in row]
    pair = pages.confused_pairs(part["labels"], part["confusion"])[0]
    expect(trec.locator("[data-of=test] .pairs tbody tr").first).to_contain_text(
        f"{pair['label']} → {pair['predicted']}\t{pair['count']}", use_inner_text=True
    )
    table.locator(f"[data-true={pair['label']}][data-predicted={pair['predicted']}]").click()
    listed = sum((error["label"], error["predicted"]) == (pair["label"], pair["predicted"]) for error in part["errors"])
    expect(hits(page, "trec")).to_have_text(f"{listed} errors of {len(part['errors'])}")


def test_one_part_is_shown_at_a_time(page):
    slots = section(page, "snips_slots")
    slots.get_by_role("button", name="test", exact=True).click()
    expect(slots.locator("[data-of=dev]").first).to_be_hidden()
    expect(hits(page, "snips_slots")).to_have_text("12 errors")
    slots.get_by_role("button", name="dev", exact=True).click()
    expect(slots.locator("[data-of=test]").first).to_be_hidden()
    expect(slots).to_contain_text("No error is kept of dev.")


def test_spans_are_marked_at_their_characters_behind_astral_ones(page):
    slots = section(page, "snips_slots")
    slots.get_by_role("button", name="test", exact=True).click()
    first = slots.locator(".texts > li").first
    marks = first.locator("mark").evaluate_all(
        "marks => marks.map(mark => [mark.firstChild.data, mark.lastChild.textContent])"
    )
    assert marks == [["two", "party_size_number"], ["Boston", "city"], ["Boston", "object_name"]]


def test_the_charts_tell_values_and_can_be_switched(page, report):
    charts = page.locator("#charts > figure")
    assert charts.locator("h3").all_inner_texts() == [
        *("Loss", "Score on dev", "Loss on dev", "Learning rate", "Speed", "Use of the device", "Mixture")
    ]
    score = charts.nth(1)
    last = [line for line in report["history"] if "seconds" in line][-1]
    expect(score.get_by_role("button", name="trec")).to_have_text(f"trec{last['trec/dev_accuracy']:.4g}")
    expect(score.get_by_role("button", name="imdb@2")).to_be_visible()
    canvas = score.get_by_role("img")
    assert canvas.get_attribute("aria-label").startswith("Score on dev. imdb: from 0.8")
    canvas.press("ArrowRight")
    expect(score.locator(".options")).to_contain_text("Step 400")
    canvas.press("ArrowRight")
    expect(score.locator(".options")).to_contain_text("Step 800")
    switch = score.get_by_role("button", name="trec")
    switch.click()
    expect(switch).to_have_attribute("aria-pressed", "false")
    charts.first.get_by_label("Log scale").check()
    expect(charts.first.locator("canvas")).to_have_count(1)
    page.get_by_text("3 more curves").click()
    assert page.locator(".more h3").all_inner_texts() == ["loss", "optimizer/gradient_norm", "score"]


def test_a_head_has_one_colour_everywhere(page):
    dots = page.locator("#index a[href='#head-trec'] i, #head-trec h2 i, #summary tr:nth-child(2) i.dot")
    colours = dots.evaluate_all("dots => dots.map(dot => getComputedStyle(dot).backgroundColor)")
    stroke = page.locator("#charts button", has_text="trec").first.locator("i")
    colours.append(stroke.evaluate("stroke => getComputedStyle(stroke).borderTopColor"))
    assert len(colours) == 4 and len(set(colours)) == 1


def test_the_index_marks_the_section_that_is_read(page):
    current = page.locator("#index [aria-current]")
    page.evaluate("document.getElementById('head-stsb').scrollIntoView({behavior: 'instant'})")
    expect(current).to_have_text("stsb")
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    expect(current).to_have_text("Summary")


def test_commands_are_copied_whole(page, report):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == report["commands"][0]["command"]


def hostile(value: Any, key: str = "") -> Any:
    """The same with every name and every text turned into a page's worst, but for the words that say what is what."""
    if isinstance(value, dict):
        return {name: hostile(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [hostile(each, key) for each in value]
    kept = key in ("kind", "metric", "path", "verdict", "part", "data", "type")
    return value if kept or not isinstance(value, str) else value[:3] + payloads.HOSTILE


@pytest.mark.parametrize("name", ["report", "compare"])
def test_names_and_texts_that_hold_html_stay_text(open_page, name):
    payload = payloads.report(errors=3, epochs=1) if name == "report" else payloads.compare(8)
    payload = hostile(payload) | {"warnings": [payloads.HOSTILE]}
    payload["heads"] = {f"{head} {payloads.HOSTILE}": about for head, about in payload["heads"].items()}
    page = open_page({"report": pages.report_page, "compare": pages.compare_page}[name](payload))
    expect(page.locator("h1")).to_contain_text(payloads.HOSTILE[:40])
    expect(page.locator(".texts li").first).to_contain_text(payloads.HOSTILE[:40])
    assert page.evaluate("[document.scripts.length, document.images.length]") == [3, 0]
    assert json.loads(page.locator("#payload").text_content()) == pages.plain(payload)


@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_narrow_screen_needs_no_scrolling_sideways(shared, name):
    page = shared(name)
    wide = page.viewport_size
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    page.set_viewport_size(wide)


@pytest.mark.parametrize("name", ["report", "compare"])
@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(245, 246, 248)"), ("dark", "rgb(16, 18, 23)")])
def test_all_text_stands_out_from_its_ground(shared, name, scheme, ground):
    page = shared(name)
    page.emulate_media(color_scheme=scheme)
    expect(page.locator(".texts li").first).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    assert page.evaluate(LOW_CONTRAST, CONTRAST) == []
    page.emulate_media(color_scheme="light")


def test_the_tables_are_read_without_scripts(open_page):
    page = open_page(pages.report_page(payloads.report(errors=1)), java_script_enabled=False)
    expect(page.locator("#summary tbody tr").first).to_contain_text("0.8873")
    expect(page.locator("#head-trec .confusion")).to_have_count(2)
    for part in ("dev", "test"):
        expect(page.locator(f"#head-trec [data-of={part}] .confusion")).to_be_visible()
    expect(page.locator(".scripted:visible")).to_have_count(0)
    expect(section(page, "imdb").locator("noscript p")).to_be_visible()


def test_the_index_and_the_controls_are_not_printed(page):
    expect(page.locator("#index")).to_be_visible()
    page.emulate_media(media="print", color_scheme="dark")
    expect(page.locator("#index")).to_be_hidden()
    expect(page.locator(".browser form").first).to_be_hidden()
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(26, 29, 35)"  # of the light page
    page.emulate_media(media="screen", color_scheme="light")


def test_only_the_page_of_a_long_list_is_in_the_document(open_page):
    payload = payloads.report(errors=4)
    long = {"text": "word " * 300, "label": "neg", "predicted": "pos", "probability": 0.9}
    imdb = payload["heads"]["imdb"]
    imdb["parts"]["test"]["errors"] = [long] * 400
    payload["heads"] = {f"head {place}": imdb for place in range(5)}
    page = open_page(pages.report_page(payload))
    expect(page.locator(".texts > li")).to_have_count(5 * 50)
    first = page.locator(".texts > li").first
    assert len(first.locator(".text > span").inner_text()) == 280
    first.get_by_role("button", name="Show all").click()
    expect(first.locator(".text > span")).to_have_text("word " * 299 + "word")


def test_what_a_run_has_not_is_said(open_page):
    payload = payloads.report(errors=2, epochs=1)
    bare = {"kind": "classification", "metric": "accuracy", "examples": 0}
    payload["heads"]["imdb"]["parts"] = {"dev": bare, "test": bare}
    payload["heads"]["trec"]["parts"]["test"] = bare
    del payload["heads"]["stsb"]["parts"]["test"]
    far = {"text": "one text", "text_b": "another", "similarity": -0.25}
    alike = {"kind": "similarity", "metric": "spearman", "examples": 9, "spearman": None, "errors": [far]}
    payload["heads"]["alike"] = payload["heads"]["stsb"] | {"kind": "similarity", "parts": {"dev": alike}}
    payload["run"] |= {"git": None, "best_epoch": 1, "machine": {"cpu": "x86", "cores": 2, "gpus": ["H100", "H100"]}}
    payload |= {"exits": {}, "history": [line for line in payload["history"] if "seconds" in line]}
    page = open_page(pages.report_page(payload))
    expect(section(page, "imdb").locator(".empty")).to_have_text("No labelled example.")
    trec = section(page, "trec")
    expect(trec.get_by_role("button", name="dev", exact=True)).to_have_attribute("aria-pressed", "true")
    trec.get_by_role("button", name="test", exact=True).click()
    expect(trec.locator("[data-of=test] .empty")).to_have_text("No labelled example in test.")
    expect(section(page, "stsb").locator(".switch")).to_have_count(0)
    expect(section(page, "alike").locator(".texts li")).to_have_text("similarity-0.25one textanother".replace("-", "−"))
    expect(page.locator(".top .facts")).to_contain_text("Commit\n–\nMachine\n2 × H100", use_inner_text=True)
    expect(page.locator("#epochs")).to_be_visible()  # one epoch is told in numbers
    expect(page.locator("#charts canvas").first).to_be_visible()


def test_a_run_without_a_history_has_no_charts(open_page):
    payload = payloads.report(errors=1) | {"history": [], "data": {}, "packing": None}
    page = open_page(pages.report_page(payload))
    expect(page.locator("#curves .empty")).to_have_text("No history was kept with this run.")
    expect(page.locator("#data .empty")).to_have_text("Nothing is known of the data.")
    expect(page.locator("canvas")).to_have_count(0)


def test_28_labels_have_a_matrix_that_scrolls_and_curves_to_pick_from(open_page):
    payload = payloads.report(errors=1)
    totals = list(range(100, 128))
    part = payloads.classification(payloads.EMOTIONS, totals, 0.6, 3, 1)
    payload["heads"] = {"goemotions": payload["heads"]["trec"] | {"parts": {"test": part}}}
    page = open_page(pages.report_page(payload), viewport={"width": 900, "height": 800})
    table = page.locator(".confusion")
    expect(table.locator("tbody td[data-true]")).to_have_count(28 * 28)
    assert table.locator("tbody th").all_inner_texts() == payloads.EMOTIONS[::-1]
    assert table.locator(".total").all_inner_texts()[:3] == ["127", "126", "125"]
    expect(page.locator(".pairs tbody tr")).to_have_count(10)
    joy = page.get_by_role("button", name="joy", exact=True)
    joy.click()
    assert page.locator("path.on").evaluate_all("paths => paths.map(path => path.dataset.label)") == ["joy"]


def test_the_comparison_says_what_is_better_in_words(comparison):
    page = comparison
    rows = page.locator("#scores tbody tr")
    assert rows.all_inner_texts()[0] == "imdb\taccuracy\t0.9236 ± 0.0042\t0.9140 ± 0.0021 ▼\t0.9353 ± 0.0012 ▲"
    assert page.locator("#scores .best").all_inner_texts() == ["0.9353 ± 0.0012 ▲", "0.9550 ± 0.0042 =", "0.8528 ="]
    against = section(page, "imdb").locator(".against tbody tr")
    assert against.locator(".verdict").all_inner_texts() == ["▼ worse", "▲ better"]
    assert against.nth(2).get_by_role("img").get_attribute("aria-label") == "+0.0117, 95 % from +0.0027 to +0.0197"
    circles = against.locator("circle").evaluate_all("circles => circles.map(circle => +circle.getAttribute('cx'))")
    reach = 1.08 * 0.0197
    assert circles == [round(80 - 76 * 0.0096 / reach, 1), round(80 + 76 * 0.0117 / reach, 1)]
    assert section(page, "imdb").locator(".mcnemar tbody tr").all_inner_texts() == [
        "together\t61\t104\t1,100\t< 0.001\t0.002",
        "taught\t61\t104\t1,100\t0.008\t0.032",
    ]
    expect(section(page, "stsb").locator(".against tbody tr").nth(2)).to_contain_text("not comparable")
    assert page.locator("#configs .changed").all_inner_texts() == ["[imdb,snips,stsb]", "[imdb,snips,stsb]", "0.5"]


def test_disagreements_are_filtered_by_who_is_right(comparison):
    page, payload = comparison, payloads.compare()
    imdb = section(page, "imdb")
    expect(hits(page, "imdb")).to_have_text("130 examples")
    right = [each["right"] for each in payload["heads"]["imdb"]["disagreements"]]
    only = {
        "Only alone right, together wrong": sum(a and not b for a, b, _ in right),
        "Only together right, alone wrong": sum(b and not a for a, b, _ in right),
        "Only alone right, taught wrong": sum(a and not c for a, _, c in right),
        "Only taught right, alone wrong": sum(c and not a for a, _, c in right),
    }
    assert list(only.values()) == [33, 33, 32, 65]
    for name, count in only.items():
        imdb.get_by_label("Who is right").select_option(f"{name} ({count})")
        expect(hits(page, "imdb")).to_have_text(f"{count} examples of 130")


def test_curves_of_groups_lie_on_each_other(comparison):
    page = comparison
    charts = page.locator("#charts > figure")
    assert charts.locator("h3").all_inner_texts() == [
        "imdb/dev_accuracy",
        "snips/slots/dev_f1",
        "stsb/dev_spearman",
        "imdb/loss",
    ]
    assert charts.first.get_by_role("button").locator("output").all_inner_texts() == ["0.8988", "0.9188", "0.9388"]
    expect(page.get_by_text("1 more curve")).to_be_visible()


def test_a_comparison_without_what_differs_says_so(open_page):
    payload = payloads.compare(0) | {"configs": {}, "curves": {}, "notes": []}
    page = open_page(pages.compare_page(payload))
    expect(page.locator("#configs .empty")).to_have_text("The configurations are the same.")
    expect(page.locator("#curves .empty")).to_have_text("No history was kept with these runs.")
    expect(page.locator(".browser")).to_have_count(0)

"""The report page in a real browser, if one is installed: nothing wider than the window, no error, legible text, and
no violation of axe-core's accessibility rules (https://github.com/dequelabs/axe-core).
"""

from __future__ import annotations

from pathlib import Path

import axe_core_python
import pytest

from bench.browser import BROWSER, Browser
from maw.config.methods import METHODS
from maw.report.html.page import report_page
from report.test_attention_page import an_attention
from report.test_page import an_example, whole_result

ENOUGH = 4.5  # contrast of text, WCAG 2.2 level AA

MEASURE = """(() => {
  const luminance = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b };
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour }
    return 'rgb(255, 255, 255)' };
  const kinds = 'p, a, th, td, li, dt, dd, summary, caption span, figcaption, h1, h2, h3'
  const worst = [...document.querySelectorAll(kinds)]
    .map(element => [luminance(getComputedStyle(element).color), luminance(ground(element))])
    .map(([a, b]) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05));
  const text = [...document.querySelectorAll('figure svg text')].map(each => each.getBoundingClientRect());
  return {
    page: document.documentElement.scrollWidth, window: innerWidth, dark: luminance(ground(document.body)) < .1,
    contrast: Math.min(...worst), smallest: Math.min(...text.map(each => each.height)),
    landmarks: [...document.querySelectorAll('section[aria-labelledby], [role=region]')]
      .map(each => each.getAttribute('aria-label') ||
                   document.getElementById(each.getAttribute('aria-labelledby')).innerText),
    results: document.querySelector('#d0-values ~ .scroll').scrollWidth,
    room: document.querySelector('#d0-values ~ .scroll').clientWidth } })()"""

# Captions wider than the box in which their table scrolls, with everything that opens on demand open
CUT_CAPTIONS = """(document.querySelectorAll('details').forEach(each => each.open = true),
  [...document.querySelectorAll('caption span')]
    .filter(each => each.getBoundingClientRect().width > each.closest('.scroll').clientWidth)
    .map(each => each.innerText))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no chromium here")
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


def look(browser, path, width, scheme):
    """What the page measures in a window, and what the browser complained of or fetched."""
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
    )
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(path.as_uri())
    found = browser.call("Runtime.evaluate", expression=MEASURE, returnByValue=True)["result"]["value"]
    kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    found["complaints"] = [event for event in browser.events if event.get("method") in kinds]
    fetched = [event["params"] for event in browser.events if event.get("method") == "Network.requestWillBeSent"]
    found["fetched"] = {each["request"]["url"] for each in fetched} - {path.as_uri()}
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    results, families = whole_result()
    path = tmp_path_factory.mktemp("page") / "report.html"
    text = report_page(results, families, {"pystdlib": an_example()}, {"pystdlib": an_attention()})
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_can_be_read(browser, page, width, scheme):
    found = look(browser, page, width, scheme)
    assert found["page"] <= found["window"] == width
    assert found["results"] <= found["room"]  # the main table is seen whole
    assert found["contrast"] >= ENOUGH
    assert found["smallest"] >= 10  # the height of a line of a chart's text, in pixels
    assert found["dark"] == (scheme == "dark")
    assert not found["complaints"]
    assert not found["fetched"]
    assert browser.evaluate(CUT_CAPTIONS) == []


def test_the_main_table_of_all_methods_is_seen_whole_on_a_desk(browser, tmp_path):
    results, families = whole_result([method.name for method in METHODS])
    path = tmp_path / "report.html"
    path.write_text(report_page(results, families), encoding="utf-8")
    found = look(browser, path, 1280, "light")
    assert found["results"] <= found["room"]


def test_landmarks_of_several_datasets_are_told_apart(browser, tmp_path):
    results, families = whole_result(datasets=("msmarco", "nq"))
    results[1]["venue"] = "Natural Questions"
    path = tmp_path / "report.html"
    path.write_text(report_page(results, families), encoding="utf-8")
    names = look(browser, path, 1280, "light")["landmarks"]
    assert len(names) == len(set(names)) >= 4


def inaccessible(browser, path, width=1280, scheme="light"):
    """What axe-core's rules find, with everything that opens on demand open: the rules, and the elements of each."""
    browser.call("Page.setBypassCSP", enabled=True)  # the page forbids scripts, and axe-core is one
    try:
        look(browser, path, width, scheme)
        browser.evaluate((Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        found = browser.evaluate("axe.run().then(({passes, violations}) => ({passes: passes.length, violations}))")
    finally:
        browser.call("Page.setBypassCSP", enabled=False)
    assert found["passes"] > 20, "the rules were applied"
    return {each["id"]: [node["html"] for node in each["nodes"]] for each in found["violations"]}


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_axe_core_finds_nothing(browser, page, width, scheme):
    assert inaccessible(browser, page, width, scheme) == {}


def test_axe_core_finds_what_is_planted(browser, page, tmp_path):
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8").replace(' role="img"', "").replace('<html lang="en">', "<html>")
    broken.write_text(text.replace("<main", '<p style="color:#999">pale</p><main'), encoding="utf-8")
    assert {"html-has-lang", "color-contrast"} <= set(inaccessible(browser, broken))


def test_planted_mistakes_are_seen(browser, page, tmp_path):
    text = page.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    planted = (
        '<p style="width:900px;color:#999">wide and pale</p><script>1</script><img src="https://example.org/a.png">'
    )
    broken.write_text(text.replace("<main", f"{planted}<main"), encoding="utf-8")
    found = look(browser, broken, 390, "light")
    assert found["page"] > 390
    assert found["contrast"] < ENOUGH
    assert found["complaints"]  # the page's policy refuses script and picture

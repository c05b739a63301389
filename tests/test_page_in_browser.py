"""The report page in a real browser, where there is one: nothing wider than its window, no error, text on its ground.

Chromium is driven through its debugging pipe (https://chromedevtools.github.io/devtools-protocol/), so that nothing
but the browser has to be installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from test_page import an_example, whole_result

from maw.report.page.page import report_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
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
  const worst = [...document.querySelectorAll('p, a, th, td, li, dt, dd, summary, caption span, figcaption, h2, h3')]
    .map(element => [luminance(getComputedStyle(element).color), luminance(ground(element))])
    .map(([a, b]) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05));
  const text = [...document.querySelectorAll('figure svg text')].map(each => each.getBoundingClientRect());
  return {
    page: document.documentElement.scrollWidth, window: innerWidth, dark: luminance(ground(document.body)) < .1,
    contrast: Math.min(...worst), smallest: Math.min(...text.map(each => each.height)),
    landmarks: [...document.querySelectorAll('section[aria-labelledby], [role=region]')]
      .map(each => each.getAttribute('aria-label')
        || document.getElementById(each.getAttribute('aria-labelledby')).innerText),
    results: document.querySelector('#d0-values ~ .scroll').scrollWidth,
    room: document.querySelector('#d0-values ~ .scroll').clientWidth } })()"""


class Browser:
    """A window of a browser without a screen."""

    def __init__(self, profile):
        self._read, theirs_out = os.pipe()
        theirs_in, self._write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        words = [BROWSER, *flags, "--remote-debugging-pipe", "about:blank"]
        # The browser wants its pipe as descriptors 3 and 4.
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *words],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._number, self.events, self._session = b"", 0, [], {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self):
        while b"\0" not in self._rest:
            piece = os.read(self._read, 1 << 16)
            assert piece, "the browser has gone"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url):
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


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
    path.write_text(report_page(results, families, {"pystdlib": an_example()}), encoding="utf-8")
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


def test_landmarks_of_several_datasets_are_told_apart(browser, tmp_path):
    results, families = whole_result(datasets=("msmarco", "nq"))
    results[1]["venue"] = "Natural Questions"
    path = tmp_path / "report.html"
    path.write_text(report_page(results, families), encoding="utf-8")
    names = look(browser, path, 1280, "light")["landmarks"]
    assert len(names) == len(set(names)) >= 4


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

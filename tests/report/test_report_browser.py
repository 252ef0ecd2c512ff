"""The page in a real browser, as wide as a desk's screen and as narrow as a phone's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from fake_runs import fake_run, fake_study

from cscl_fast.report import compare, page
from cscl_fast.report.__main__ import read_all

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH to look at pages with"
)

# The contrast (WCAG 2) of the palest text and of every line with the page.
CONTRAST = """
(() => {
  const style = getComputedStyle(document.documentElement);
  const light = name => {
    const hex = style.getPropertyValue(name).trim();
    const [r, g, b] = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light('--ground');
  const against = name => {
    const other = light(name);
    return (Math.max(ground, other) + 0.05) / (Math.min(ground, other) + 0.05);
  };
  return ['--muted', '--ink', '--link', ...[0, 1, 2, 3, 4, 5, 6].map(i => `--line-${i}`)]
    .map(against);
})()
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    long = {"road": 50.0, "a_class_with_a_very_long_name_" * 4: 20.0}
    made = {
        "run": [fake_run(folder / "run")],
        "study": [fake_study(folder / "study")],
        "old": [fake_run(folder / "old", old=True)],
        "odd": [fake_run(folder / ("long_name_" * 12), classes=long, source__root="/x" * 90)],
    }
    for name, runs in made.items():
        (folder / f"{name}.html").write_text(page(compare(read_all(runs))), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
@pytest.mark.parametrize("name", ["run", "study", "old", "odd"])
def test_fits_its_window_and_asks_for_nothing(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    browser.logged.clear()
    browser.requested.clear()
    browser.open(pages[name], width=width)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value("document.documentElement.scrollWidth") == width
    assert browser.logged == []
    outside = [u for u in browser.requested if not u.startswith(("data:", "file:"))]
    assert outside == [] and sum(u.startswith("file:") for u in browser.requested) == 1
    browser.value("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    broken = "Promise.all([...document.images].map(i => i.decode().then(() => 0, () => 1)))"
    assert not any(browser.value(f"{broken}.then(found => found)"))


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_stand_out(browser: Browser, pages: dict[str, Path], dark: bool) -> None:
    browser.open(pages["run"], width=1280, dark=dark)
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(v) for v in ground[4:-1].split(",")) < 200) == dark
    muted, ink, link, *lines = browser.value(CONTRAST)
    assert min(muted, link) > 4.5 and ink > 10  # WCAG AA for text is 4.5,
    assert min(lines) > 3  # for graphics 3


def test_text_in_charts_is_legible_on_a_phone(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["run"], width=390)
    sizes = browser.value(
        "[...document.querySelectorAll('.chart text')].map(t => "
        "parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.clientWidth / 440)"
    )
    assert len(sizes) > 50 and min(sizes) > 10  # pixels of the page


@pytest.mark.parametrize("name", ["run", "odd"])
def test_a_long_name_leaves_room_for_its_numbers_on_a_phone(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    """The first column stays where it is when a table is scrolled: it must not fill the window."""
    browser.open(pages[name], width=375)
    widest = "Math.max(...[...box.querySelectorAll('th:first-child')].map(c => c.offsetWidth))"
    found = browser.value(
        f"[...document.querySelectorAll('.sticky')].map(box => [box.clientWidth, {widest}])"
    )
    assert len(found) == 4  # scores, classes, thresholds, kept share
    for width, first in found:
        assert 40 < first < 0.55 * width
    # A short name stays in one piece beside a long one: of one line, or two.
    road = "[...document.querySelectorAll('.sticky tbody th')].find(c => c.innerText == 'road')"
    assert browser.value(f"{road}.offsetHeight") < 60

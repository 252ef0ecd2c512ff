"""The documentation as a site: it builds without a warning, is complete, and asks nobody else."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ops", "models", "data", "scenes", "studies", "report")  # that export names

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("material", "mkdocstrings_handlers")),
    reason='the site needs `pip install ".[docs]"`',
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # An address that no request gets through: the build needs no network.
    environment = os.environ | {
        "NO_MKDOCS_2_WARNING": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def documented(site: Path) -> set[str]:
    """The names that the reference holds, from the inventory that other sites link by."""
    data = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(data[data.index(b"zlib.\n") + 6 :]).decode().splitlines()
    return {line.split()[0] for line in lines}


class Requests(HTMLParser):
    """Addresses that a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(values.get("src") or "")
        if tag == "link" and values.get("rel") != "canonical":
            self.addresses.append(values.get("href") or "")


MODULES = ("cscl_fast", *(f"cscl_fast.{name}" for name in PACKAGES))


@pytest.mark.parametrize("module", MODULES)
def test_reference_holds_every_public_name(documented: set[str], module: str) -> None:
    # Modules have no entry of their own: what they export has.
    parts = {"__version__", "backends", "trainer", *PACKAGES}
    last = {name.rpartition(".")[2] for name in documented if name.startswith("cscl_fast.")}
    missing = set(importlib.import_module(module).__all__) - parts - last
    assert not missing, f"docs/reference has no page with {sorted(missing)} of {module}"


def test_shapes_of_the_signatures_are_shown(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "reference" / "operators.html").read_text("utf-8"))
    assert re.search(r"logits\s*\(\s*Tensor\s*\)\s*–\s*\[B, K, h, w\] float32", text)


def test_every_page_of_the_documentation_is_on_the_site(site: Path) -> None:
    for path in (ROOT / "docs").rglob("*.md"):
        page = path.relative_to(ROOT / "docs").with_suffix(".html")
        page = page.with_name("index.html") if page.name == "README.html" else page
        assert (site / page).is_file(), f"{path} is not in the navigation of mkdocs.yml"
    for name in ("index", "CONTRIBUTING", "CHANGELOG"):
        assert (site / "project" / f"{name}.html").is_file()


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    pages = [p for p in site.rglob("*.html") if p.name != "404.html"]
    assert len(pages) > 20
    for page in pages:
        requests = Requests()
        requests.feed(page.read_text("utf-8"))
        for address in requests.addresses:
            if not address.startswith("data:"):
                assert "//" not in address, f"{page.relative_to(site)} fetches {address}"
                file = page.parent / address.partition("?")[0].partition("#")[0]
                assert file.exists(), f"{page.relative_to(site)}: there is no {address}"


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for address in re.findall(r'<a [^>]*href="([^"#?]+)', page.read_text("utf-8")):
            if ":" not in address:
                assert (page.parent / address).exists(), f"{page.relative_to(site)}: {address}"

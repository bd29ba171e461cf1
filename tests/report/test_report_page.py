"""The page: self-contained, escaped, and looked at in a real browser where there is one."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.report.written import write_table

from nst.report.figures import Axis, log_ticks, ticks
from nst.report.table import read_table
from nst.report.write import write_result

BROWSER = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: the page cannot be looked at")
VOID = {"meta", "link", "img", "br", "line", "circle", "polygon", "polyline"}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    folder = write_table(tmp_path)
    evidence = folder / "evidence"
    evidence.mkdir()
    values = {kernel: {"before": [0.2, 0.3], "after": [0.01, 0.02]} for kernel in ("linear", "polynomial", "gaussian")}
    points = np.random.default_rng(0).normal(size=(12, 2)).round(2).tolist()
    content = {
        "runs": [], "images": 256, "mmd": {"student": values, "nst_poly": values},
        "tsne": {name: {"teacher": points, "student": points} for name in ("student", "nst_poly")},
    }  # fmt: skip
    (evidence / "small.json").write_text(json.dumps(content))
    for name in ("teacher", "nst_poly"):
        Image.new("RGB", (40, 30), "red").save(evidence / f"small-{name}.png")
    write_result(read_table(folder, tmp_path), folder, tmp_path)
    return folder / "page.html"


class Balanced(HTMLParser):
    """Fails at a tag closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag that closes itself."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_is_self_contained_and_whole(page: Path):
    text = page.read_text()
    for part in ("Training curves", "MMD²", "single neurons", "Channels of teacher", "Cost", "Commit", "configuration"):
        assert part in text
    parser = Balanced()
    parser.feed(text)
    assert not parser.open
    assert "<script" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert not re.findall(r"https?://|url\(", text)
    assert "NST &lt;poly&gt;" in text
    assert "<poly>" not in text
    assert "prefers-color-scheme: dark" in text


def look(page: Path, to: Path, width: int, dark: bool) -> np.ndarray:
    """A screenshot as pixels `[H, W, 3]`."""
    assert BROWSER is not None
    scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars",
            f"--user-data-dir={to.parent / to.stem}", f"--window-size={width},2600", *scheme, f"--screenshot={to}",
            page.as_uri(),
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return np.asarray(Image.open(to).convert("RGB")).astype(int)


def dump(page: Path, tmp_path: Path, probe: str, width: int) -> str:
    """The value of a JavaScript expression in the page, laid out at this width."""
    assert BROWSER is not None
    probed = tmp_path / "probed.html"
    script = f"<script>document.title = String({probe})</script>"
    probed.write_text(page.read_text().replace("</body>", script + "</body>"))
    found = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'probe'}",
            f"--window-size={width},2000", "--dump-dom", probed.as_uri(),
        ],
        check=True, capture_output=True, timeout=120, text=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", found.stdout)
    assert title is not None
    return title[1]


@needs_browser
def test_light_and_dark(page: Path, tmp_path: Path):
    light, dark = (look(page, tmp_path / f"{d}.png", 1100, d == "dark") for d in ("light", "dark"))
    assert light[5, 5].min() > 240
    assert dark[5, 5].max() < 40
    for picture in (light, dark):  # text and figures stand out from the paper, all the way down
        contrast = np.abs(picture - picture[5, 5]).sum(2) > 150
        assert all(part.any() for part in np.array_split(contrast[:2000], 20))


@needs_browser
@pytest.mark.parametrize("width", [500, 1100])
def test_nothing_sticks_out_sideways(page: Path, tmp_path: Path, width: int):
    assert dump(page, tmp_path, "document.documentElement.scrollWidth <= innerWidth", width) == "true"
    drawn = "[...document.querySelectorAll('svg.plot')].every(s => s.getBoundingClientRect().height > 60)"
    assert dump(page, tmp_path, drawn, width) == "true"
    assert dump(page, tmp_path, "[...document.images].every(i => i.complete && i.naturalWidth > 0)", width) == "true"


def test_ticks_are_round_and_within():
    assert ticks(0, 400, 4) == [0, 100, 200, 300, 400]
    assert ticks(93.2, 96.1) == [93.5, 94.0, 94.5, 95.0, 95.5, 96.0]
    assert log_ticks(0.5, 40) == [0.5, 1, 2, 5, 10, 20]
    assert log_ticks(70, 110) == [70, 80, 90, 100, 110]
    assert log_ticks(1e-6, 1) == [10.0**d for d in range(-6, 1)]


def test_axis_keeps_values_inside():
    for log in (False, True):
        axis = Axis([0.01, 3.0, 8.0], log=log)
        assert 0 < axis(0.01) < axis(3.0) < axis(8.0) < 100
    assert Axis([5.0])(5.0) == 50

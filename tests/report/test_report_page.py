"""The page: self-contained, escaped, and looked at in a real browser where there is one."""

import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.report.written import write_evidence, write_table

from nst.report.figures import Axis, log_ticks, ticks
from nst.report.page import policy
from nst.report.table import read_table
from nst.report.write import write_result

BROWSER = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: the page cannot be looked at")
VOID = {"meta", "link", "img", "br", "line", "circle", "polygon", "polyline"}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    folder = write_table(tmp_path)
    write_evidence(folder)
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


def test_says_what_a_reader_asks_first(page: Path):
    """Outside of anything to be opened: weights, length, rate, test images, colours, runs lost, what the baseline is."""
    visible = re.sub(r"<details>.*?</details>", "", page.read_text(), flags=re.S)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", visible))
    for part in (
        "epochs 2; learning rate 0.1 (cosine); batch size 128; training images all; test images 360; seeds 0, 1, 2",
        "Baseline: student trained without a teacher", "nst_poly 50 †", "† default weight, not tuned",
        "baseline methods with NST other methods published", "median", "Runs that fell back: 0; that diverged: 0.",
    ):  # fmt: skip
        assert part in text
    assert text.index("Δ vs. baseline") < text.index("last epoch median")
    assert "student alone" not in page.read_text().lower()


def test_policy_allows_the_one_style_and_inline_pictures(page: Path):
    style = page.read_text().split("<style>")[1].split("</style>")[0]
    content = unescape(page.read_text().split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0])
    assert content == policy(style)
    assert content.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in content


@needs_browser
def test_the_policy_stops_scripts_and_other_styles(page: Path, tmp_path: Path):
    """Even where something had slipped in: neither script, handler, style attribute nor picture from elsewhere acts."""
    probe = "<script>document.title='run'</script><img src='x' onerror=\"document.title='run'\">"
    styled = "<p id='p' style='color: red'>red?</p>"
    page.write_text(page.read_text().replace("</main>", f"{probe}{styled}</main>"))
    found = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            f"--user-data-dir={tmp_path / 'policy'}", "--enable-logging=stderr", "--dump-dom", page.as_uri(),
        ],
        check=True, capture_output=True, timeout=120, text=True,
    )  # fmt: skip
    assert "<title>A test</title>" in found.stdout
    assert found.stderr.count("Content Security Policy") >= 3


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
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())  # which forbids the probe
    probed.write_text(text.replace("</body>", script + "</body>"))
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

"""The page in a real browser: what a visitor clicks, hears and reads, and that nothing is asked of other hosts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = [
    "--no-sandbox",  # in a container there is none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def visit(demo: Any) -> Iterator[Any]:
    """The page, opened; `requests` and `errors` collect what the browser asks for and complains about."""
    if BROWSER is None:
        pytest.skip("there is no chromium here; apt-get install chromium")
    playwright_api = pytest.importorskip("playwright.sync_api")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.requests, page.errors = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("response", lambda answer: page.errors.append(answer.url) if answer.status >= 400 else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda line: page.errors.append(line.text) if line.type == "error" else None)
        page.goto(demo.url)
        page.wait_for_selector("#generate")
        yield page
        browser.close()


def choose(page: Any, kind: str) -> None:
    page.get_by_label(kind, exact=True).check()


def make(page: Any, end: str = "done") -> str:
    """Click, wait for the end and return what it says."""
    page.click("#generate")
    page.wait_for_selector(f".state.{end}", timeout=60_000)
    return str(page.inner_text(".state"))


def samples_of(page: Any, place: int) -> list[int | float]:
    """Return number, rate and peak of the samples that the page's player would play."""
    page.wait_for_selector(f"#audio_{place} a[download]", timeout=20_000)
    # The rate is that of the browser's decoder, which resamples; the file's own stands in its header.
    return list(
        page.evaluate(
            """async place => {
                const link = document.querySelector(`#audio_${place} a[download]`);
                const bytes = await (await fetch(link.href)).arrayBuffer();
                const rate = new DataView(bytes).getUint32(24, true);
                const sound = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
                return [sound.length, rate, Math.max(...sound.getChannelData(0).map(Math.abs))];
            }""",
            place,
        )
    )


def test_text_becomes_clips_and_nothing_leaves(visit: Any, demo: Any) -> None:
    visit.fill("#text textarea", "a calm flute")
    assert make(visit).startswith("Made 2 clips in")
    for place in (0, 1):
        length, rate, peak = samples_of(visit, place)
        assert (length, rate) == (24 * 160, 8000)
        assert 0 < peak <= 1
    seed = visit.input_value("#seed input")
    assert f"--seed {seed}" in visit.inner_text("#settings_0").replace("\n", " ")
    assert not visit.locator("#audio_2").is_visible()
    visit.wait_for_timeout(500)
    elsewhere = [url for url in visit.requests if not url.startswith((demo.url, "data:", "blob:"))]
    assert not elsewhere
    assert len(visit.requests) > 10  # the page's own are seen
    assert not visit.errors


def test_a_seed_that_is_typed_is_taken(visit: Any) -> None:
    visit.fill("#seed input", "77")
    visit.wait_for_function("!document.querySelector('#surprise input').checked")
    make(visit)
    assert visit.input_value("#seed input") == "77"
    assert "--seed 77" in visit.inner_text("#settings_0").replace("\n", " ")
    visit.fill("#seed input", "-5")
    assert make(visit, "failed").startswith("Seed -5 is too large or negative")


def test_a_mistake_is_read_on_the_page(visit: Any) -> None:
    choose(visit, "Change a part")
    assert make(visit, "failed") == "There is no recording yet; drop one into the field Recording."
    assert visit.locator("[role=alert]").is_visible()
    choose(visit, "Loop")
    assert make(visit).startswith("Made 2 clips in")


def test_a_recording_is_changed(visit: Any, recording: Path) -> None:
    choose(visit, "Change a part")
    visit.set_input_files("#recording input[type=file]", recording)
    visit.get_by_text("my_song.wav: 1.50 s").or_(visit.get_by_text("my song.wav: 1.50 s")).wait_for(
        timeout=20_000
    )
    assert make(visit).startswith("Made 2 clips in")
    assert samples_of(visit, 0)[:2] == [1.5 * 8000, 8000]
    assert "--region 0.6:0.9" in visit.inner_text("#settings_0").replace("\n", " ")
    assert not visit.errors


def test_cancel(visit: Any) -> None:
    visit.get_by_text("Advanced: how the sampler works").click()
    visit.get_by_label("Steps").fill("500, 500, 500, 500")
    visit.click("#generate")
    visit.get_by_text("about").wait_for(timeout=20_000)
    assert visit.locator("#generate").is_disabled()
    visit.click("#cancel")
    visit.get_by_text("Cancelled.").wait_for(timeout=10_000)
    assert visit.locator("#generate").is_enabled()


def test_a_phone_scrolls_down_alone(visit: Any) -> None:
    visit.set_viewport_size({"width": 360, "height": 740})
    assert make(visit).startswith("Made 2 clips in")
    visit.wait_for_timeout(300)
    assert visit.evaluate("document.documentElement.scrollWidth") <= 360

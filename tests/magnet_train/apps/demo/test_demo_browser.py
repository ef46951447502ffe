"""The page in Chromium: clicks, played audio, shown text, and no request to another host."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from magnet_train.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture
def visit(tab: Any, demo: Any) -> Any:
    """The opened page."""
    tab.goto(demo.url)
    tab.wait_for_selector("#generate")
    return tab


def choose(page: Any, task: str) -> None:
    page.get_by_label(task, exact=True).check()


def make(page: Any, end: str = "done") -> str:
    """Click Generate, wait for the end and return the status line."""
    page.evaluate("document.querySelector('.state').className = 'state'")  # of the previous request
    page.click("#generate")
    page.wait_for_selector(f".state.{end}", timeout=120_000)
    return str(page.inner_text(".state"))


def command_of(page: Any, place: int) -> str:
    return str(page.inner_text(f"#command_{place} .cm-content"))


def file_of(page: Any, place: int) -> bytes:
    """Return the file of the page's player as the browser downloads it."""
    page.wait_for_selector(f"#audio_{place} a[download]", timeout=20_000)
    return bytes(
        page.evaluate(
            """async place => {
                const link = document.querySelector(`#audio_${place} a[download]`);
                return Array.from(new Uint8Array(await (await fetch(link.href)).arrayBuffer()));
            }""",
            place,
        )
    )


def samples_of(page: Any, place: int) -> list[int | float]:
    """Return number, sample rate and peak of the samples in the page's player."""
    page.wait_for_selector(f"#audio_{place} a[download]", timeout=20_000)
    # The browser's decoder resamples, so the rate is read from the WAV header.
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


def regenerated(page: Any, place: int, folder: Path) -> bytes:
    """Run the command that the page shows, in the folder of the files that it names."""
    words = shlex.split(command_of(page, place), comments=True)
    assert words[:2] == ["magnet-train", "generate"]
    assert main(words[1:]) == 0
    return next((folder / words[-1]).glob("[0-9]*")).read_bytes()


@pytest.fixture
def here(tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the recording under its name and under the name of its upload."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_song.wav").write_bytes(recording.read_bytes())
    return tmp_path


def upload(page: Any, recording: Path) -> None:
    page.set_input_files("#recording input[type=file]", recording)
    page.get_by_text(re.compile(r"my.song\.wav: 1\.50 s")).wait_for(timeout=20_000)


def test_text_becomes_clips_without_requests_to_other_hosts(visit: Any, demo: Any, here: Path) -> None:
    visit.fill("#text textarea", "a calm flute")
    assert make(visit) == "Made 2 clips."
    for place in (0, 1):
        length, rate, peak = samples_of(visit, place)
        assert (length, rate) == (24 * 160, 8000)
        assert 0 < peak <= 1
        assert regenerated(visit, place, here) == file_of(visit, place)
    seed = visit.input_value("#seed input")
    assert f"--seed {seed}" in command_of(visit, 0)
    assert visit.locator("#picture_0 img").is_visible()
    assert not visit.locator("#audio_2").is_visible()
    visit.wait_for_timeout(500)
    elsewhere = [url for url in visit.requests if not url.startswith((demo.url, "data:", "blob:"))]
    assert not elsewhere
    assert len(visit.requests) > 10  # requests are recorded
    assert not visit.errors


def test_a_recording_is_continued(visit: Any, here: Path, recording: Path) -> None:
    choose(visit, "Continue a recording")
    upload(visit, recording)
    assert make(visit) == "Made 2 clips."
    with visit.expect_download() as download:
        visit.locator("#prompt a[download]").first.click()
    download.value.save_as(here / download.value.suggested_filename)
    assert regenerated(visit, 0, here) == file_of(visit, 0)
    assert not visit.errors


def test_a_recording_is_changed(visit: Any, here: Path, recording: Path) -> None:
    choose(visit, "Change a part")
    upload(visit, recording)
    assert make(visit) == "Made 2 clips."
    assert samples_of(visit, 0)[:2] == [1.5 * 44_100, 44_100]
    assert "--region 0.6:0.9" in command_of(visit, 0)
    assert regenerated(visit, 1, here) == file_of(visit, 1)
    assert not visit.errors


def test_a_loop(visit: Any, here: Path) -> None:
    choose(visit, "Loop")
    assert make(visit) == "Made 2 clips."
    assert "--loop" in command_of(visit, 0)
    assert regenerated(visit, 0, here) == file_of(visit, 0)
    assert not visit.errors


def test_what_to_avoid_bars_format_and_loudness(visit: Any, here: Path) -> None:
    choose(visit, "Loop")
    visit.get_by_label("Without").fill("a loud bell")
    visit.fill("#bars input", "1")
    visit.fill("#bpm input", "503")
    visit.fill("#loudness input", "-23")
    choose(visit, "flac")
    assert make(visit) == "Made 2 clips. Words that the model does not know: loud, bell."
    words = command_of(visit, 0)
    for part in ("--negative 'a loud bell'", "--bars 1 --bpm 503", "--loudness=-23", "--format flac"):
        assert part in words
    assert "--seconds" not in words
    assert regenerated(visit, 0, here) == file_of(visit, 0)
    assert file_of(visit, 0)[:4] == b"fLaC"
    assert "-23.0 LUFS" in visit.inner_text("#audio_0")
    # gradio draws no waveform of a FLAC, and falls back to the browser's own player
    visit.wait_for_function("Math.abs(document.querySelector('#audio_0 audio').duration - 240 / 503) < 0.001")
    assert set(visit.errors) <= {"Waveform load error: MediaError"}
    choose(visit, "New clip")
    visit.locator("#bars").wait_for(state="hidden")


def test_cancel(visit: Any) -> None:
    visit.get_by_text("Advanced: sampler settings").click()
    visit.get_by_label("Steps").fill("500, 500, 500, 500")
    visit.click("#generate")
    visit.get_by_text("about").wait_for(timeout=60_000)
    assert visit.locator("#generate").is_disabled()
    visit.click("#cancel")
    visit.get_by_text("Cancelled.").wait_for(timeout=10_000)
    assert visit.locator("#generate").is_enabled()
    visit.get_by_label("Steps").fill("2, 1, 1, 1")
    assert make(visit) == "Made 2 clips."


def test_a_typed_seed_is_used(visit: Any) -> None:
    visit.fill("#seed input", "77")
    visit.wait_for_function("!document.querySelector('#random_seed input').checked")
    make(visit)
    assert visit.input_value("#seed input") == "77"
    assert "--seed 77" in command_of(visit, 0)
    visit.fill("#seed input", "-5")
    assert make(visit, "failed").startswith("Seed -5 should be a whole number from 0")


def test_an_error_is_shown_on_the_page(visit: Any) -> None:
    choose(visit, "Change a part")
    assert make(visit, "failed") == "There is no recording yet; drop one into the field Recording."
    assert visit.locator("[role=alert]").is_visible()
    choose(visit, "Loop")
    assert make(visit) == "Made 2 clips."


def test_an_example_and_earlier_clips(visit: Any) -> None:
    visit.get_by_text("a calm flute on high do").click()
    visit.wait_for_function("document.querySelector('#text textarea').value === 'a calm flute on high do'")
    make(visit)
    seed = visit.input_value("#seed input")
    assert not visit.locator(".earlier").is_visible()
    make(visit)
    rows = visit.locator(".earlier details")
    assert rows.count() == 2
    assert f"New clip, seed {seed}" in rows.first.inner_text()
    rows.first.locator("summary").click()
    length = visit.evaluate(
        """async () => {
            const player = document.querySelector('.earlier audio');
            const bytes = await (await fetch(player.src)).arrayBuffer();
            return bytes.byteLength;
        }"""
    )
    assert length == 44 + 2 * 24 * 160
    assert not visit.errors


def test_a_phone_scrolls_vertically_only(visit: Any) -> None:
    visit.set_viewport_size({"width": 360, "height": 740})
    assert make(visit) == "Made 2 clips."
    visit.wait_for_timeout(300)
    assert visit.evaluate("document.documentElement.scrollWidth") <= 360

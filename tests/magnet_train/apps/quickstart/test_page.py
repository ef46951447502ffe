"""The page of the quickstart, made from small arrays of a world of its own."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from magnet_train.apps.html_page import VOID
from magnet_train.apps.quickstart.curves import draw_curves
from magnet_train.apps.quickstart.demonstrations import Demonstration, Sound, demonstrate
from magnet_train.apps.quickstart.page import Example, write_page
from magnet_train.apps.quickstart.report import Report
from magnet_train.apps.quickstart.spectrogram import spectrogram

RATE = 16_000
HOSTILE = "a <script>document.title = 'taken'</script> beat & \"more\" <img src=http://host/x>"
METRICS = """step,train/loss_codebook_0,train/loss_codebook_1,val/loss_codebook_0,val/loss_codebook_1
9,5.2,5.5,,
19,4.1,5.0,4.4,5.1
39,,,3.0,4.2
"""


def tone(seconds: float, frequency: float = 1000.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


VERDICT = "It learned: 40 clips match <them>, after 2.0 minutes."
REPORT = Report(
    minutes=2.0,
    n=40,
    accuracy={"tempo": 0.984, "bass line": 0.5},
    unseen={"tempo": 0.9, "bass line": 0.4},
    ceiling={"tempo": 1.0, "bass line": 0.92},
    chance={"tempo": 0.25, "bass line": 0.125},
    unconditional={"tempo": 0.2, "bass line": 0.1},
    val_loss_per_codebook=[3.0, 4.2],
)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "metrics.csv").write_text(METRICS)
    clips = tone(0.5), tone(0.5, 500), tone(0.4, 200)
    examples = [Example(HOSTILE, *clips), Example("slow drums", *clips)]
    loop = Sound("loop", tone(0.8), ((0.5, 0.5),), loop=True)
    edit = Sound("after", tone(1), ((0.25, 0.75),))
    shown = [
        Demonstration("A loop", "It goes on.", f"magnet-train generate --text '{HOSTILE}'", (loop,)),
        Demonstration("An edit", "Before and after.", "magnet-train generate", (edit,)),
    ]
    write_page(tmp_path / "index.html", REPORT, VERDICT, examples, shown, tmp_path / "metrics.csv", 64, RATE)
    return tmp_path / "index.html"


class Reader(HTMLParser):
    """Collects elements and text, and checks that every element ends."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def read(page: Path) -> Reader:
    return Reader(page.read_text(encoding="utf-8"))


def test_everything_is_on_the_page_in_its_order(read: Reader) -> None:
    text = "\n".join(read.text)
    places = [
        text.index(words)
        for words in ("It learned\n", "40 clips match <them>", "tempo\n", "bass line\n", "slow drums", "codebook 0: 3.00",
                      "uniform guess over 64 entries", "A loop", "It goes on.", "An edit", "after\n")
    ]  # fmt: skip
    assert places == sorted(places)
    for score in (
        "98 %",
        "90 %",
        "20 %",
        "25 %",
        "ceiling 100 %",
        "50 %",
        "40 %",
        "10 %",
        "12 %",
        "ceiling 92 %",
    ):
        assert score in read.text, score
    bars = [
        found["style"] for tag, found in read.elements if tag in ("i", "b")
    ]  # score, then ceiling, of each
    assert bars[::2] == [f"width: {share}%" for share in (98.4, 90, 20, 25, 50, 40, 10, 12.5)]
    assert bars[1::2] == ["left: 100%"] * 4 + ["left: 92%"] * 4
    assert [name for name in read.text if name in ("real", "through the codec", "generated")][2:] == [
        *("real", "through the codec", "generated") * 2
    ]


def test_captions_stay_text(read: Reader) -> None:
    assert f"“{HOSTILE}”" in read.text
    assert f"magnet-train generate --text '{HOSTILE}'" in read.text
    assert not read.named("script")
    assert len(read.named("img")) == 8


def test_nothing_is_loaded(read: Reader) -> None:
    addresses = [
        value for _, found in read.elements for key, value in found.items() if key in ("src", "href")
    ]
    assert len(addresses) == 16
    assert all(
        address.startswith(("data:image/jpeg;base64,", "data:audio/wav;base64,")) for address in addresses
    )
    style = "".join(read.text)
    assert "url(" not in style
    assert "@import" not in style


def test_players_hold_the_clips_and_the_loop_loops(read: Reader) -> None:
    players = read.named("audio")
    assert all("controls" in attributes for attributes in players)
    assert ["loop" in attributes for attributes in players] == [False] * 6 + [True, False]
    lengths = [
        len(soundfile.read(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1])))[0]) / RATE
        for attributes in players
    ]
    assert lengths == [0.5, 0.5, 0.4, 0.5, 0.5, 0.4, 0.8, 1]
    marks = [found["style"] for found in read.named("span") if (found.get("style") or "").startswith("left")]
    assert marks == ["left: 50%; width: 0%", "left: 25%; width: 50%"]


@pytest.mark.parametrize(("frequency", "row"), [(100.0, 5), (1000.0, 38), (7900.0, 111)])
def test_a_tone_is_bright_at_its_height(frequency: float, row: int) -> None:
    drawn = imread(io.BytesIO(spectrogram(tone(1.0, frequency), RATE)), format="jpeg").astype(int)
    assert drawn.shape[0] == 112
    assert drawn.shape[1] == pytest.approx(100, abs=2)
    bright = drawn[:, 20:80].sum(axis=(1, 2))[::-1]
    assert int(bright.argmax()) == pytest.approx(row, abs=3)
    assert bright.max() > 3 * np.median(bright)


@pytest.mark.parametrize("samples", [1, 100, 400])
def test_a_clip_shorter_than_a_window_is_drawn(samples: int) -> None:
    assert spectrogram(tone(1.0)[:samples], 8000).startswith(b"\xff\xd8")


@pytest.mark.parametrize("rows", ["", "9,5.0,\n"])
def test_curves_of_a_run_without_validation(rows: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss_codebook_0,val/loss_codebook_0\n" + rows)
    drawn = Reader(draw_curves(tmp_path / "metrics.csv", 256))
    assert "uniform guess over 256 entries" in drawn.text


def test_curves_stay_inside_the_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS.replace("5.5", "55"))
    drawn = Reader(draw_curves(tmp_path / "metrics.csv", 64))
    lines = [found["points"].split() for found in drawn.named("polyline")]
    assert [len(line) for line in lines] == [2, 2, 2, 2]
    places = [tuple(map(float, point.split(","))) for line in lines for point in line]
    assert all(0 <= x <= 640 and 0 <= y <= 320 for x, y in places)
    assert max(x for x, _ in places) == 632  # the last step is at the right margin


MOVED = """async () => {
    const player = document.querySelector('audio'), places = [0.4, 0.1, 0.45, 0.25, 0.35, 0.05];
    for (const place of places) {
        player.currentTime = place;
        await new Promise((done, failed) => {
            player.onseeked = done;
            player.onerror = () => failed(player.error.message);
        });
    }
    return player.currentTime;
}"""
PLAYED_TO_THE_END = """async selector => {
    const player = document.querySelector(selector);
    player.muted = true;
    player.currentTime = player.duration - 0.2;
    await new Promise(done => player.onseeked = done);
    const end = new Promise(done => {
        player.onended = () => done('ended');
        player.onseeked = () => done(`again from ${player.currentTime < 0.2 ? 'the beginning' : 'elsewhere'}`);
    });
    player.play().catch(() => {});  // is refused where a short sound ends before it is answered
    return end;
}"""


@pytest.mark.slow
def test_chromium_plays_and_draws_it_from_the_disk(tab: Any, open_from_disk: Any, page: Path) -> None:
    seconds, widths = open_from_disk(page)
    assert seconds == pytest.approx([0.5, 0.5, 0.4, 0.5, 0.5, 0.4, 0.8, 1.0], abs=0.01)
    assert widths == pytest.approx([50, 50, 40, 50, 50, 40, 80, 100], abs=2)
    assert tab.evaluate(MOVED) == 0.05
    assert tab.evaluate(PLAYED_TO_THE_END, "audio[loop]") == "again from the beginning"
    assert tab.evaluate(PLAYED_TO_THE_END, "audio:not([loop])") == "ended"
    assert tab.title() == "It learned: magnet-train quickstart"  # the script in a caption did not run
    assert tab.get_by_text(f"“{HOSTILE}”").is_visible()
    assert tab.locator("circle").count() == 4
    assert not tab.errors


@pytest.mark.slow
def test_a_script_that_got_into_the_page_does_not_run(tab: Any, page: Path) -> None:
    page.write_text(page.read_text().replace("It goes on.", "<script>document.title = 'taken'</script>"))
    tab.goto(page.as_uri())
    assert tab.title() == "It learned: magnet-train quickstart"
    assert any("Content Security Policy" in error for error in tab.errors)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_vertically_only_and_text_stands_out(tab: Any, page: Path, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.goto(page.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    paper, ink = (
        tab.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).map(Number)")
        for name in ("backgroundColor", "color")
    )
    assert (sum(paper) > sum(ink)) == (scheme == "light")
    assert abs(sum(paper) - sum(ink)) > 3 * 150


class FakeGenerate:
    """Writes a clip of half a second for each command, as `generate` does."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, ...]] = []

    def __call__(self, *words: str) -> None:
        self.commands.append(words)
        folder = Path(words[words.index("--out") + 1])
        folder.mkdir(parents=True)
        soundfile.write(folder / "0_clip.wav", tone(0.5), RATE)
        (folder / "results.jsonl").write_text(json.dumps({"file": "0_clip.wav"}) + "\n")


def test_demonstrations_run_the_commands_that_they_show(tmp_path: Path) -> None:
    for name, caption in (("a", "slow drums"), ("b", "fast drums")):
        soundfile.write(tmp_path / f"{name}.wav", tone(1.6), RATE)
        (tmp_path / f"{name}.json").write_text(json.dumps({"text": caption}))
    generate, out = FakeGenerate(), tmp_path / "out folder"
    shown = demonstrate(
        generate, out, 7, ("--text", "one", "--loop"), "it's two", [tmp_path / "a.wav", tmp_path / "b.wav"]
    )
    loop, edit, continuation, long = shown
    model = f"--model '{out}/run/last.ckpt'"
    assert loop.command == (
        f"magnet-train generate {model} --text one --loop --out '{out}/generated/loop' --seed 7"
    )
    assert f"--edit {tmp_path}/a.wav --region 0.48:1.12 --text 'fast drums'" in edit.command
    assert f"--prompt {tmp_path}/b.wav --text 'fast drums' --seconds 3.2" in continuation.command
    assert "--text 'it'\"'\"'s two' --seconds 6.4" in long.command
    assert len(generate.commands) == 4
    (turns,) = loop.sounds
    assert turns.loop
    assert len(turns.audio) == 4 * RATE / 2
    assert turns.marked == ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75))
    before, after = edit.sounds
    assert len(before.audio) == 1.6 * RATE
    assert before.marked == after.marked == ((pytest.approx(0.3), pytest.approx(0.7)),)
    assert "slow drums" in edit.explanation


def test_the_edit_keeps_the_tempo(tmp_path: Path) -> None:
    recordings = []
    for number, (tempo, pattern) in enumerate(
        (("94", "rock"), ("75", "house"), ("94", "rock"), ("94", "house"))
    ):
        recordings.append(tmp_path / f"{number}.wav")
        soundfile.write(recordings[-1], tone(0.5), RATE)
        values = {"text": f"caption {number}", "tempo": tempo, "pattern": pattern}
        recordings[-1].with_suffix(".json").write_text(json.dumps(values))
    _, edit, _, _ = demonstrate(FakeGenerate(), tmp_path / "out", 0, (), "two", recordings)
    assert f"--edit {recordings[0]}" in edit.command
    assert "--text 'caption 3'" in edit.command
    _, edit, _, _ = demonstrate(FakeGenerate(), tmp_path / "none", 0, (), "two", recordings[:3])
    assert "--text 'caption 1'" in edit.command


def test_a_report_without_any_score_of_an_attribute_is_not_hidden(page: Path) -> None:
    with pytest.raises(KeyError):
        write_page(
            page,
            replace(REPORT, unseen={"tempo": 0.9}),
            VERDICT,
            [],
            [],
            page.parent / "metrics.csv",
            64,
            RATE,
        )

"""What a person wrote is read as it was meant, or refused with the line; and shown without obeying it."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from datamodules.tokenize.audio_files import list_audio
from datamodules.tokenize.caption_rules import CaptionError, CaptionTemplate
from datamodules.tokenize.captions import describe
from datamodules.tokenize.report import read_report
from harness.shard_writer import ShardWriter
from magnet_train.cli.main import main
from magnet_train.cli.prompts import read_prompts
from magnet_train.errors import UserError
from magnet_train.storage.plain_text import printable
from magnet_train.tokens import CodecInfo

CODEC = CodecInfo(id="tiny", sha256="ab" * 32, sample_rate=16000, channels=1, frame_rate=50.0, n_q=2, card=8)
MARK = codecs.BOM_UTF8


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def prompts(path: Path) -> list[str | None]:
    return [prompt.text for prompt in read_prompts(None, path, None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            "path,text\na.wav,slow piano, soft strings, 90 bpm",
            "line 2 has 4 fields for 2 columns; put captions with commas into double quotes",
            marks=pytest.mark.case("A1"),
        ),
        pytest.param(
            'path,text\na.wav,"slow piano\nb.wav,fast\nc.wav,x',
            "line 2 opens a quote that is never closed",
            marks=pytest.mark.case("A2"),
        ),
        ('path,text\na.wav,slow\nb.wav,"fast\n', "line 3 opens a quote"),
        ('path,text\na.wav,"slow\npiano"\nb.wav,"fast" one', "line 4 is garbled"),
        ('path,text\n\na.wav,"slow piano\nb.wav,"fast"', "line 3 is garbled"),
        ("path,text,text\na.wav,slow,fast", "line 1 has two columns called text"),
        ("path, text,text\na.wav,slow,fast", "line 1 has two columns called text"),
        ("path,text,\na.wav,slow,soft", "line 2 has 3 fields for 2 columns"),
        ("ytid,start_s,caption\nx,1,slow,fast", "line 2 has 4 fields for 3 columns"),
        (f"path,text\na.wav,{'x' * 200_000}", "line 2 is garbled"),
        ("path,start\na.wav,0:75", "line 2: start is not a number of seconds"),
        ("path,start\na.wav,1:2:3:4", "line 2: start is not a number of seconds"),
        ("path,start\na.wav,1_000", "line 2: start is not a number of seconds"),
    ],
)
def test_a_csv_is_never_cut(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list_audio(put(tmp_path / "list.csv", content))


def test_what_a_csv_may_look_like(tmp_path: Path) -> None:
    """Windows line ends, spaces round the names of columns, commas that spreadsheets put at the ends, clock times."""
    content = (
        MARK + b'path, text,start,end,\r\na.wav,"slow, ""soft""\npiano",0:30,1:02:03.5,\r\nb.wav,fast\r\n'
    )
    first, second = list_audio(put(tmp_path / "LIST.CSV", content))
    assert first.fields == {"text": 'slow, "soft"\npiano'}
    assert (first.start, first.end) == (30.0, 3723.5)
    assert (second.fields, second.start) == ({"text": "fast"}, None)


@pytest.mark.case("A3")
def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", MARK + b"slow piano\r\n")
    assert describe(tmp_path / "a.wav", {}) == {"text": "slow piano"}
    put(tmp_path / "b.json", MARK + b'{"text": "fast"}')
    assert describe(tmp_path / "b.wav", {}) == {"text": "fast"}
    assert prompts(put(tmp_path / "p.txt", MARK + b"slow piano\r\nfast\r\n")) == ["slow piano", "fast"]
    assert prompts(put(tmp_path / "p.jsonl", MARK + b'{"text": "slow"}\n')) == ["slow"]
    (listed,) = list_audio(put(tmp_path / "l.jsonl", MARK + b'{"path": "a.wav", "text": "slow"}'))
    assert listed.fields == {"text": "slow"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("slow".encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("slow".encode("utf-16-le"), "UTF-16, or not text; save it as UTF-8"),
        ("slow piano".encode("utf-32"), "UTF-32; save it as UTF-8"),
        ("café".encode("latin-1"), "byte 4 is not UTF-8, .* Latin-1; save it as UTF-8"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prompts(put(tmp_path / "p.txt", content))
    with pytest.raises(UserError, match=message):
        list_audio(put(tmp_path / "l.csv", content))
    put(tmp_path / "a.txt", content)
    with pytest.raises(CaptionError, match=message):
        describe(tmp_path / "a.wav", {})


@pytest.mark.parametrize(
    ("beside", "text"),
    [
        pytest.param('{"bpm": 120}', "from txt", marks=pytest.mark.case("A6")),
        pytest.param('{"description": ""}', "from txt", marks=pytest.mark.case("A6")),
        ('{"text": "  ", "caption": null}', "from txt"),
        ("{}", "from txt"),
        (" \n", "from txt"),
        ('{"text": "", "caption": "from json"}', "from json"),
    ],
)
def test_an_empty_json_gives_way_to_the_txt(tmp_path: Path, beside: str, text: str) -> None:
    put(tmp_path / "a.json", beside)
    put(tmp_path / "a.txt", "from txt")
    found = describe(tmp_path / "a.wav", {})
    assert found["text"] == text
    assert found.get("bpm") == (120 if "bpm" in beside else None)
    assert describe(tmp_path / "a.wav", {"text": "listed"})["text"] == "listed"


def test_suffixes_in_large_letters(tmp_path: Path) -> None:
    put(tmp_path / "a.TXT", "slow")
    put(tmp_path / "b.JSON", '{"text": "fast"}')
    assert describe(tmp_path / "a.WAV", {}) == {"text": "slow"}
    assert describe(tmp_path / "b.wav", {}) == {"text": "fast"}
    assert prompts(put(tmp_path / "P.JSONL", '{"text": "slow"}')) == ["slow"]


@pytest.mark.case("B4")
def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """U+2028, U+0085 and form feeds are characters of a caption; JSON may hold them unescaped."""
    caption = "slow\u2028piano\u0085one\x0ctwo"
    record = json.dumps({"path": "a.wav", "text": caption.replace("\x0c", "")}, ensure_ascii=False)
    (listed,) = list_audio(put(tmp_path / "l.jsonl", f"{record}\n"))
    assert listed.fields["text"] == "slow\u2028piano\u0085onetwo"
    assert prompts(put(tmp_path / "p.txt", f"{caption}\nfast")) == [caption, "fast"]
    assert prompts(put(tmp_path / "p.jsonl", record)) == ["slow\u2028piano\u0085onetwo"]


LEFT_OUT = {
    '{"path": ".", "text": "x"}': "not a path",
    '{"path": "sub/..", "text": "x"}': "not a path",
    '{"path": "sub/", "text": "x"}': "not a path",
    '{"path": "a\\u0000b.wav", "text": "x"}': "not a path",
    f'{{"path": "{"y" * 300}.wav", "text": "x"}}': "not a path",
    '{"path": "a\\ud83c.wav", "text": "x"}': "not a path",
    '{"path": "a.wav", "text": "x", "bpm": 1e999}': "unreadable line",
    '{"path": "b.wav", "text": "x \\ud83c"}': "unreadable line",
    '{"path": "c.wav", "text": "x", "tags": [{"a": "\\udc00"}]}': "unreadable line",
}


@pytest.mark.case("B5")
@pytest.mark.parametrize("relative", [False, True])
def test_lines_that_cannot_be_used_are_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / "good.wav", np.sin(np.arange(8000) / 20) * 0.3, 8000)
    lines = [*LEFT_OUT, '{"path": "good.wav", "text": "slow"}']
    put(tmp_path / "list.jsonl", "\n".join(lines))
    source = "list.jsonl" if relative else str(tmp_path / "list.jsonl")
    assert main(["tokenize", "--codec", "quickstart", "--audio", source, "--out", "shards"]) == 0
    report = read_report(tmp_path / "shards").left_out
    assert [left.reason.partition(":")[0] for left in report] == list(LEFT_OUT.values())


@pytest.mark.case("B5")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x \\ud83c"}', "line 2 of .* surrogate"),
        ('{"text": "x", "id": 1e999}', "line 2 of .* 1e999"),
        ('{"text": "x", "cfg": NaN}', "line 2 of .*NaN is not JSON"),
        ('{"text": "x", "text": "y"}', "line 2 of .*'text' occurs twice"),
        ("[" * 100_000, "line 2 of .* nested too deep"),
        ("1" * 10_000, "line 2 of"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused_with_the_line(
    tmp_path: Path, line: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prompts(put(tmp_path / "p.jsonl", '{"text": "slow"}\n' + line))


@pytest.mark.case("B6")
@pytest.mark.parametrize(
    ("template", "fields", "caption"),
    [
        ("{bpm:d} bpm", {"bpm": 120}, "120 bpm"),
        ("{bpm:d} bpm", {"bpm": "120"}, "120 bpm"),
        ("{bpm:d} bpm", {"bpm": 120.0}, "120 bpm"),
        ("{bpm:.0f} bpm", {"bpm": "119.6"}, "120 bpm"),
        ("{genre:>6}!", {"genre": "rock"}, "rock!"),
        ("{genre!s}", {"genre": ["rock", "pop"]}, "rock, pop"),
        ("{{{genre}}}", {"genre": "rock"}, "{rock}"),
    ],
)
def test_formats_of_a_template(tmp_path: Path, template: str, fields: dict[str, Any], caption: str) -> None:
    assert describe(tmp_path / "a.wav", fields, CaptionTemplate(template))["text"] == caption


@pytest.mark.case("B6")
@pytest.mark.parametrize(
    "template", ["{genre!z}", "{bpm:zz}", "{bpm:999999999d}", "{bpm:{width}}", "{0}", "{a.b}"]
)
def test_templates_that_cannot_be_are_one_sentence(template: str) -> None:
    with pytest.raises(UserError, match="--caption_template") as caught:
        CaptionTemplate(template)
    assert "\n" not in str(caught.value)


def test_a_field_that_does_not_fit_its_format_leaves_the_clip_out(tmp_path: Path) -> None:
    with pytest.raises(CaptionError, match=r"no caption: bpm 'fast' does not fit \{bpm:d\}"):
        describe(tmp_path / "a.wav", {"bpm": "fast"}, CaptionTemplate("{bpm:d} bpm"))


@pytest.mark.case("B23")
def test_inspect_escapes_what_the_terminal_cannot_show_or_would_obey(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards", CODEC) as writer:
        for number, text in enumerate(
            ["café \u2014 slow", "red \x1b[31malert\x07", "a \u202eevil\u202c one [b]x[/b]"]
        ):
            writer.add(f"clip{number}", np.zeros((2, 50), dtype=np.int16), {"text": text, "f\x1bield": 1})
    printed = {}
    for encoding in ("ascii", "utf-8"):
        result = subprocess.run(
            [sys.executable, "-m", "magnet_train", "inspect", str(tmp_path / "shards")],
            env=os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "160", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr.decode()
        printed[encoding] = result.stdout.decode(encoding)
        assert "\x1b" not in printed[encoding]
        assert "\x07" not in printed[encoding]
        assert "\u202e" not in printed[encoding]
        assert r"red \x1b[31malert\x07" in printed[encoding]
        assert r"a \u202eevil\u202c one [b]x[/b]" in printed[encoding]
    assert r"caf\xe9" in printed["ascii"]
    assert "café \u2014 slow" in printed["utf-8"]


def test_messages_do_nothing_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "no\x1b[2Jthing")]) == 1
    assert r"no\x1b[2Jthing" in capsys.readouterr().err


def test_text_of_all_scripts_is_shown_as_it_is() -> None:
    for text in ("slow piano", "Klavier, süß", "钢琴", "नमस्\u200dते", "👩\u200d🎤 sings", "a\u0301"):
        assert printable(text) == text
    assert printable("\x1b\x00\x7f\x9b\n\ud83c\ufeff\u2028") == r"\x1b\x00\x7f\x9b\n\ud83c\ufeff\u2028"
    assert printable(os.fsdecode(b"caf\xe9.wav")) == r"caf\xe9.wav"

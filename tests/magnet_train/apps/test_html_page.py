"""Pages of one file: what is text stays text, and players hold what was given."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from magnet_train.apps.html_page import Html, element, joined, player, table, write_page
from magnet_train.errors import UserError

HOSTILE = "<script>alert('x')</script> & \"so on\""


def test_text_is_escaped_and_markup_is_not() -> None:
    assert element("p", HOSTILE) == (
        "<p>&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;so on&quot;</p>"
    )
    assert element("p", element("b", "a"), "<") == "<p><b>a</b>&lt;</p>"
    assert joined("<", Html("<br>")) == "&lt;<br>"
    assert element("img", alt=HOSTILE) == (
        '<img alt="&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;so on&quot;">'
    )
    assert "<script" not in table((HOSTILE,), [(HOSTILE,)])


def test_attributes() -> None:
    assert element("p", class_="a", aria_label="b", hidden=True, lang=False) == (
        '<p class="a" aria-label="b" hidden></p>'
    )


@pytest.mark.parametrize("loop", [False, True])
def test_a_player_holds_the_samples(loop: bool) -> None:
    audio = np.array([0.0, 0.5, -0.5, 3.0, -3.0] * 200, np.float32)
    markup = player(audio, 16_000, "a name", loop=loop)
    assert (" loop " in markup) == loop
    kind, encoded = re.search(r'src="data:([^;]+);base64,([^"]+)"', markup).groups()
    assert kind == "audio/wav"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
    assert rate == 16_000
    np.testing.assert_allclose(samples, audio.clip(-1, 1), atol=2**-15)


def test_a_page_with_a_name_that_is_no_text(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "<title>", element("p", "a\udcffb ü"), style=".own { color: red; }")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>\n<html")
    assert "<title>&lt;title&gt;</title>" in page
    assert "a\\udcffb ü" in page
    assert ".own { color: red; }" in page
    assert "default-src &#x27;none&#x27;" in page


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_page(tmp_path / "file" / "page.html", "title")

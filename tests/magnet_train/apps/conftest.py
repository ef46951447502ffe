"""A tab of a real Chromium, and pages that it opens from the disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = [
    "--no-sandbox",  # not available in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PLAYERS = """async () => {
    const players = [...document.querySelectorAll('audio')];
    const loaded = player => player.readyState > 0 || new Promise(done => player.onloadedmetadata = done);
    await Promise.all(players.map(loaded));
    return players.map(player => player.duration);
}"""
PICTURES = """async () => {
    const pictures = [...document.querySelectorAll('img')];
    await Promise.all(pictures.map(picture => picture.decode()));
    return pictures.map(picture => picture.naturalWidth);
}"""


@pytest.fixture
def tab() -> Iterator[Any]:
    """An empty tab; `requests` and `errors` collect the browser's requests and errors."""
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
        yield page
        browser.close()


@pytest.fixture
def open_from_disk(tab: Any) -> Callable[[Path], tuple[list[float], list[int]]]:
    """Return a function that opens a page in the tab, and returns the seconds of its players and widths of its pictures.

    It checks that the browser reports no error and loads nothing else.
    """

    def visit(path: Path) -> tuple[list[float], list[int]]:
        tab.goto(path.as_uri())
        found = tab.evaluate(PLAYERS), tab.evaluate(PICTURES)
        assert {url for url in tab.requests if not url.startswith("data:")} == {path.as_uri()}
        assert not tab.errors
        return found

    return visit

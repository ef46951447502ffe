"""Links between the pages of the repository, and the paths in them, exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
FOLDERS = "magnet_train|datamodules|configs|examples|benchmarks|tools|tests|docs"


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):  # an address on the network
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_code_exist(page: Path) -> None:
    """Of the changelog those of the past stay as they were."""
    text = page.read_text(encoding="utf-8") if page.name != "CHANGELOG.md" else ""
    code = "\n".join(re.findall(r"`[^`]+`", text.replace("```", "`")))
    for path in re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w", code):
        assert (ROOT / path).exists(), path

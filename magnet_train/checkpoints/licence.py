"""What a model may be used for: found, carried along, and written for the hub."""

from __future__ import annotations

from pathlib import Path

import yaml

UNSPECIFIED = "unspecified"
RELEASED = "CC-BY-NC-4.0"
RELEASED_NOTE = f"the weights that Meta released for MAGNeT are {RELEASED}: not for commercial use"

# Those that the hub knows by name; any other is `other` there, with its name beside it.
HUB_IDS = {
    "apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-sa-3.0", "cc-by-nc-4.0",
    "cc-by-nc-3.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "bsd-3-clause",
    "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "unlicense", "openrail",
}  # fmt: skip


def licence_of(folder: Path) -> str:
    """Read the licence from the front matter of a folder's model card; "unspecified" where none says."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        if not text.startswith("---\n"):
            return UNSPECIFIED
        front = yaml.safe_load(text[4:].partition("\n---")[0])
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return UNSPECIFIED
    if not isinstance(front, dict):
        return UNSPECIFIED
    return str(front.get("license_name") or front.get("license") or UNSPECIFIED)


def front_matter(licence: str) -> str:
    """Write the card's lines on the licence as the hub accepts them."""
    if licence.lower() in HUB_IDS:
        return f"license: {licence.lower()}"
    return f"license: other\nlicense_name: {yaml.safe_dump(licence).splitlines()[0]}"


def note_on(*licences: str) -> str:
    """Say in a sentence what follows from a model's licence or its base's; "" where nothing has to be said."""
    if any(licence.lower().startswith("cc-by-nc") for licence in licences):
        return "Not for commercial use: the licence of the weights it began with says so."
    return ""

"""An overlay that names a class of base.yaml's again keeps its settings, whatever came before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGS = Path(__file__).parent.parent / "configs"
OVERLAYS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name != "base.yaml")


def classes(node: Any, place: str = "") -> Iterator[tuple[tuple[str, str], set[str]]]:
    """Yield ((place, class), settings) for every class that a configuration names."""
    if isinstance(node, list):
        for part in node:
            yield from classes(part, place)
    elif isinstance(node, dict):
        if "class_path" in node:
            yield (place, node["class_path"]), set(node.get("init_args", {}))
        for name, part in node.items():
            yield from classes(part, f"{place}.{name}")


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_an_overlay_drops_no_setting_of_the_base(overlay: Path) -> None:
    """Another overlay of that kind may have named another class, and a change of class forgets all settings."""
    base = dict(classes(yaml.safe_load((CONFIGS / "base.yaml").read_text())))
    for where, settings in classes(yaml.safe_load(overlay.read_text())):
        assert settings >= base.get(where, set()), where

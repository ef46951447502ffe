"""Show that the whole chain learns: captioned sound is synthesised, tokenized, trained on, generated and scored."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from magnet_train.cli.options import declare, flag, option, whole_number
from magnet_train.errors import require_extra


@dataclass(frozen=True)
class QuickstartRequest:
    """The options of `quickstart`."""

    out: Path = option("output folder", default=Path("runs/quickstart"), metavar="DIR")
    preset: str = option(
        "drums_and_bass: clips of 3.2 s, up to 10 minutes on two cores; band: drums, bass and chords, about 50 minutes on "
        "one core",
        choices=("drums_and_bass", "band"),
        default="drums_and_bass",
    )
    seed: int = option("seed of clips, training and generation", type=whole_number(0), default=0)
    overwrite: bool = flag("remove the files of an earlier run in --out")
    fit: list[str] = option(
        "pass all that follows to `magnet-train fit`: --fit --trainer.max_steps 100",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="OPTION",
    )


add_arguments = declare(QuickstartRequest)


def run(request: QuickstartRequest) -> None:
    """Print whether the model learned; raises `UserError` if the folder is not empty or a command fails."""
    require_extra("matplotlib", "plots", "the quickstart, which draws spectrograms,")
    from magnet_train.apps.quickstart.presets import PRESETS
    from magnet_train.apps.quickstart.run import run_quickstart

    run_quickstart(request.out, PRESETS[request.preset], request.seed, request.overwrite, request.fit)

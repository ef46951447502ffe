"""The options of `generate`, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from magnet_train.cli.options import (
    ModelOptions,
    SamplerOptions,
    flag,
    numbers,
    option,
    sampler_option,
)
from magnet_train.errors import UserError
from magnet_train.storage.plain_text import is_text

QUIETEST = -60  # lowest --loudness (LUFS)


@dataclass(frozen=True)
class GenerateRequest(SamplerOptions, ModelOptions):
    """The options of `generate`; raises `UserError` if they do not go together, or are out of range."""

    text: list[str] | None = option(
        "caption of a clip; can be repeated",
        one_of="captions",
        required=True,
        action="append",
        metavar="CAPTION",
    )
    prompts: Path | None = option(
        ".txt with a caption per line, or .jsonl with `text` and optionally `id`, `seed` and `negative`",
        one_of="captions",
        required=True,
        metavar="FILE",
    )
    unconditional: int | None = option(
        "make N clips without a caption", one_of="captions", required=True, metavar="N"
    )
    out: Path = option(
        "folder for the clips; the same command resumes where it was stopped", required=True, metavar="DIR"
    )
    seconds: float | None = option(
        "length in seconds, made window by window beyond the model's clip length (default: that length)",
        metavar="S",
    )
    seed: int = option("the same seed gives the same audio", default=0)
    first_index: int = option(
        "index of the first clip; caption, seed and index reproduce one clip of many", default=0, metavar="N"
    )
    prompt: Path | None = option("audio at the beginning of every clip", one_of="audio", metavar="AUDIO")
    edit: Path | None = option(
        "recording of up to a day whose --region is regenerated, or a folder of them; the rest stays as it is",
        one_of="audio",
        metavar="AUDIO",
    )
    region: tuple[float, float] | None = option(
        "start and end of the part to --edit, in seconds",
        type=numbers(float, "two numbers of seconds, like 2.0:4.5", counts=(2,), separator=":"),
        metavar="2.0:4.5",
    )
    loop: bool = flag("make seamless loops: the end leads into the beginning")
    bars: int | None = option(
        "length of a --loop in bars of four beats, exact to the sample; with --bpm", metavar="N"
    )
    bpm: float | None = option("tempo of --bars, in beats per minute; sets the length alone", metavar="BPM")
    negative: str | None = option(
        "caption of what to avoid; needs guidance above 1 (--cfg)", metavar="CAPTION"
    )
    loudness: float | None = option(
        "scale clips to this loudness, such as -14 (LUFS, ITU-R BS.1770), as far as a peak of -1 dB allows",
        metavar="LUFS",
    )
    format: str | None = option(
        "format of the files (default: wav; with --edit flac for a flac, else wav)",
        choices=["wav", "flac", "mp3", "ogg"],
    )
    batch_size: int = option("clips per batch on a GPU; a CPU makes them one by one", default=16, metavar="B")
    rescorer: str | None = sampler_option(
        "MusicGen of the same codec (folder or hub id) that helps to choose which tokens are masked again; costs a "
        "forward pass of it per step",
        metavar="PATH",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; name a folder.")
        if self.batch_size < 1:
            raise UserError(f"--batch_size {self.batch_size} must be at least 1.")
        if self.rescorer is None and self.rescorer_weight is not None:
            raise UserError("--rescorer_weight needs --rescorer PATH; give both, or leave the weight out.")
        if (self.edit is None) != (self.region is None):
            raise UserError("--edit AUDIO and --region START:END go together; give both or none.")
        if self.edit is not None and (self.seconds is not None or self.loop):
            raise UserError(
                "--edit keeps the length and the ends of its recording; leave out --seconds and --loop."
            )
        if self.edit is not None and (self.loudness is not None or self.format in ("mp3", "ogg")):
            raise UserError(
                "--edit keeps every sample outside the region; leave out --loudness, and give --format wav or flac."
            )
        if self.edit is not None and self.edit.is_dir() and self.out.resolve() == self.edit.resolve():
            raise UserError(
                f"--out {self.out} is the folder to edit, whose files keep their names; give another --out."
            )
        if not is_text(self.negative or ""):
            raise UserError("--negative is not text in UTF-8; write it again.")
        if (self.bars is None) != (self.bpm is None):
            raise UserError("--bars N and --bpm BPM go together; give both or none.")
        if self.bars is not None and (not self.loop or self.seconds is not None):
            raise UserError(
                "--bars and --bpm are the length of a --loop; give --loop, and leave out --seconds."
            )
        if self.loudness is not None and not QUIETEST <= self.loudness <= 0:
            raise UserError(f"--loudness {self.loudness:g} must lie in {QUIETEST}..0 LUFS.")

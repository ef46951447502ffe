"""Compute tempo, key, loudness and length of the audio files in a folder, or let models tag and caption them.

The results lie beside each file as NAME.describe.json, which `tokenize` reads; no other file is changed. The same
command again describes only what is missing or has changed, also after an interruption.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from datamodules.tokenize.audio_files import AudioFile, list_audio
from datamodules.tokenize.description import (
    GENERATED_CAPTION,
    SUFFIX,
    Description,
    description_path,
    read_description,
    write_description,
)
from magnet_train.cli.console import ProgressBar, count, duration, escape, table
from magnet_train.cli.options import DeviceOptions, declare, option, whole_number
from magnet_train.errors import UserError, require_extra
from magnet_train.storage.hub import DATASETS
from magnet_train.storage.plain_text import printable

if TYPE_CHECKING:
    from magnet_train.cli.describing import Listener

_MOST_ROWS = 100


@dataclass(frozen=True)
class DescribeRequest(DeviceOptions):
    """The options of `describe`; raises `UserError` for one of --clap and --tags alone."""

    folder: str = option(
        "folder of audio files, of any format that tokenize reads, searched recursively",
        positional=True,
        metavar="DIR",
    )
    clap: str | None = option(
        "with --tags: folder or hub id of a transformers CLAP model, such as laion/larger_clap_music",
        metavar="NAME",
    )
    tags: Path | None = option(
        "with --clap: text file with a tag on each line, such as slow piano; each file gets the nearest ones",
        metavar="FILE",
    )
    captioner: str | None = option(
        "folder or hub id of an audio language model of transformers, such as Qwen/Qwen2-Audio-7B-Instruct; its caption "
        "becomes the field generated_caption, for --caption_template of tokenize",
        metavar="NAME",
    )
    workers: int = option("processes that analyse files", type=whole_number(1), default=2, metavar="N")

    def __post_init__(self) -> None:
        if (self.clap is None) != (self.tags is None):
            raise UserError("--clap NAME and --tags FILE belong together; give both, or neither.")

    def listeners(self) -> list[Listener]:
        """Load the requested models; raises `UserError` if a model or the tags cannot be read."""
        listeners: list[Listener] = []
        if self.clap is not None and self.tags is not None:
            from magnet_train.cli.describing import Tagger, read_tags
            from magnet_train.evaluation.models import Clap

            tags = read_tags(self.tags)
            with Console(stderr=True).status("loading CLAP"):
                listeners.append(Tagger(Clap.from_pretrained(self.clap, self.chosen_device()), tags))
        if self.captioner is not None:
            from magnet_train.cli.captioner import Captioner

            with Console(stderr=True).status("loading the captioner"):
                listeners.append(Captioner.from_pretrained(self.captioner, self.chosen_device()))
        return listeners


add_arguments = declare(DescribeRequest)


@dataclass
class _Work:
    """What is to be done, and what is done."""

    analyse: list[AudioFile] = field(default_factory=list)  # files without a valid description
    hear: dict[str, Description] = field(
        default_factory=dict
    )  # by name; descriptions that lack a model's result
    done: dict[str, Description | str] = field(
        default_factory=dict
    )  # by name; or the reason why there is none


def run(request: DescribeRequest) -> None:
    """Describe every file that is not yet described; raises `UserError` if none can be."""
    require_extra("librosa", "describe", "describe")
    folder = Path(request.folder)
    if request.folder.startswith(DATASETS):
        repository = "/".join(request.folder.removeprefix(DATASETS).split("/")[:2])
        raise UserError(
            f"describe writes beside the files, and {request.folder} is not on this machine; download it first with "
            f"`hf download {repository} --repo-type dataset --local-dir FOLDER`, and name that folder."
        )
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the folder that holds your audio files.")
    with Console(stderr=True).status(f"looking through {escape(str(folder))}"):
        files = _each_once(list_audio(folder))
    listeners = request.listeners()
    work = _plan(files, listeners)
    before = sum(isinstance(found, Description) for found in work.done.values())
    total, written = len(work.analyse) + len(work.hear), 0
    try:
        with ProgressBar("describe", "files", total) as bar:
            for name, description in _describe(work, files, listeners, request.workers):
                if isinstance(description, Description):
                    write_description(files[name].path, description)
                    written += 1
                work.done[name] = description
                bar.advance()
    except KeyboardInterrupt as stop:
        stopped = f"described {written} of {count(total, 'file')}; the same command continues with the rest"
        raise KeyboardInterrupt(stopped) from stop
    _report(folder, {name: work.done[name] for name in files}, before)


def _each_once(clips: Iterable[AudioFile]) -> dict[str, AudioFile]:
    """Return files by name; a table may list several clips of one, and one clip twice."""
    files: dict[str, AudioFile] = {}
    for clip in clips:
        known = files.get(clip.name)
        if known is None or (known.problem is not None and clip.problem is None):
            files[clip.name] = clip
    return files


def _plan(files: Mapping[str, AudioFile], listeners: Sequence[Listener]) -> _Work:
    work = _Work()
    for name, file in files.items():
        if file.problem is not None or file.cell is not None:
            work.done[name] = (
                file.problem or "it is stored in a table, where no description can lie beside it"
            )
            continue
        try:
            known = read_description(file.path)
            if known is None or not known.is_of(file.path):
                work.analyse.append(file)
            elif not all(listener.has_heard(known) for listener in listeners):
                work.hear[name] = known
            else:
                work.done[name] = known
        except (OSError, ValueError) as error:
            work.done[name] = f"{description_path(file.path).name} is unreadable ({error}); remove it"
    return work


def _describe(
    work: _Work, files: Mapping[str, AudioFile], listeners: Sequence[Listener], workers: int
) -> Iterator[tuple[str, Description | str]]:
    """Yield each file of the work once it is described, or the reason why it cannot be."""
    from magnet_train.cli.describe_processes import analyses

    for name, known in work.hear.items():
        yield name, _heard(files[name], known, listeners)
    for file, found in analyses(work.analyse, workers):
        yield file.name, found if isinstance(found, str) else _heard(file, found, listeners)


def _heard(file: AudioFile, description: Description, listeners: Sequence[Listener]) -> Description | str:
    try:
        for listener in listeners:
            if not listener.has_heard(description):
                description = listener.hear(file.path, description)
    except UserError as error:
        return f"unreadable: {error}"
    return description


def _report(folder: Path, done: Mapping[str, Description | str], before: int) -> None:
    """Print a table and the reasons; raises `UserError` if nothing is described."""
    described = {name: found for name, found in done.items() if isinstance(found, Description)}
    reasons = [f"{name}: {found}" for name, found in done.items() if isinstance(found, str)]
    if described:
        Console().print(_table(folder, described))
    for reason in reasons[:_MOST_ROWS]:
        print(printable(reason))
    if len(reasons) > _MOST_ROWS:
        print(f"... and {len(reasons) - _MOST_ROWS} more that cannot be described")
    files = count(len(done), "file")
    if not described:
        raise UserError(
            f"none of {files} in {folder} can be described, for the reasons above; add audible music."
        )
    earlier = f", {before} of them before" if before else ""
    print(f"described {len(described)} of {files}{earlier}, each in its NAME{SUFFIX}")
    print("tokenize reads them, and captions can use them: --caption_template '{key}, {bpm:.0f} bpm'")
    if any(GENERATED_CAPTION in found.fields for found in described.values()):
        print(
            f"to caption files that have no caption with the generated one: --caption_template '{{{GENERATED_CAPTION}}}'"
        )


def _table(folder: Path, described: Mapping[str, Description]) -> Table:
    captions = {name: str(found.fields.get(GENERATED_CAPTION, "")) for name, found in described.items()}
    columns = ["bpm", "key", "LUFS", "length", "tags"] + ["generated caption"] * any(captions.values())
    filled = table(escape(str(folder)), "file", *columns, right=("LUFS", "length"))
    for name, found in list(described.items())[:_MOST_ROWS]:
        loudness = found.fields.get("loudness")
        filled.add_row(
            escape(name),
            _estimate(found, "bpm"),
            _estimate(found, "key"),
            "" if loudness is None else escape(str(loudness)),
            _length(found),
            _tags(found),
            *([escape(captions[name])] if any(captions.values()) else []),
        )
    more = len(described) - _MOST_ROWS
    filled.caption_justify = "left"
    rest = f"... and {count(more, 'more file')}\n" if more > 0 else ""
    filled.caption = f"{rest}Confidence in parentheses; dim with a question mark: too low, not used."
    return filled


def _estimate(found: Description, name: str) -> str:
    confidence = found.confidence.get(name)
    behind = f" ({confidence:.2f})" if isinstance(confidence, float) else ""
    if name in found.fields:
        return escape(f"{found.fields[name]}{behind}")
    return f"[dim]{escape(f'{found.uncertain[name]}?{behind}')}[/dim]" if name in found.uncertain else ""


def _length(found: Description) -> str:
    seconds = found.fields.get("duration")
    if not isinstance(seconds, (int, float)):
        return ""
    heard = "" if found.seconds_heard is None else f", {duration(found.seconds_heard)} analysed"
    return duration(seconds) + heard


def _tags(found: Description) -> str:
    known = found.confidence.get("tags")
    cells = []
    for tag, probability in known.items() if isinstance(known, dict) else ():
        relied_on = tag in found.fields.get("tags", [])
        cell = escape(f"{tag}{'' if relied_on else '?'} ({probability:.2f})")
        cells.append(cell if relied_on else f"[dim]{cell}[/dim]")
    return ", ".join(cells)

"""Generate audio from text with a trained model, or regenerate a part of recordings: numbered audio files, and
results.jsonl with the settings of each.
"""

# Shapes: audio float [B, channels, samples].

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from magnet_train.cli.clip_folder import RESULTS, ClipFolder, Record, in_background, open_clip_folder
from magnet_train.cli.clip_maker import ClipMaker
from magnet_train.cli.console import ProgressBar, count, on_signal
from magnet_train.cli.generate_request import GenerateRequest
from magnet_train.cli.options import declare
from magnet_train.cli.prompts import Prompt, read_prompts
from magnet_train.errors import Preempted, UserError

if TYPE_CHECKING:
    from torch import Tensor

NAME_LENGTH = 40  # characters of a caption in a file's name

add_arguments = declare(GenerateRequest)


def run(request: GenerateRequest) -> None:
    """Make and write clips; raises `UserError` for a bad caption, model, recording, setting or folder."""
    prompts = read_prompts(request.text, request.prompts, request.unconditional)
    from magnet_train.pipeline.magnet import unknown_words_sentence

    magnet = request.load()
    decoding = request.decoding(magnet)
    captions = [request.negative, *(text for prompt in prompts for text in (prompt.text, prompt.negative))]
    unknown = magnet.newly_unknown_words(captions)
    if unknown:
        _warn(unknown_words_sentence(unknown))
    began = time.monotonic()
    with _explain_full_memory(str(magnet.device)):
        maker = ClipMaker(magnet, request, decoding)
        records = _plan_records(prompts, request, maker, asdict(decoding))
        made, seconds = _make_missing(maker, request.out, records)
    took = time.monotonic() - began
    before = f"; {count(len(records) - made, 'clip')} had been made before" if made < len(records) else ""
    print(
        f"wrote {count(made, 'clip')} ({seconds:.1f} s of audio in {took:.1f} s, {maker.precision}) and {RESULTS} to "
        f"{request.out}{before}"
    )
    for note in maker.notes():
        print(note)


def _plan_records(
    prompts: list[Prompt], request: GenerateRequest, maker: ClipMaker, decoding: Record
) -> list[Record]:
    """Return the line of results.jsonl for each clip, without its length."""
    given = {
        "adapter": request.adapter,
        "strength": request.adapter_strength if request.adapter else None,
        "prompt": request.prompt and str(request.prompt),
        "negative": None,  # of each clip, as is the next
        "edit": None,
        "region": request.region,
        "loop": request.loop or None,
        "bars": request.bars,
        "bpm": request.bpm,
        "loudness": request.loudness,
        "rescorer": request.rescorer,
    }
    clips = [(recording, *each) for recording in maker.edits or [None] for each in enumerate(prompts)]
    width = len(str(request.first_index + len(clips) - 1))
    prints = {recording: maker.fingerprint(recording) for recording in maker.edits or [None]}
    records: list[Record] = []
    for number, (recording, version, prompt) in enumerate(clips, start=request.first_index):
        settings = {**given, "edit": recording, "negative": prompt.negative or request.negative or None}
        name = f"{number:0{width}d}_{_name_of(prompt)}"
        if recording is not None and request.edit is not None and request.edit.is_dir():
            name = Path(recording).stem + (f"_{version}" if len(prompts) > 1 else "")
        records.append(
            {
                "file": name + maker.suffix(recording),
                "id": prompt.id,
                "text": prompt.text,
                # a prompt with its own seed is made as if alone
                "seed": request.seed if prompt.seed is None else prompt.seed,
                "index": number if prompt.seed is None else 0,
                "model": request.model,
                "precision": maker.precision,
                "fingerprint": prints[recording],
                **{name: value for name, value in settings.items() if value is not None},
                "decoding": decoding,
            }
        )
    _require_different_names(records)
    return records


def _require_different_names(records: list[Record]) -> None:
    named: dict[str, Record] = {}
    for record in records:
        other = named.setdefault(record["file"], record)
        if other is not record:
            raise UserError(
                f"{other['edit']} and {record['edit']} would both become {record['file']}; rename one of them."
            )


def _name_of(prompt: Prompt) -> str:
    return re.sub(r"[\W_]+", "_", (prompt.text or "unconditional").lower()).strip("_")[:NAME_LENGTH] or "clip"


def _make_missing(maker: ClipMaker, out: Path, records: list[Record]) -> tuple[int, float]:
    """Make and write the missing clips; return their number and the seconds of audio."""
    from magnet_train.models.memory import FittingBatches

    seconds, size, clips = 0.0, maker.batch_size, len(records)
    with open_clip_folder(out, records) as folder, _report_when_stopped(folder, clips):
        found = folder.done
        # In the batches of an uninterrupted command, so that the bytes are the same on a GPU as well.
        begin = found - found % size if found < clips else clips
        with ProgressBar("generate", "steps") as bar, in_background() as write:

            def make(batch: Sequence[tuple[int, Record]]) -> list[tuple[int, Record, Tensor]]:
                progress = partial(_show, bar, batch[0][0] - begin, len(batch), clips - begin)
                audio = maker.make([record for _, record in batch], progress)
                return [(*each, clip) for each, clip in zip(batch, audio, strict=True)]

            numbered = list(enumerate(records))[begin:]
            for made in FittingBatches(size, "clips", _warn).run(numbered, make):
                missing = [(record, clip) for number, record, clip in made if number >= found]
                write(partial(_write_clips, maker, folder, missing))
                seconds += sum(maker.seconds(record, clip) for record, clip in missing)
        return folder.done - found, seconds


def _write_clips(maker: ClipMaker, folder: ClipFolder, clips: list[tuple[Record, Tensor]]) -> None:
    for record, clip in clips:
        write = partial(maker.write, record=record, audio=clip)
        folder.add({**record, "seconds": maker.seconds(record, clip)}, write)


def _warn(sentence: str) -> None:
    print(f"magnet-train: warning: {sentence}.", file=sys.stderr)


def _show(bar: ProgressBar, before: int, batch: int, clips: int, done: int, total: int) -> None:
    """Show `done` of `total` steps of a batch, after `before` of `clips` clips, as steps of single clips."""
    bar.update(before * total + batch * done, clips * total)


@contextmanager
def _report_when_stopped(folder: ClipFolder, clips: int) -> Iterator[None]:
    """Name the number of finished clips when Ctrl-C or SIGTERM stops the work."""

    def stop(*_: object) -> None:
        raise Preempted

    try:
        with on_signal(signal.SIGTERM, stop):
            yield
    except (KeyboardInterrupt, Preempted) as stopped:
        done = f"{folder.done} of {count(clips, 'clip')} are in {folder.path}"
        if not folder.done:
            done = "no clip was done"
        raise type(stopped)(f"stopped; {done}, and the same command resumes from there") from None


@contextmanager
def _explain_full_memory(device: str) -> Iterator[None]:
    """Turn errors of a full memory into one sentence; batches have been halved down to one clip by then."""
    from magnet_train.models.memory import MEMORY_ERRORS, is_full_memory

    try:
        yield
    except MEMORY_ERRORS as error:
        if not is_full_memory(error):
            raise
        raise UserError(
            f"the memory of {device} is not enough for one clip; make shorter clips, or choose another --device."
        ) from error

"""Generate audio from text with a trained model, or regenerate a part of a recording: numbered WAV files, and
results.jsonl with the settings of each.
"""

# Shapes: audio float [B, channels, samples].

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magnet_train.cli.clip_folder import RESULTS, ClipFolder, Record, in_background, open_clip_folder
from magnet_train.cli.console import ProgressBar, count, on_sigterm
from magnet_train.cli.options import (
    ModelOptions,
    SamplerOptions,
    declare,
    flag,
    numbers,
    option,
    sampler_option,
)
from magnet_train.cli.prompts import Prompt, read_prompts
from magnet_train.errors import Preempted, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from magnet_train.decoding import DecodingConfig
    from magnet_train.pipeline.magnet import Magnet

NAME_LENGTH = 40  # characters of a caption in a file's name


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
        ".txt with a caption per line, or .jsonl with `text` and optionally `id`",
        one_of="captions",
        required=True,
        metavar="FILE",
    )
    unconditional: int | None = option(
        "make N clips without a caption", one_of="captions", required=True, metavar="N"
    )
    out: Path = option(
        "folder for the WAVs; the same command resumes where it was stopped", required=True, metavar="DIR"
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
        "recording of up to a day whose --region is regenerated", one_of="audio", metavar="AUDIO"
    )
    region: tuple[float, float] | None = option(
        "start and end of the part to --edit, in seconds",
        type=numbers(float, "two numbers of seconds, like 2.0:4.5", counts=(2,), separator=":"),
        metavar="2.0:4.5",
    )
    loop: bool = flag("make seamless loops: the end leads into the beginning")
    batch_size: int = option("clips per batch on a GPU; a CPU makes them one by one", default=16, metavar="B")
    rescorer: str | None = sampler_option(
        "MusicGen of the same codec (folder or hub id) that helps to choose which tokens are masked again; reads the "
        "whole clip at each step, which takes that much longer",
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


add_arguments = declare(GenerateRequest)


def run(request: GenerateRequest) -> None:
    """Make and write clips; raises `UserError` for a bad caption, model, recording, setting or folder."""
    prompts = read_prompts(request.text, request.prompts, request.unconditional)
    from magnet_train.pipeline.magnet import unknown_words_sentence

    magnet = request.load()
    decoding = request.decoding(magnet)
    unknown = magnet.newly_unknown_words([prompt.text for prompt in prompts])
    if unknown:
        _warn(unknown_words_sentence(unknown))
    began = time.monotonic()
    with _explain_full_memory(str(magnet.device)):
        maker = _Maker(magnet, request, decoding)
        records = _plan_records(prompts, request, maker, asdict(decoding))
        made, seconds = _make_missing(maker, request.out, records)
    took = time.monotonic() - began
    before = f"; {count(len(prompts) - made, 'clip')} had been made before" if made < len(prompts) else ""
    print(
        f"wrote {count(made, 'clip')} ({seconds:.1f} s of audio in {took:.1f} s, {maker.precision}) and {RESULTS} to "
        f"{request.out}{before}"
    )
    if maker.note:
        print(maker.note)


class _Maker:
    """Makes and writes clips as requested; raises `UserError` for a recording or rescorer that cannot be read."""

    make: Callable[..., Tensor]  # from B captions, `first_index` and `progress` to [B, channels, samples]
    write: Callable[..., None]  # to a path, `audio` [channels, samples]
    note = ""  # on the format of the files

    def __init__(self, magnet: Magnet, request: GenerateRequest, decoding: DecodingConfig) -> None:
        from magnet_train.audio import write_audio, write_edit
        from magnet_train.models.precision import dtype_name

        self.precision = dtype_name(magnet.dtype)
        settings: dict[str, Any] = {"decoding": decoding, "seed": request.seed}
        if request.rescorer is not None:
            from magnet_train.pipeline.musicgen import MusicgenRescorer

            settings["rescorer"] = MusicgenRescorer.from_pretrained(request.rescorer, magnet.device)
        self.sample_rate = rate = magnet.sample_rate
        audio = _read_recording(magnet, request)
        # on a CPU one by one, so that each is saved as soon as it is done
        self.batch_size = 1 if magnet.device.type == "cpu" else request.batch_size
        if request.region is not None and audio is not None:
            self.make = partial(magnet.edit, audio, request.region, **settings)
            self.write = partial(write_edit, recording=audio, sample_rate=rate)
            self.note = _format_of_edits(audio)
        else:
            settings |= {"seconds": request.seconds, "loop": request.loop}
            self.make = partial(magnet.generate, prompt=audio, **settings)
            self.write = partial(write_audio, sample_rate=rate)
        # Of what makes the clips and stands in no record: weights, recording, length, device.
        digest = hashlib.sha256(magnet.weights_sha256().encode())
        digest.update(json.dumps([request.seconds, magnet.device.type]).encode())
        if audio is not None:
            digest.update(audio.numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]


def _read_recording(magnet: Magnet, request: GenerateRequest) -> Tensor | None:
    """Read --prompt or --edit, but never much more than a clip can use: a small file may hold days of silence.

    A prompt is cut a second behind the end of its clip, where it is still refused for leaving nothing to make.
    """
    import torch

    from magnet_train.audio import AudioStream, audio_seconds
    from magnet_train.checkpoints.bundle import LONGEST_CLIP

    path, end = request.edit or request.prompt, LONGEST_CLIP
    if path is None:
        return None
    if request.edit is None:
        seconds = magnet.segment_duration if request.seconds is None else request.seconds
        end = 1 + (seconds if 0 < seconds <= LONGEST_CLIP else 0)  # Magnet refuses the others
    elif audio_seconds(path) > LONGEST_CLIP:
        raise UserError(
            f"--edit {path} is longer than {LONGEST_CLIP:,.0f} s; cut out the part to edit with its surroundings."
        )
    stream = AudioStream(path, magnet.sample_rate, magnet.codec.channels, end=end)
    audio = torch.cat(list(stream), dim=-1)
    if stream.shortfall is not None:
        warnings.warn(f"{path}: {stream.shortfall}", stacklevel=2)
    return audio


def _format_of_edits(recording: Tensor) -> str:
    """Describe how the samples outside the region were stored."""
    from magnet_train.audio import fits_16_bit

    if fits_16_bit(recording):
        return "outside the region every sample is the recording's (16-bit WAV)"
    return (
        "outside the region every sample is the recording's, at the model's rate; 16 bits cannot hold them exactly "
        f"(peak {float(recording.abs().max()):.2f}), so the WAV files are 32-bit float"
    )


def _plan_records(
    prompts: list[Prompt], request: GenerateRequest, maker: _Maker, decoding: Record
) -> list[Record]:
    """Return the line of results.jsonl for each clip, without its length."""
    given = {
        "adapter": request.adapter,
        "strength": request.adapter_strength if request.adapter else None,
        "prompt": request.prompt and str(request.prompt),
        "edit": request.edit and str(request.edit),
        "region": request.region,
        "loop": request.loop or None,
        "rescorer": request.rescorer,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    width = len(str(request.first_index + len(prompts) - 1))
    return [
        {
            "file": f"{index:0{width}d}_{_name_of(prompt)}.wav",
            "id": prompt.id,
            "text": prompt.text,
            "seed": request.seed,
            "index": index,
            "model": request.model,
            "precision": maker.precision,
            "fingerprint": maker.fingerprint,
            **settings,
            "decoding": decoding,
        }
        for index, prompt in enumerate(prompts, start=request.first_index)
    ]


def _name_of(prompt: Prompt) -> str:
    return re.sub(r"[\W_]+", "_", (prompt.text or "unconditional").lower()).strip("_")[:NAME_LENGTH] or "clip"


def _make_missing(maker: _Maker, out: Path, records: list[Record]) -> tuple[int, float]:
    """Make and write the clips that are missing; return their number and the seconds of audio."""
    from magnet_train.models.memory import FittingBatches

    seconds, size, clips = 0.0, maker.batch_size, len(records)
    with open_clip_folder(out, records) as folder, _report_when_stopped(folder, clips):
        found = folder.done
        # In the batches of an uninterrupted command, so that the bytes are the same on a GPU as well.
        begin = found - found % size if found < clips else clips
        first = records[0]["index"]
        with ProgressBar("generate", "steps") as bar, in_background() as write:

            def make(batch: Sequence[Record]) -> list[tuple[Record, Tensor]]:
                before = batch[0]["index"] - first - begin
                audio = maker.make(
                    [record["text"] for record in batch],
                    first_index=batch[0]["index"],
                    progress=partial(_show, bar, before, len(batch), clips - begin),
                )
                return list(zip(batch, audio, strict=True))

            for made in FittingBatches(size, "clips", _warn).run(records[begin:], make):
                missing = [(record, clip) for record, clip in made if record["index"] >= first + found]
                write(partial(_write_clips, maker, folder, missing))
                seconds += sum(clip.shape[-1] / maker.sample_rate for _, clip in missing)
        return folder.done - found, seconds


def _write_clips(maker: _Maker, folder: ClipFolder, clips: list[tuple[Record, Tensor]]) -> None:
    for record, clip in clips:
        length = clip.shape[-1] / maker.sample_rate
        folder.add({**record, "seconds": length}, partial(maker.write, audio=clip))


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
        with on_sigterm(stop):
            yield
    except (KeyboardInterrupt, Preempted) as stopped:
        done = f"{folder.done} of {count(clips, 'clip')} are in {folder.path}"
        if not folder.done:
            done = "no clip was done"
        raise type(stopped)(f"stopped; {done}, and the same command resumes from there") from None


@contextmanager
def _explain_full_memory(device: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors into one sentence."""
    from magnet_train.models.memory import is_full_memory

    try:
        yield
    except RuntimeError as error:
        if not is_full_memory(error):
            raise
        raise UserError(
            f"the memory of {device} is not enough; give a smaller --batch_size or fewer --seconds."
        ) from error

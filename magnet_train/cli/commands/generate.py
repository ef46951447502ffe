"""Generate audio from text with a trained model, or regenerate a part of a recording: numbered WAV files, and
results.jsonl with the settings of each.
"""

# Shapes: audio float [B, channels, samples].

from __future__ import annotations

import argparse
import hashlib
import json
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magnet_train.cli.clip_folder import RESULTS, ClipFolder, Record, open_clip_folder
from magnet_train.cli.console import ProgressBar, count
from magnet_train.cli.options import ModelOptions, SamplerOptions, declare, flag, option, sampler_option
from magnet_train.cli.prompts import Prompt, read_prompts
from magnet_train.errors import Preempted, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from magnet_train.pipeline.magnet import Magnet

NAME_LENGTH = 40  # characters of a caption in a file's name


def _region(text: str) -> tuple[float, float]:
    try:
        start, end = text.split(":")
        return float(start), float(end)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} should be two numbers of seconds, like 2.0:4.5") from error


@dataclass(frozen=True)
class GenerateRequest(SamplerOptions, ModelOptions):
    """The options of `generate`.

    Raises:
        UserError: Options that do not go together, or are out of range.
    """

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
        type=Path,
        metavar="FILE",
    )
    unconditional: int | None = option(
        "make N clips without a caption", one_of="captions", required=True, type=int, metavar="N"
    )
    out: Path = option(
        "folder for the WAVs; the same command resumes where it was stopped",
        required=True,
        type=Path,
        metavar="DIR",
    )
    seconds: float | None = option(
        "length in seconds, made window by window beyond the model's clip length (default: that length)",
        type=float,
        metavar="S",
    )
    seed: int = option("the same seed gives the same audio", type=int, default=0)
    first_index: int = option(
        "index of the first clip; caption, seed and index reproduce one clip of many",
        type=int,
        default=0,
        metavar="N",
    )
    prompt: Path | None = option(
        "audio at the beginning of every clip", one_of="audio", type=Path, metavar="AUDIO"
    )
    edit: Path | None = option(
        "recording of up to a day whose --region is regenerated", one_of="audio", type=Path, metavar="AUDIO"
    )
    region: tuple[float, float] | None = option(
        "start and end of the part to --edit, in seconds", type=_region, metavar="2.0:4.5"
    )
    loop: bool = flag("make seamless loops: the end leads into the beginning")
    batch_size: int = option(
        "clips per batch on a GPU; a CPU makes them one by one", type=int, default=16, metavar="B"
    )
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

    def record(self) -> Record:
        """Return the entries of a record for adapter, audio, loop and rescorer, where given."""
        given = {
            "adapter": self.adapter,
            "strength": self.adapter_strength if self.adapter else None,
            "prompt": str(self.prompt) if self.prompt else None,
            "edit": str(self.edit) if self.edit else None,
            "region": self.region,
            "loop": self.loop or None,
            "rescorer": self.rescorer,
        }
        return {name: value for name, value in given.items() if value is not None}


add_arguments = declare(GenerateRequest)


def run(args: argparse.Namespace) -> None:
    """Make the clips and write them.

    Raises:
        UserError: A bad caption, model, prompt or setting, or a folder that cannot be written.
    """
    request = GenerateRequest(**vars(args))
    prompts = read_prompts(request.text, request.prompts, request.unconditional)
    from magnet_train.pipeline.inputs import as_whole_number
    from magnet_train.pipeline.magnet import Magnet, unknown_words_sentence

    magnet = request.load(Magnet)
    as_whole_number(request.seed, "--seed")
    as_whole_number(request.first_index, "--first_index")
    decoding = asdict(request.decoding(magnet))
    unknown = magnet.newly_unknown_words([prompt.text for prompt in prompts])
    if unknown:
        print(f"magnet-train: warning: {unknown_words_sentence(unknown)}.", file=sys.stderr)
    began = time.monotonic()
    with _explain_full_memory(str(magnet.device)):
        maker = _Maker(magnet, request)
        records = _plan_records(prompts, request, maker, decoding)
        made, seconds = _generate_all(maker, records, prompts, request)
    took = time.monotonic() - began
    before = f"; {count(len(prompts) - made, 'clip')} had been made before" if made < len(prompts) else ""
    print(
        f"wrote {count(made, 'clip')} ({seconds:.1f} s of audio in {took:.1f} s, {maker.precision}) and {RESULTS} to "
        f"{request.out}{before}"
    )
    if maker.edited is not None:
        print(_format_of_edits(maker.edited))


class _Maker:
    """Makes and writes clips as requested.

    Raises:
        UserError: A setting does not fit the model, or a recording or the rescorer cannot be read.
    """

    def __init__(self, magnet: Magnet, request: GenerateRequest) -> None:
        self.magnet, self.precision = magnet, str(magnet.dtype).removeprefix("torch.")
        settings: dict[str, Any] = {"decoding": request.decoding(magnet), "seed": request.seed}
        if request.rescorer is not None:
            from magnet_train.pipeline.musicgen import MusicgenRescorer

            settings["rescorer"] = MusicgenRescorer.from_pretrained(request.rescorer, magnet.device)
        self.audio = _read_recording(magnet, request)
        # on a CPU one by one, so that each is saved as soon as it is done
        self.batch_size = 1 if magnet.device.type == "cpu" else request.batch_size
        # [B, channels, samples] of B captions, given `first_index` and `progress`
        self.make: Callable[..., Tensor] = partial(
            magnet.generate, seconds=request.seconds, prompt=self.audio, loop=request.loop, **settings
        )
        self.edited = None if request.edit is None else self.audio
        if self.edited is not None and request.region is not None:
            self.make = partial(magnet.edit, self.edited, request.region, **settings)
        # Of what makes the clips and stands in no record: weights, recording, length, device.
        digest = hashlib.sha256(magnet.weights_sha256().encode())
        digest.update(json.dumps([request.seconds, magnet.device.type]).encode())
        if self.audio is not None:
            digest.update(self.audio.numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def write(self, clip: Tensor, path: Path) -> None:
        """Write a clip [channels, samples]."""
        from magnet_train.audio import write_audio, write_edit

        if self.edited is None:
            write_audio(path, clip, self.magnet.sample_rate)
        else:
            write_edit(path, clip, self.edited, self.magnet.sample_rate)


def _read_recording(magnet: Magnet, request: GenerateRequest) -> Tensor | None:
    """Read --prompt or --edit, but never much more than a clip can use: a small file may hold days of silence.

    A prompt is cut a second behind the end of its clip, where it is still refused for leaving nothing to make.

    Raises:
        UserError: It cannot be read, or the recording to edit is longer than a day.
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
    width = len(str(request.first_index + len(prompts) - 1))
    return [
        {
            "file": f"{index:0{width}d}_{_safe(prompt.text or 'unconditional')}.wav",
            "id": prompt.id,
            "text": prompt.text,
            "seed": request.seed,
            "index": index,
            "model": request.model,
            "precision": maker.precision,
            "fingerprint": maker.fingerprint,
            **request.record(),
            "decoding": decoding,
        }
        for index, prompt in enumerate(prompts, start=request.first_index)
    ]


def _generate_all(
    maker: _Maker, records: list[Record], prompts: list[Prompt], request: GenerateRequest
) -> tuple[int, float]:
    """Make and write the clips that are missing; return their number and the seconds of audio."""
    seconds, size = 0.0, maker.batch_size
    with open_clip_folder(request.out, records) as folder, _report_when_stopped(folder, len(prompts)):
        found = folder.done
        # In the batches of an uninterrupted command, so that the bytes are the same on a GPU as well.
        begin = found - found % size if found < len(prompts) else len(prompts)
        with ProgressBar("generate", "steps") as bar:
            for first in range(begin, len(prompts), size):
                batch = prompts[first : first + size]
                audio = maker.make(
                    [prompt.text for prompt in batch],
                    first_index=request.first_index + first,
                    progress=partial(_show, bar, first - begin, len(batch), len(prompts) - begin),
                )
                for record, clip in zip(records[first : first + size], audio, strict=True):
                    if record["index"] - request.first_index >= folder.done:
                        length = clip.shape[-1] / maker.magnet.sample_rate
                        folder.add({**record, "seconds": length}, partial(maker.write, clip))
                        seconds += length
        return folder.done - found, seconds


def _show(bar: ProgressBar, before: int, batch: int, clips: int, done: int, total: int) -> None:
    """Show `done` of `total` steps of a batch, after `before` of `clips` clips, as steps of single clips."""
    bar.update(before * total + batch * done, clips * total)


@contextmanager
def _report_when_stopped(folder: ClipFolder, clips: int) -> Iterator[None]:
    """Name the number of finished clips when Ctrl-C or SIGTERM stops the work."""

    def stop(*_: object) -> None:
        raise Preempted

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except (KeyboardInterrupt, Preempted) as stopped:
        done = (
            f"{folder.done} of {count(clips, 'clip')} are in {folder.path}"
            if folder.done
            else "no clip was done"
        )
        raise type(stopped)(f"stopped; {done}, and the same command resumes from there") from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _explain_full_memory(device: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors into one sentence; that of the CPU has no type of its own."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise UserError(
            f"the memory of {device} is not enough; give a smaller --batch_size or fewer --seconds."
        ) from error


def _safe(text: str) -> str:
    """Turn a caption into a part of a file name."""
    return re.sub(r"[\W_]+", "_", text.lower()).strip("_")[:NAME_LENGTH] or "clip"

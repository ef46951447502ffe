"""Make audio from text with a trained model, or a part of a recording anew: numbered WAV files, and results.jsonl
that says how each was made.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magnet_train.cli.clip_folder import RESULTS, ClipFolder, open_clip_folder
from magnet_train.cli.formatting import count
from magnet_train.cli.model_options import add_device_option, add_model_options, check_adapter, load_model
from magnet_train.cli.prompts import Prompt, read_prompts
from magnet_train.cli.sampler_options import add_sampler_options, chosen_decoding
from magnet_train.errors import Preempted, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from magnet_train.decoding import DecodingConfig
    from magnet_train.pipeline.magnet import Magnet

NAME_LENGTH = 40  # characters of a caption in a file's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `magnet-train generate`."""
    add_model_options(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--text", action="append", metavar="CAPTION", help="caption of a clip; may be given several times"
    )
    what.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help=".txt with a caption a line, or .jsonl with `text` and maybe `id`",
    )
    what.add_argument("--unconditional", type=int, metavar="N", help="make N clips without a caption")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for the WAVs; the same command goes on where it was stopped",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="length in seconds (default: the model's clip length); more is made window by window",
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same sound (default: 0)")
    parser.add_argument(
        "--first_index",
        type=int,
        default=0,
        metavar="N",
        help="index of the first clip (default: 0); a clip is made alone again with its caption, seed and index",
    )
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--prompt", type=Path, metavar="AUDIO", help="audio that every clip begins with")
    given.add_argument(
        "--edit", type=Path, metavar="AUDIO", help="recording of any length to make --region of anew"
    )
    parser.add_argument(
        "--region", type=_region, metavar="2.0:4.5", help="start and end in seconds of what --edit makes anew"
    )
    parser.add_argument(
        "--loop",
        action="store_true",
        help="make clips that can be repeated: the end goes on at the beginning",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=16,
        metavar="B",
        help="clips made at once on a GPU (default: 16); on a CPU they are made one by one",
    )
    add_device_option(parser)
    sampler = add_sampler_options(parser)
    sampler.add_argument(
        "--rescorer",
        metavar="PATH",
        help="MusicGen of the same codec (folder or hub id) that helps to choose what is made again; read over "
        "the whole clip once for each step, so that generating takes longer by that much",
    )


def run(args: argparse.Namespace) -> None:
    """Make the clips and write them.

    Raises:
        UserError: A bad caption, model, prompt or setting, or a folder that cannot be written.
    """
    prompts = read_prompts(args)
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file; name a folder.")
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size} must be at least 1.")
    check_adapter(args)
    if args.rescorer is None and args.rescorer_weight is not None:
        raise UserError("--rescorer_weight needs --rescorer PATH; name it, or leave the weight out.")
    _check_edit(args)
    from magnet_train.pipeline.inputs import as_whole_number
    from magnet_train.pipeline.magnet import Magnet, unknown_words_sentence

    magnet = load_model(Magnet, args)
    decoding = chosen_decoding(magnet.decoding, args)
    decoding.check(magnet.lm.n_q, magnet.lm.card)
    for name in ("seed", "first_index"):
        as_whole_number(getattr(args, name), f"--{name}")
    unknown = magnet.newly_unknown_words([prompt.text for prompt in prompts])
    if unknown:
        print(f"magnet-train: warning: {unknown_words_sentence(unknown)}.", file=sys.stderr)
    began = time.monotonic()
    with _explain_full_memory(str(magnet.device)):
        maker = _Maker(magnet, decoding, args)
        made, seconds = _generate_all(maker, _plan_records(maker, prompts, args), prompts, args)
    took = time.monotonic() - began
    found = f"; {count(len(prompts) - made, 'clip')} had been made before" if made < len(prompts) else ""
    print(
        f"wrote {count(made, 'clip')} ({seconds:.1f} s of audio in {took:.1f} s) and {RESULTS} to {args.out}{found}"
    )
    if maker.edited is not None:
        print(_format_of_edits(maker.edited))


def _check_edit(args: argparse.Namespace) -> None:
    if (args.edit is None) != (args.region is None):
        raise UserError("--edit AUDIO and --region START:END go together; give both or none.")
    if args.edit is not None and (args.seconds is not None or args.loop):
        raise UserError(
            "--edit keeps the length and the ends of its recording; leave out --seconds and --loop."
        )


class _Maker:
    """Makes and writes clips as the command says.

    Args:
        magnet: The model.
        decoding: Sampler settings.
        args: The command.

    Raises:
        UserError: A recording or the rescorer cannot be read.
    """

    def __init__(self, magnet: Magnet, decoding: DecodingConfig, args: argparse.Namespace) -> None:
        from magnet_train.audio import read_audio

        self.magnet, self.decoding = magnet, decoding
        settings: dict[str, Any] = {"decoding": decoding, "seed": args.seed}
        if args.rescorer is not None:
            from magnet_train.pipeline.musicgen import MusicgenRescorer

            settings["rescorer"] = MusicgenRescorer.from_pretrained(args.rescorer, magnet.device)
        recording = args.prompt or args.edit
        self.audio = (
            None if recording is None else read_audio(recording, magnet.sample_rate, magnet.codec.channels)
        )
        on_cpu = magnet.device.type == "cpu"
        self.batch_size = 1 if on_cpu else args.batch_size  # so that each is saved as soon as it is done
        # [B, channels, samples] of B captions, given `first_index` and `progress`
        self.make: Callable[..., Tensor] = partial(
            magnet.generate, seconds=args.seconds, prompt=self.audio, loop=args.loop, **settings
        )
        self.edited = None if args.edit is None else self.audio
        if self.edited is not None:
            self.make = partial(magnet.edit, self.edited, args.region, **settings)
        self.fingerprint = self._fingerprint(args)

    def write(self, clip: Tensor, path: Path) -> None:
        """Write a clip [channels, samples]."""
        from magnet_train.audio import write_audio, write_edit

        if self.edited is None:
            write_audio(path, clip, self.magnet.sample_rate)
        else:
            write_edit(path, clip, self.edited, self.magnet.sample_rate)

    def _fingerprint(self, args: argparse.Namespace) -> str:
        """Hash what makes the clips and is not in a record by itself: weights, recording, length, device."""
        digest = hashlib.sha256(self.magnet.weights_sha256().encode())
        digest.update(json.dumps([args.seconds, self.magnet.device.type]).encode())
        if self.audio is not None:
            digest.update(self.audio.numpy().tobytes())
        return digest.hexdigest()[:16]


def _format_of_edits(recording: Tensor) -> str:
    """Say how the level outside the region was kept."""
    from magnet_train.audio import fits_16_bit

    if fits_16_bit(recording):
        return "outside the region every sample is the recording's (16-bit WAV)"
    return (
        "outside the region every sample is the recording's, at the model's rate; 16 bits cannot hold them exactly "
        f"(peak {float(recording.abs().max()):.2f}), so the WAV files are 32-bit float"
    )


def _plan_records(maker: _Maker, prompts: list[Prompt], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what results.jsonl will say of each clip, but for its length."""
    width = len(str(args.first_index + len(prompts) - 1))
    return [
        {
            "file": f"{index:0{width}d}_{_safe(prompt.text or 'unconditional')}.wav",
            "id": prompt.id,
            "text": prompt.text,
            "seed": args.seed,
            "index": index,
            "model": str(args.model),
            "fingerprint": maker.fingerprint,
            **_if_given(args),
            "decoding": asdict(maker.decoding),
        }
        for index, prompt in enumerate(prompts, start=args.first_index)
    ]


def _generate_all(
    maker: _Maker, records: list[dict[str, Any]], prompts: list[Prompt], args: argparse.Namespace
) -> tuple[int, float]:
    """Make and write what is not there yet; return how many clips that were, and the seconds of audio."""
    seconds, size = 0.0, maker.batch_size
    with open_clip_folder(args.out, records) as folder, _say_what_is_kept(folder, len(prompts), args.out):
        found = folder.done
        # In the batches of an uninterrupted command, so that the bytes are the same on a GPU as well.
        batches = range(found - found % size, len(prompts), size) if found < len(prompts) else range(0)
        with _progress(sum(len(prompts[first : first + size]) for first in batches)) as advance:
            for first in batches:
                batch = prompts[first : first + size]
                audio = maker.make(
                    [prompt.text for prompt in batch],
                    first_index=args.first_index + first,
                    progress=partial(_advance_by, advance, len(batch)),
                )
                for record, clip in zip(records[first : first + size], audio, strict=True):
                    if record["index"] - args.first_index >= folder.done:
                        length = clip.shape[-1] / maker.magnet.sample_rate
                        folder.add({**record, "seconds": length}, partial(maker.write, clip))
                        seconds += length
        return folder.done - found, seconds


@contextmanager
def _say_what_is_kept(folder: ClipFolder, clips: int, out: Path) -> Iterator[None]:
    """Leave with what is there when Ctrl-C or SIGTERM stops the work."""

    def stop(*_: object) -> None:
        raise Preempted

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except (KeyboardInterrupt, Preempted) as stopped:
        kept = f"{folder.done} of {count(clips, 'clip')} are in {out}" if folder.done else "no clip was done"
        raise type(stopped)(f"stopped; {kept}, and the same command goes on from there") from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _if_given(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a record says of adapter, audio, loop and rescorer, if there are any."""
    record: dict[str, Any] = {}
    if args.adapter is not None:
        record.update(adapter=args.adapter, strength=args.adapter_strength)
    if args.prompt is not None:
        record.update(prompt=str(args.prompt))
    if args.edit is not None:
        record.update(edit=str(args.edit), region=args.region)
    if args.loop:
        record.update(loop=True)
    if args.rescorer is not None:
        record.update(rescorer=args.rescorer)
    return record


@contextmanager
def _explain_full_memory(device: str) -> Iterator[None]:
    """Turn torch's errors of memory into one sentence; that of the CPU has no type of its own."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise UserError(
            f"the memory of {device} is not enough; give a smaller --batch_size, or ask for fewer --seconds."
        ) from error


def _advance_by(advance: Callable[[int, int], None], clips: int, done: int, total: int) -> None:
    advance(clips, total)  # a step of a batch is one of each of its clips


@contextmanager
def _progress(clips: int) -> Iterator[Callable[[int, int], None]]:
    """Show a bar over decoding steps of clips, with rate and time left.

    Calling what it gives with a number of steps done, and how many a clip takes, advances it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("generate"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, {task.fields[rate]}/s, left"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("generate", total=None, rate="-")

        def advance(steps: int, steps_of_a_clip: int) -> None:
            rate = f"{bar.tasks[0].speed or 0:.0f}"
            bar.update(task, advance=steps, total=clips * steps_of_a_clip, rate=rate)

        try:
            yield advance
        except UserError:
            bar.live.transient = True  # the sentence that follows is enough
            raise


def _safe(text: str) -> str:
    """Turn a caption into a part of a file name."""
    return re.sub(r"[\W_]+", "_", text.lower()).strip("_")[:NAME_LENGTH] or "clip"


def _region(text: str) -> tuple[float, float]:
    try:
        start, end = text.split(":")
        return float(start), float(end)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} should be two numbers of seconds, like 2.0:4.5") from error

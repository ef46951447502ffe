"""Make audio from text with a trained model, or a part of a recording anew: numbered WAV files, and results.jsonl
that says how each was made.
"""

# Shapes: audio float [B, channels, samples].

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magnet_train.cli.counting import count
from magnet_train.cli.model_options import add_device_option, add_model_options, check_adapter, load_model
from magnet_train.cli.prompts import Prompt, read_prompts
from magnet_train.errors import UserError
from magnet_train.whole_files import whole_file

if TYPE_CHECKING:
    from torch import Tensor

    from magnet_train.decoding import DecodingConfig
    from magnet_train.magnet import Magnet

RESULTS = "results.jsonl"
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
        "--out", required=True, type=Path, metavar="DIR", help="folder for the WAVs; without results yet"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="length in seconds (default: the model's clip length); more is made window by window",
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same sound (default: 0)")
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
        "--batch-size", type=int, default=16, metavar="B", help="clips made at once (default: 16)"
    )
    add_device_option(parser)
    sampler = parser.add_argument_group("sampler", "what is left out is as the model was saved")
    sampler.add_argument(
        "--steps", type=_integers, metavar="20,10,10,10", help="decoding steps, one number per codebook"
    )
    sampler.add_argument(
        "--temperature", type=float, metavar="T", help="randomness at the start of each codebook"
    )
    sampler.add_argument(
        "--constant-temperature",
        action="store_true",
        help="let it stay instead of falling to 0 over the steps of a codebook",
    )
    sampler.add_argument(
        "--top-p", type=float, metavar="P", help="sample from this share of the probability, 0..1"
    )
    sampler.add_argument(
        "--top-k", type=int, metavar="K", help="sample from the K most probable tokens instead"
    )
    sampler.add_argument(
        "--cfg", type=_floats, metavar="10,1", help="guidance while all is masked, and at the end"
    )
    sampler.add_argument(
        "--arrangement",
        choices=["nonoverlap", "stride1", "spread"],
        help="how spans are laid when masking again",
    )
    sampler.add_argument(
        "--scoring", choices=["max", "prod"], help="how a span is judged: best token, or all of them"
    )
    sampler.add_argument(
        "--rescorer",
        metavar="PATH",
        help="MusicGen of the same codec (folder or hub id) that helps to choose what is made again; read over "
        "the whole clip once for each step, so that generating takes longer by that much",
    )
    sampler.add_argument(
        "--rescorer-weight",
        type=float,
        metavar="W",
        help="its share in that choice: 0 none, 1 all (default: as saved, else 0.5)",
    )
    sampler.add_argument("--greedy", action="store_true", help="take the most probable token each time")


def run(args: argparse.Namespace) -> None:
    """Make the clips and write them.

    Raises:
        UserError: A bad caption, model, prompt or setting, or a folder that cannot be written.
    """
    prompts = read_prompts(args)
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file; name a folder.")
    if (args.out / RESULTS).exists():
        raise UserError(f"{args.out} holds results already; choose another --out or remove it.")
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size} must be at least 1.")
    check_adapter(args)
    if args.rescorer is None and args.rescorer_weight is not None:
        raise UserError("--rescorer-weight needs --rescorer PATH; name it, or leave the weight out.")
    _check_edit(args)
    from magnet_train.magnet import Magnet

    magnet = load_model(Magnet, args)
    decoding = chosen_decoding(magnet.decoding, args)
    decoding.check(magnet.lm.n_q, magnet.lm.card)
    make = _maker(magnet, decoding, args)
    began = time.monotonic()
    with _explain_full_memory(str(magnet.device)):
        seconds = _generate_all(make, magnet.sample_rate, decoding, prompts, args)
    took = time.monotonic() - began
    print(
        f"wrote {count(len(prompts), 'clip')} ({seconds:.1f} s of audio in {took:.1f} s) and {RESULTS} to {args.out}"
    )


def _check_edit(args: argparse.Namespace) -> None:
    if (args.edit is None) != (args.region is None):
        raise UserError("--edit AUDIO and --region START:END go together; give both or none.")
    if args.edit is not None and (args.seconds is not None or args.loop):
        raise UserError(
            "--edit keeps the length and the ends of its recording; leave out --seconds and --loop."
        )


def _maker(magnet: Magnet, decoding: DecodingConfig, args: argparse.Namespace) -> Callable[..., Tensor]:
    """Return what makes clips [B, channels, samples] of B captions, given `seed` and `progress`."""
    from magnet_train.audio import read_audio

    settings: dict[str, Any] = {"decoding": decoding}
    if args.rescorer is not None:
        from magnet_train.rescoring import MusicgenRescorer

        settings["rescorer"] = MusicgenRescorer.from_pretrained(args.rescorer, magnet.device)

    def read(file: Path) -> Tensor:
        return read_audio(file, magnet.sample_rate, magnet.codec.channels)

    if args.edit is not None:
        return partial(magnet.edit, read(args.edit), args.region, **settings)
    prompt = None if args.prompt is None else read(args.prompt)
    return partial(magnet.generate, seconds=args.seconds, prompt=prompt, loop=args.loop, **settings)


def _generate_all(
    make: Callable[..., Tensor],
    sample_rate: int,
    decoding: DecodingConfig,
    prompts: list[Prompt],
    args: argparse.Namespace,
) -> float:
    """Make and write all clips in batches; return the seconds of audio."""
    from magnet_train.audio import write_audio

    seconds = 0.0
    lines: list[str] = []
    width = len(str(len(prompts) - 1))
    with _all_or_nothing(args.out) as written, _progress(len(prompts)) as advance:
        for first in range(0, len(prompts), args.batch_size):
            batch = prompts[first : first + args.batch_size]
            audio = make(
                [prompt.text for prompt in batch],
                seed=args.seed + first,
                progress=partial(_advance_by, advance, len(batch)),
            )
            for index, (prompt, clip) in enumerate(zip(batch, audio, strict=True), start=first):
                name = f"{index:0{width}d}_{_safe(prompt.text or 'unconditional')}.wav"
                written.append(args.out / name)
                write_audio(args.out / name, clip, sample_rate)
                seconds += clip.shape[-1] / sample_rate
                record = {
                    "file": name,
                    "id": prompt.id,
                    "text": prompt.text,
                    "seconds": clip.shape[-1] / sample_rate,
                    # These three make the same clip again: randomness is drawn for a batch at once.
                    "seed": args.seed + first,
                    "batch_size": len(batch),
                    "place_in_batch": index - first,
                    "model": str(args.model),
                    **_if_given(args),
                    "decoding": asdict(decoding),
                }
                lines.append(json.dumps(record))
        written.append(args.out / RESULTS)
        with whole_file(args.out / RESULTS) as file:
            file.write(("\n".join(lines) + "\n").encode())
    return seconds


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
            f"the memory of {device} is not enough; give a smaller --batch-size, or ask for fewer --seconds."
        ) from error


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[list[Path]]:
    """Make `folder`, give a list for what is written into it, and remove all of it if the work does not end well."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    written: list[Path] = []
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--out {folder} cannot be made ({error.strerror}); choose another folder."
            ) from error
        yield written
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        for path in new:
            with suppress(OSError):  # not there, or others have put something into it
                path.rmdir()
        raise


def chosen_decoding(default: DecodingConfig, args: argparse.Namespace) -> DecodingConfig:
    """Put the options that were given over the model's own settings."""
    given: dict[str, Any] = {
        "decoding_steps": args.steps,
        "temperature": args.temperature,
        "anneal_temperature": False if args.constant_temperature else None,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "span_arrangement": args.arrangement,
        "span_scoring": args.scoring,
        "rescorer_weight": args.rescorer_weight,
        "use_sampling": False if args.greedy else None,
    }
    if args.cfg is not None:
        given["max_cfg_coef"], given["min_cfg_coef"] = args.cfg[0], args.cfg[-1]
    if args.top_k is not None and args.top_p is None:
        given["top_p"] = 0.0  # top_p goes first, so --top-k alone would do nothing
    return replace(default, **{name: value for name, value in given.items() if value is not None})


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


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} should be whole numbers, like 20,10,10,10") from error


def _floats(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} should be one number or two, like 10,1") from error
    if len(numbers) > 2:
        raise argparse.ArgumentTypeError(f"{text} holds more than two numbers")
    return numbers

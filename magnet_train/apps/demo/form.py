"""The form of the page: its fields, their limits, and the request that a filled form stands for."""

from __future__ import annotations

import html
import math
import secrets
import unicodedata
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import gradio as gr

from magnet_train.audio import audio_seconds
from magnet_train.decoding import DecodingConfig
from magnet_train.errors import UserError
from magnet_train.pipeline.inputs import FASTEST, SLOWEST, as_bars
from magnet_train.pipeline.magnet import Magnet
from magnet_train.text import ClassLabels, NoText

MAX_CLIPS = 4  # shown side by side
MAX_STEPS = 500  # per codebook; more gains nothing
MAX_TEXT = 1000  # characters
MAX_RECORDING = 600.0  # s; the command line takes longer ones
MAX_STRENGTH = 100.0  # of the temperature, and of guidance in either direction
MAX_SEED = 2**53 - 1  # the largest integer that a browser's numbers hold exactly
RANDOM_SEEDS = 10**6  # short enough to read out and to type
MAX_BARS = 1000
QUIETEST = -60  # LUFS
FORMATS = ("wav", "flac", "mp3", "ogg")
LOSSLESS = FORMATS[:2]

EXAMPLES = (  # shown to models that know their words
    "slow piano with soft strings, calm",
    "driving drum and bass with a deep bass",
    "a calm flute on high do",
)
# For events that answer at once: they skip the queue and show no progress bar.
IMMEDIATE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class Task(StrEnum):
    """What to generate; the values are the choices on the page."""

    TEXT = "New clip"
    CONTINUE = "Continue a recording"
    EDIT = "Change a part"
    LOOP = "Loop"


@dataclass(frozen=True)
class ClipRequest:
    """What a visitor asks for, checked."""

    task: Task
    text: str | None  # None generates without a caption
    seconds: float  # of a clip; an edit keeps the length of its recording
    seed: int  # of all clips of the request
    clips: int  # 1..MAX_CLIPS, with indices from 0
    decoding: DecodingConfig
    recording: Path | None = None  # uploaded, to continue or to edit
    kept_seconds: float = 0.0  # of the recording, with which a continuation starts
    from_end: bool = True  # whether they are the recording's last seconds instead of its first
    region: tuple[float, float] = (0.0, 0.0)  # start and end (s) of the part that an edit regenerates
    negative: str | None = None  # caption of what to avoid
    bars: int | None = None  # length of a loop in place of `seconds`, with `bpm`
    bpm: float | None = None
    loudness: float | None = None  # LUFS
    format: str = "wav"


def build_form(magnet: Magnet) -> dict[str, Any]:
    """Lay out the fields and return them by name; `read_request` checks their values."""
    longest, fields = magnet.segment_duration, {}
    fields["task"] = gr.Radio([task.value for task in Task], value=Task.TEXT.value, label="What to make")
    fields["text"] = _text_field(magnet)
    fields["negative"] = gr.Textbox(
        label="Without",
        placeholder="what to avoid",
        max_length=MAX_TEXT,
        visible=not isinstance(magnet.text, NoText),
    )
    with gr.Column(visible=False) as recording_column:
        fields["recording"] = gr.Audio(
            label="Recording (wav, flac, ogg or mp3)",
            type="filepath",
            sources=["upload", "microphone"],
            editable=False,
            buttons=["download"],
        )
        note = gr.HTML(visible=False, elem_classes="note")
    with gr.Row(visible=False) as prompt_row:
        kept = round(min(3.0, longest / 2), 2)
        fields["kept_seconds"] = gr.Number(kept, label="Seconds to keep", step=0.1)
        fields["which"] = gr.Radio(["the last", "the first"], value="the last", label="Which seconds")
    with gr.Row(visible=False) as region_row:
        end = round(min(1.0, longest / 2), 2)
        fields["start"] = gr.Number(0, label="Regenerate from (s)", step=0.1)
        fields["end"] = gr.Number(end, label="to (s)", step=0.1)
    with gr.Row(visible=False) as bars_row:
        info = "of four beats; 0 takes the length below"
        fields["bars"] = gr.Number(0, label="Bars", info=info, step=1)
        fields["bpm"] = gr.Number(120, label="Tempo", info="beats per minute", step=1)
    fields["seconds"] = _length_field(magnet)
    fields |= _output_fields()
    fields |= _sampler_fields(magnet)
    for name, field in fields.items():
        field.elem_id = name

    def show_fields(task: str) -> list[Any]:
        with_recording = task in (Task.CONTINUE, Task.EDIT)
        editing = task == Task.EDIT
        visible = (
            with_recording,
            task == Task.CONTINUE,
            editing,
            task == Task.LOOP,
            not editing,
            not editing,
        )
        return [gr.update(visible=value) for value in visible]

    def describe(path: str | None) -> tuple[Any, Any, Any]:
        return _describe_recording(path, longest)

    parts = [recording_column, prompt_row, region_row, bars_row, fields["seconds"], fields["loudness"]]
    fields["task"].change(show_fields, fields["task"], parts, **IMMEDIATE)
    # Typing a seed turns off the random one.
    fields["seed"].input(lambda: False, None, fields["random_seed"], **IMMEDIATE)
    described = [note, fields["start"], fields["end"]]
    fields["recording"].change(describe, fields["recording"], described, **IMMEDIATE)
    return fields


def _output_fields() -> dict[str, Any]:
    fields = {}
    fields["clips"] = gr.Slider(1, MAX_CLIPS, value=2, step=1, label="Variations", info="with the same seed")
    with gr.Row(equal_height=True):
        fields["seed"] = gr.Number(0, label="Seed", info="same seed, same sound", step=1)
        fields["random_seed"] = gr.Checkbox(True, label="Random seed", info="a new one for each request")
    with gr.Row(equal_height=True):
        fields["format"] = gr.Radio(list(FORMATS), value=FORMATS[0], label="Format")
        fields["loudness"] = gr.Number(None, label="Loudness (LUFS)", info="such as -14; 0 leaves it", step=1)
    return fields


def _describe_recording(path: str | None, longest: float) -> tuple[Any, Any, Any]:
    """Show a recording's length, and propose its middle as the region to edit."""

    def show(text: str) -> Any:
        return gr.update(value=f"<p>{html.escape(text)}</p>", visible=True)

    if path is None:
        return gr.update(visible=False), gr.skip(), gr.skip()
    try:
        length = recording_seconds(Path(path))
    except UserError as error:
        return show(as_sentence(str(error))), gr.skip(), gr.skip()
    half, digits = min(length, longest) / 4, 1 if length >= 1 else 2
    start, end = round(length / 2 - half, digits), round(length / 2 + half, digits)
    return show(f"{Path(path).name}: {length:.2f} s"), start, end


def _text_field(magnet: Magnet) -> Any:
    if isinstance(magnet.text, ClassLabels):
        return gr.Dropdown(["", *magnet.text.labels], value="", label="Label")
    if isinstance(magnet.text, NoText):
        return gr.Textbox(label="Text (this model takes none)", interactive=False, lines=2)
    hint = "describe the sound, or leave this empty"
    text = gr.Textbox(
        label="Text", placeholder=hint, interactive=True, lines=2, max_length=MAX_TEXT, autofocus=True
    )
    examples = [[example] for example in EXAMPLES if not magnet.unknown_words([example])]
    if examples:
        gr.Examples(examples, text, label="Examples")
    return text


def _length_field(magnet: Magnet) -> Any:
    """Offer lengths from one masking span to the clip length of the model's training."""
    longest, frame = magnet.segment_duration, 1 / magnet.codec.frame_rate
    step = 0.1 if longest >= 2 and math.isclose(longest * 10, round(longest * 10)) else frame
    shortest = min(longest, round(math.ceil(magnet.lm.span_len * frame / step - 1e-6) * step, 6))
    return gr.Slider(shortest, longest, value=longest, step=step, label="Length of the clip (s)")


def _sampler_fields(magnet: Magnet) -> dict[str, Any]:
    own, fields = magnet.decoding, {}
    with gr.Accordion("Advanced: sampler settings", open=False):
        info = f"for each of the {magnet.lm.n_q} codebooks, coarse to fine; more steps take longer"
        steps = ", ".join(map(str, own.decoding_steps))
        fields["steps"] = gr.Textbox(steps, label="Steps", info=info, max_length=100)
        with gr.Row():
            info = "higher is more random"
            fields["temperature"] = gr.Number(own.temperature, label="Temperature", info=info, step=0.1)
            fields["constant_temperature"] = gr.Checkbox(
                not own.anneal_temperature,
                label="Constant temperature",
                info="otherwise it falls to 0 within each codebook",
            )
        info = "sample from the most probable tokens up to this total probability; 0 turns it off"
        fields["top_p"] = gr.Slider(0, 1, value=own.top_p, step=0.01, label="top_p", info=info)
        with gr.Row():
            info = "1 is off; higher follows the text more closely"
            fields["guidance"] = gr.Number(
                own.max_cfg_coef, label="Guidance at the start", info=info, step=0.5
            )
            info = "of each codebook, when nothing is masked"
            fields["last_guidance"] = gr.Number(
                own.min_cfg_coef, label="Guidance at the end", info=info, step=0.5
            )
    return fields


def read_request(magnet: Magnet, form: dict[str, Any]) -> ClipRequest:
    """Check the values of a form, by the names of `build_form`; a client may have set them to anything.

    Raises:
        UserError: A value is out of range or of the wrong type, or values do not fit each other.
    """
    if form["task"] not in list(Task):
        raise UserError(f"the task should be one of {', '.join(Task)}.")
    longest = magnet.segment_duration
    drawn = form["random_seed"] or form["seed"] is None
    request = ClipRequest(
        task=Task(form["task"]),
        text=_read_text(form["text"] or ""),
        seconds=min(_number("length", form["seconds"], 0, longest + 1e-6), longest),
        seed=secrets.randbelow(RANDOM_SEEDS) if drawn else _integer("seed", form["seed"], 0, MAX_SEED),
        clips=_integer("number of variations", form["clips"], 1, MAX_CLIPS),
        decoding=_read_sampler(magnet, form),
        negative=_read_text(form["negative"] or ""),
        loudness=_number("loudness", form["loudness"] or 0, QUIETEST, 0) or None,
        format=form["format"],
    )
    if request.format not in FORMATS:
        raise UserError(f"the format should be one of {', '.join(FORMATS)}.")
    if request.task is Task.LOOP and form["bars"]:
        return _with_bars(request, form, longest)
    if request.task not in (Task.CONTINUE, Task.EDIT):
        return request
    if not isinstance(form["recording"], str):
        raise UserError("there is no recording yet; drop one into the field Recording.")
    request = replace(request, recording=Path(form["recording"]))
    if request.task is Task.EDIT:
        if request.format not in LOSSLESS:
            raise UserError(
                f"a changed recording keeps its samples only in {' or '.join(LOSSLESS)}; choose one."
            )
        request = replace(request, loudness=None)  # the field is hidden
        start, end = (_number(name, form[name] or 0, 0, MAX_RECORDING) for name in ("start", "end"))
        return replace(request, region=(start, end))
    kept = _number("seconds to keep", form["kept_seconds"] or 0, 0, MAX_RECORDING)
    if not 0 < kept < request.seconds:
        raise UserError(
            f"seconds to keep {kept:g} should be more than 0 and less than the clip's length of "
            f"{request.seconds:g} s."
        )
    return replace(request, kept_seconds=kept, from_end=form["which"] == "the last")


def _with_bars(request: ClipRequest, form: dict[str, Any], longest: float) -> ClipRequest:
    bars = _integer("number of bars", form["bars"], 1, MAX_BARS)
    bpm = _number("tempo", form["bpm"], SLOWEST, FASTEST)
    if (seconds := as_bars(bars, bpm)) > longest:
        raise UserError(
            f"{bars} bars at {bpm:g} bpm last {seconds:.1f} s; the page makes clips of up to {longest:g} s, and "
            "`magnet-train generate` longer ones."
        )
    return replace(request, seconds=seconds, bars=bars, bpm=bpm)


def _read_text(text: object) -> str | None:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise UserError(f"the text should have at most {MAX_TEXT} characters.")
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\t\r\n" for letter in text):
        raise UserError("the text contains a control character or half of a surrogate pair; type it again.")
    return text.strip() or None


def _read_sampler(magnet: Magnet, form: dict[str, Any]) -> DecodingConfig:
    """Return the model's sampler settings with the form's; an empty number keeps the model's."""
    own = magnet.decoding

    def number(name: str, label: str, default: float, least: float, most: float) -> float:
        return default if form[name] is None else _number(label, form[name], least, most)

    strongest = (-MAX_STRENGTH, MAX_STRENGTH)
    decoding = replace(
        own,
        decoding_steps=read_steps(form["steps"], magnet.lm.n_q),
        temperature=number("temperature", "temperature", own.temperature, 0, MAX_STRENGTH),
        anneal_temperature=not form["constant_temperature"],
        top_p=number("top_p", "top_p", own.top_p, 0, 1),
        max_cfg_coef=number("guidance", "guidance at the start", own.max_cfg_coef, *strongest),
        min_cfg_coef=number("last_guidance", "guidance at the end", own.min_cfg_coef, *strongest),
    )
    decoding.check(magnet.lm.n_q, magnet.lm.card)
    return decoding


def read_steps(text: object, n_q: int) -> tuple[int, ...]:
    """Parse the decoding steps of each codebook, `n_q` integers in 1..MAX_STEPS, separated by commas or spaces."""
    words = str(text)[:200].replace(",", " ").split()
    valid = [word.isascii() and word.isdigit() and 1 <= int(word) <= MAX_STEPS for word in words]
    if len(words) != n_q or not all(valid):
        raise UserError(
            f"steps '{str(text)[:40]}' should be {n_q} whole numbers from 1 to {MAX_STEPS}, one for each codebook."
        )
    return tuple(map(int, words))


def _number(name: str, value: object, least: float, most: float) -> float:
    """Return a number in least..most; NaN is refused, as no comparison with it is true."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(f"{name} {str(value)[:30]} should be a number from {least:g} to {most:g}.")
    return float(value)


def _integer(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, float) and value.is_integer():  # a browser sends 5 and 5.0 alike
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{name} {str(value)[:30]} should be a whole number from {least} to {most}.")
    return value


def recording_seconds(path: Path) -> float:
    """Return the length of an uploaded recording (s); raises `UserError` if it is not audio or too long."""
    seconds = audio_seconds(path)
    if not seconds <= MAX_RECORDING:
        raise UserError(
            f"{path.name} lasts {seconds / 60:.1f} minutes; cut it to at most {MAX_RECORDING / 60:.0f}, or use "
            "`magnet-train generate`, which takes any length."
        )
    return seconds


def as_sentence(message: str) -> str:
    """Capitalise an error for the page."""
    return message[:1].upper() + message[1:]

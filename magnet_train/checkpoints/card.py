"""The model card: a model's facts, origin, licence and use; and the licence in other cards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from magnet_train.checkpoints.audiocraft.names import THEIR_STORE
from magnet_train.checkpoints.bundle import STEPS_PROFILE, UNSPECIFIED, ModelBundle
from magnet_train.decoding import StepProfile
from magnet_train.decoding.step_profile import LOSS

RELEASED = "CC-BY-NC-4.0"
RELEASED_NOTE = f"the weights that Meta released for MAGNeT are {RELEASED}: not for commercial use"

USE = {
    "magnet": """from magnet_train import Magnet

magnet = Magnet.from_pretrained("this folder")
audio = magnet.generate(["a caption"], seed=0)  # float [1, channels, samples] at magnet.sample_rate""",
    "audiocraft": """from audiocraft.models import MAGNeT  # or magnet_train.Magnet.from_pretrained, which reads this as well

magnet = MAGNeT.get_pretrained("this folder")
audio = magnet.generate(["a caption"])""",
}

NO_CODEC = (
    "The codec did not come with this model; put its compression_state_dict.bin beside state_dict.bin before "
    "audiocraft loads it."
)


def model_card(model: ModelBundle, format: str = "magnet") -> str:
    """Return the card in Markdown, with the hub's front matter; `format` is a key of `USE`."""
    base = f"\nbase_model: {model.base['source']}" if model.base.get("hub") else ""
    table = "\n".join(f"| {name} | {text} |" for name, text in facts(model))
    remarks = "\n\n".join(_remarks(model, format))
    return f"""---
{front_matter(model.licence)}
library_name: magnet-train
pipeline_tag: text-to-audio
tags: [text-to-audio, magnet]{base}
---

# A MAGNeT model

| | |
|---|---|
{table}
{remarks and chr(10) + remarks + chr(10)}
```python
{USE[format]}
```

Made with magnet-train after "Masked Audio Generation using a Single Non-Autoregressive Transformer"
(arXiv 2401.04577).
"""


def facts(model: ModelBundle) -> Iterator[tuple[str, str]]:
    """Yield the facts of a model as (name, text) in Markdown."""
    lm, codec, base = model.lm, model.codec, model.base
    layers = f"{lm['num_layers']} layers, width {lm['dim']}, {lm['num_heads']} heads"
    positions = "" if lm.get("positions") != "rotary" else ", rotary positions"
    yield "architecture", f"{layers}{positions}, {_parameters(model)}"
    context = lm["subcodes_context"]
    of_each = " of each side" if codec.streams == 2 else ""
    attention = "all frames in view" if context == -1 else f"context of {context} frames"
    yield "masking", f"spans of {lm['span_len']} frames, {attention} above the first codebook{of_each}"
    audio = f"{codec.sample_rate} Hz, {codec.channels} channel(s)"
    yield "clips", f"up to {model.segment_duration:g} s at {audio}"
    tokens = f"{codec.codebooks} of {codec.card}, {codec.frame_rate:g} frames/s"
    sha256 = f"sha256 `{codec.sha256}`" if codec.sha256 else "hash unknown"
    yield "codec", f"`{codec.id}`, {tokens}, {sha256}"
    yield "text encoder", describe_text(model.text)
    training = {name: fact for name, fact in model.training.items() if name != STEPS_PROFILE}
    for name, record in (("training", training), ("data", model.data), ("adapter", model.adapter)):
        if record:
            yield name, _listed(record)
    if STEPS_PROFILE in model.training:
        profile = StepProfile.from_record(model.training[STEPS_PROFILE], lm["n_q"], model.source)
        chosen = (f"{quality} {' '.join(map(str, profile.choose(quality)))}" for quality in LOSS)
        yield "passes", f"{', '.join(chosen)}, measured on {profile.clips} clips"
    if base:
        licence = base.get("licence", UNSPECIFIED)
        sha256 = f"sha256 of its weights `{base.get('weights_sha256')}`"
        yield "made from", f"`{base.get('source')}`, licence {licence}, {sha256}"
    yield "licence", model.licence


def _parameters(model: ModelBundle) -> str:
    """Count each parameter once, as `fit` and `export` do: a T5 stores its embedding under two names."""
    counts = {"lm": 0, "text": 0}
    for name, tensor in model.weights.items():
        if not name.endswith("encoder.embed_tokens.weight"):
            counts["text" if name.startswith("text.") else "lm"] += tensor.numel()
    of_text = f" and {counts['text']:,} of the text encoder" if counts["text"] else ""
    return f"{counts['lm']:,} parameters{' of the adapter' if model.adapter else ''}{of_text}"


def describe_text(text: Mapping[str, Any]) -> str:
    """Return a text encoder's `spec()` in words."""
    kind, name = text.get("kind"), text.get("name")
    if kind == "t5":
        revision = f" at revision {text['revision']}" if text.get("revision") else ""
        trained = "trained along" if text.get("trainable") else "frozen"
        return f"T5 `{name}`{revision}, {trained}, captions up to {text.get('max_length')} tokens"
    if kind == "words":
        return f"a trained vector of {text.get('dim')} for each word of tokenizer `{name}`"
    if kind == "labels":
        return f"a trained vector for each of the labels {', '.join(map(str, text.get('labels', [])))}"
    return "none: the model makes clips without captions" if kind == "none" else json.dumps(dict(text))


def _remarks(model: ModelBundle, format: str) -> Iterator[str]:
    if note := note_on(model.licence, str(model.base.get("licence", ""))):
        yield note
    if model.licence == UNSPECIFIED and model.decoding.parity:
        yield f"The source of these weights states no licence; {RELEASED_NOTE}."
    if format == "audiocraft" and model.codec_folder is None and model.codec.id.startswith(THEIR_STORE):
        yield NO_CODEC
    if format == "audiocraft" and model.lm.get("text_key_mask"):
        yield (
            "Trained with the padding behind captions hidden, which audiocraft does not do: generate one caption "
            "at a time, or captions of one length, for the same results as in magnet-train."
        )


def _listed(record: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)

    return ", ".join(f"{name} {text(value)}" for name, value in record.items())


# Licences that the hub knows by name; others are `other` there, with the name beside it.
HUB_IDS = {
    "apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-sa-3.0", "cc-by-nc-4.0",
    "cc-by-nc-3.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "bsd-3-clause",
    "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "unlicense", "openrail",
}  # fmt: skip


def licence_of(folder: Path) -> str:
    """Return the licence in the front matter of a folder's model card, "unspecified" without one."""
    try:
        front = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return UNSPECIFIED
    return str(front.get("license_name") or front.get("license") or UNSPECIFIED)


def front_matter(licence: str) -> str:
    """Return the card's lines on the licence in the hub's format."""
    if licence.lower() in HUB_IDS:
        return f"license: {licence.lower()}"
    return f"license: other\nlicense_name: {yaml.safe_dump(licence).splitlines()[0]}"


def note_on(*licences: str) -> str:
    """Return a sentence on the limits of a model's licence or its base's, "" without any."""
    if any(licence.lower().startswith("cc-by-nc") for licence in licences):
        return "Not for commercial use: the licence of the weights that training began with forbids it."
    return ""

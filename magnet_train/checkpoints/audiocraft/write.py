"""Write the pair of files that `MAGNeT.get_pretrained(folder)` of the reference reads."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from magnet_train.checkpoints.audiocraft.names import (
    ARCHITECTURE,
    CODEC_FILE,
    DECODING,
    OURS,
    POSITIONS,
    PRETRAINED,
    STATE_FILE,
    THEIR_STORE,
    rope_frequencies,
    to_audiocraft_names,
)
from magnet_train.checkpoints.bundle import ModelBundle
from magnet_train.checkpoints.card import model_card
from magnet_train.checkpoints.export import CARD, whole_folder
from magnet_train.decoding import DecodingConfig
from magnet_train.errors import UserError
from magnet_train.storage.hub import is_hub_id

VERSION = "1.4.0a2"  # of the reference whose builders the configuration is for

# Text encoders that the reference's conditioner can build, and the width of their states. It lists flan-t5-xl and -xxl
# as well, but without their width.
T5_WIDTHS = {
    "t5-small": 512, "t5-base": 768, "t5-large": 1024, "t5-3b": 1024, "t5-11b": 1024,
    "google/flan-t5-small": 512, "google/flan-t5-base": 768, "google/flan-t5-large": 1024,
}  # fmt: skip
# Values that the reference knows of settings of the decoder for which we have more.
THEIR_NAMES = {"span_arrangement": ("nonoverlap", "stride1"), "span_scoring": ("max", "prod")}


def save_audiocraft(model: ModelBundle, folder: Path) -> None:
    """Write `state_dict.bin`, `compression_state_dict.bin` and a card into a new or empty folder, all or nothing.

    Raises:
        UserError: The reference could not read the text encoder, the codec or the length of the clips, or the
            target is not empty or cannot be written.
    """
    if obstacle := _obstacle(model):
        raise UserError(f"audiocraft cannot read {model.source}: {obstacle} use --format magnet.")
    with whole_folder(folder) as partial:
        state = to_audiocraft_names({name.removeprefix("lm."): t for name, t in model.weights.items()})
        state |= rope_frequencies(model.lm)
        package = {
            "best_state": {name: tensor.detach().clone().contiguous() for name, tensor in state.items()},
            "xp.cfg": yaml.safe_dump(audiocraft_config(model), sort_keys=False),
            "version": VERSION,
            "exported": True,
        }
        torch.save(package, partial / STATE_FILE)
        if model.codec_folder is not None:
            shutil.copyfile(model.codec_folder / CODEC_FILE, partial / CODEC_FILE)
        elif is_hub_id(model.codec.id):
            pointer = {"pretrained": model.codec.id, "exported": True, "version": VERSION}
            torch.save(pointer, partial / CODEC_FILE)
        (partial / CARD).write_text(model_card(model, "audiocraft"), encoding="utf-8")


# Settings of the released configurations that do not depend on the model.
FIXED: dict[str, Any] = {
    "solver": "magnet",
    "device": "cuda",
    "dtype": "float32",
    "autocast": True,
    "autocast_dtype": "float16",
    "efficient_attention_backend": "xformers",  # "torch" ignores the mask of the higher codebooks
    "compression_model_n_q": None,
    "tokens": {"padding_with_special_token": False},
    "interleave_stereo_codebooks": {"use": False, "per_timestep": False},
    "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0},
    "attribute_dropout": {},
    "fuser": {"cross_attention_pos_emb_scale": 1},
    "codebooks_pattern": {},
}
FIXED_LM: dict[str, Any] = {
    "dropout": 0.0,
    "emb_lr": None,
    "custom": False,
    "memory_efficient": True,
    "attention_as_float32": False,
    "checkpointing": "none",
    "weight_init": "gaussian",
    "depthwise_init": "current",
    "zero_bias_init": True,
    "cross_attention": False,  # the reference turns it on itself, since `fuser.cross` is not empty
    "attention_dropout": None,
    "two_step_cfg": False,
}


def audiocraft_config(model: ModelBundle) -> dict[str, Any]:
    """Return the configuration that the reference's builders expect, and under `OURS` what only we read."""
    lm, codec = model.lm, model.codec
    positional = {ours: theirs for theirs, ours in POSITIONS.items()}[lm.get("positions", "sinusoidal")]
    seconds, frame_rate = int(model.segment_duration), int(codec.frame_rate)  # the reference slices with them
    sizes = ("dim", "num_heads", "num_layers", "n_q", "card", "subcodes_context", "span_len")
    config: dict[str, Any] = copy.deepcopy(FIXED) | {
        "sample_rate": codec.sample_rate,
        "channels": codec.channels,
        "compression_model_checkpoint": f"{PRETRAINED}{codec.id}" if is_hub_id(codec.id) else codec.id,
        "dataset": {"segment_duration": seconds},
        "masking": {"span_len": lm["span_len"]},
        "generate": {"lm": _decoding(model.decoding)},
        "conditioners": {"description": {"t5": {"name": model.text["name"], "word_dropout": 0.0}}},
        "transformer_lm": {
            **{name: lm[name] for name in sizes},
            "compression_model_framerate": frame_rate,
            "segment_duration": seconds,
            "positional_embedding": positional,
            **FIXED_LM,
        },
        OURS: {
            "text_key_mask": lm["text_key_mask"],
            "parity": model.decoding.parity,
            "decoding": model.decoding.to_dict(),
            "text": model.text,
            "codec": codec.to_dict(),
            "licence": model.licence,
            "training": model.training,
            "data": model.data,
            "base": model.base,
        },
    }
    for name, value in ARCHITECTURE.items():
        *sections, last = name.split(".")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return config


def _obstacle(model: ModelBundle) -> str:
    """Return why the reference cannot read a model, and the remedy other than our own format; "" if it can."""
    text, codec = model.text, model.codec
    kind, name = str(text.get("kind")), str(text.get("name"))
    width = T5_WIDTHS.get(name)
    if kind != "t5" or text.get("trainable") or width is None:
        what = {"words": "a vector for each word", "labels": "labels", "none": "no text"}.get(
            kind, f"T5 '{name}'{' that was trained along' if text.get('trainable') else ''}"
        )
        return f"its text encoder is {what}, and audiocraft takes only frozen ones by name ({', '.join(T5_WIDTHS)});"
    if model.lm["text_dim"] != width:
        return f"it takes text states of width {model.lm['text_dim']}, and audiocraft's {name} gives {width};"
    if codec.streams == 2:
        return (
            "left and right are two streams of tokens, and audiocraft restricts the context of the second one's first "
            "codebook;"
        )
    if codec.kind != "encodec":
        return f"its codec is of type {codec.kind}, and audiocraft takes only EnCodecs;"
    # The reference reads transformers' format by hub id, and its own from a file, which some releases lack.
    if model.codec_folder is not None:
        readable = (model.codec_folder / CODEC_FILE).is_file()
    else:
        readable = is_hub_id(codec.id) or codec.id.startswith(THEIR_STORE)
    if not readable:
        return (
            f"its codec is {codec.id}, and audiocraft takes a hub id or weights in its own format; upload the codec to "
            "the hub and tokenize and train with its id, or"
        )
    for setting, value, remedy in (  # the reference slices with these
        ("segment_duration", model.segment_duration, "train with whole seconds (--data.segment_duration 10)"),
        ("frame_rate of the codec", codec.frame_rate, "train on the tokens of another codec"),
    ):
        if not float(value).is_integer():
            return f"its {setting} is {value:g}, and audiocraft takes only whole numbers; {remedy}, or"
    return ""


def _decoding(decoding: DecodingConfig) -> dict[str, Any]:
    """Return the decoder's settings by the reference's names, without values that the reference lacks."""
    ours = decoding.to_dict()
    settings = {theirs: ours[name] for theirs, name in DECODING.items()}
    return {name: value for name, value in settings.items() if value in THEIR_NAMES.get(name, (value,))}

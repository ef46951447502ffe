"""Codecs: `protocol.Codec` is the contract, `load_codec` finds one by name, or the one of a record."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from magnet_train.codecs.protocol import Codec
from magnet_train.errors import UserError
from magnet_train.models.precision import usable_device
from magnet_train.storage.hub import find_folder, recorded_name, unreadable
from magnet_train.storage.plain_text import load_json, read_text
from magnet_train.tokens import CodecInfo

__all__ = ["KINDS", "PACKAGED", "QUICKSTART", "Codec", "load_codec", "packaged_codec"]

QUICKSTART = "quickstart"
PACKAGED = {  # name -> folder within apps/quickstart
    QUICKSTART: "codec",
    "drums_and_bass": "drums_and_bass/codec",
    "band": "band/codec",
}
# `model_type` in a folder's config.json -> "module:class", imported when needed; it has `from_pretrained(folder, id)`.
KINDS = {
    "dac": "magnet_train.codecs.dac:DacCodec",
    "encodec": "magnet_train.codecs.encodec:EncodecCodec",
    "mimi": "magnet_train.codecs.mimi:MimiCodec",
    "xcodec": "magnet_train.codecs.xcodec:XcodecCodec",
}


def load_codec(
    name: str | CodecInfo, device: str = "cpu", codebooks: int | None = None, stereo: bool = False
) -> Codec:
    """Load a codec.

    Args:
        name: "quickstart", "drums_and_bass" or "band" (small ones in the package, of tones, of drums and bass, and of these
            with chords), "encodec_24khz" or "encodec_48khz" (the weights that the `encodec` package publishes), or a
            folder or hub id of an EnCodec, DAC, Mimi or X-Codec in transformers' format. Or a record, which gives the
            remaining arguments as well.
        device: Where to put the weights.
        codebooks: Number of codebooks to use, the first ones, 1 or more; None uses all.
        stereo: Encode left and right by a mono codec, see `stereo.StereoCodec`.

    Raises:
        UserError: The codec cannot be found or read, has too few codebooks or is stereo itself, or the device is missing.
    """
    if isinstance(name, CodecInfo):
        codebooks, stereo = name.n_q // name.streams, name.streams == 2
        name = name.id
    codec = _load(name)
    if codebooks is not None:
        if not 1 <= codebooks <= codec.n_q:
            raise UserError(
                f"codec {name} has {codec.n_q} codebooks and cannot give {codebooks}; use 1 to {codec.n_q} of them, or "
                "another codec."
            )
        codec.n_q = codebooks
    if stereo:
        from magnet_train.codecs.stereo import StereoCodec

        codec = StereoCodec(codec)
    return codec.to(usable_device(device))


def _load(name: str) -> Codec:
    # Imported here: transformers takes seconds, and only some commands load a codec.
    from magnet_train.codecs.encodec import WEIGHTS, load_published

    if name in WEIGHTS:
        return load_published(name)
    packaged = name in PACKAGED
    folder = packaged_codec(name) if packaged else _find(name, (*PACKAGED, *WEIGHTS))
    try:
        config = load_json(read_text(folder / "config.json"))
    except (OSError, ValueError) as error:
        raise unreadable(name, "codec", error) from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in KINDS:
        has = f"model_type {found}" if found else "no model_type"
        raise UserError(
            f"codec {name} is not a transformers model of type {', '.join(KINDS)}: its config.json has {has}; choose "
            "another --codec."
        )
    kind = pkgutil.resolve_name(KINDS[found])
    codec: Codec = kind.from_pretrained(folder, id=name if packaged else recorded_name(name))
    return codec


def _find(name: str, known: Sequence[str]) -> Path:
    try:
        return find_folder(name, "codec")
    except UserError as error:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "`magnet-train codec` makes one from your own audio."
        raise UserError(f"{str(error).removesuffix('.')}; {hint}") from error


def packaged_codec(name: str = QUICKSTART) -> Path:
    """Return the folder of one of the codecs `PACKAGED`."""
    return Path(str(resources.files("magnet_train.apps.quickstart") / PACKAGED[name]))

"""Codecs: `protocol.Codec` is the contract, `load_codec` finds one by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from magnet_train.codecs.protocol import Codec
from magnet_train.errors import UserError, first_line

__all__ = ["QUICKSTART", "Codec", "load_codec", "packaged_codec"]

QUICKSTART = "quickstart"


def load_codec(name: str, device: str = "cpu") -> Codec:
    """Load a codec.

    Args:
        name: "quickstart" (the small one in the package), "encodec_24khz" or "encodec_48khz" (the weights that the
            `encodec` package publishes), or a folder or hub id of an EnCodec in transformers' format.
        device: Where to put the weights.

    Raises:
        UserError: The codec cannot be found or read, or the device is missing.
    """
    # Imported here: transformers takes seconds, and only some commands load a codec.
    from magnet_train.codecs.encodec import WEIGHTS, EncodecCodec, load_published

    if name == QUICKSTART:
        codec: Codec = EncodecCodec.from_pretrained(packaged_codec(), id=QUICKSTART)
    elif name in WEIGHTS:
        codec = load_published(name)
    else:
        codec = EncodecCodec.from_pretrained(name)
    try:
        return codec.to(device)
    except (RuntimeError, AssertionError) as error:  # the second where torch was built without CUDA
        raise UserError(f"device {device} cannot be used ({first_line(error)}); try cpu.") from error


def packaged_codec() -> Path:
    """Return the folder of the codec "quickstart"."""
    return Path(str(resources.files("magnet_train.apps.quickstart") / "codec"))

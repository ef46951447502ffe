"""The weights that the `encodec` package publishes, 24 kHz mono and 48 kHz stereo, for transformers' EncodecModel.

Both implementations give the same tokens and the same audio, bit for bit, from the same weights.

Source: arXiv 2210.13438 (EnCodec).
"""

from __future__ import annotations

import hashlib
import pickle
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from magnet_train.codecs.encodec_hf import EncodecCodec
from magnet_train.errors import UserError, first_line
from magnet_train.storage.hub import PATIENCE

ADDRESS = "https://dl.fbaipublicfiles.com/encodec/v0/"
WEIGHTS = {"encodec_24khz": "encodec_24khz-d7cc33bc.th", "encodec_48khz": "encodec_48khz-7e698e3e.th"}
SETTINGS: dict[str, dict[str, Any]] = {
    "encodec_24khz": {"sampling_rate": 24_000, "audio_channels": 1, "use_causal_conv": True},
    "encodec_48khz": {
        "sampling_rate": 48_000,
        "audio_channels": 2,
        "use_causal_conv": False,
        "norm_type": "time_group_norm",
    },
}
BANDWIDTH_KBPS = 6.0  # 8 and 4 codebooks; the package's models have more, for higher bandwidths

# Pieces of the package's parameter names and what transformers calls them.
RENAMED = {
    ".model.": ".layers.",
    ".conv.conv.": ".conv.",
    ".convtr.convtr.": ".conv.",
    ".conv.norm.": ".norm.",
    ".convtr.norm.": ".norm.",
    "quantizer.vq.layers.": "quantizer.layers.",
    "._codebook.": ".codebook.",
}


def load_published(name: str, repository: Path | None = None) -> EncodecCodec:
    """Load published weights into a codec that works without loudness normalisation and without chunks.

    The 48 kHz model was trained on audio of normalised loudness, with the scale stored beside the tokens. A token
    model has no place for a scale, so the audio is encoded at its own loudness.

    Args:
        name: A key of `WEIGHTS`.
        repository: Folder that holds the weight files; None downloads them once.

    Raises:
        UserError: The weights are not there, or are not those of this model.
    """
    config = EncodecConfig(
        **SETTINGS[name], target_bandwidths=[BANDWIDTH_KBPS], normalize=False, chunk_length_s=None
    )
    model = EncodecModel(config)
    try:
        weights = _read(WEIGHTS[name], repository)
        model.load_state_dict(_renamed(weights, int(config.num_quantizers)))
    except (OSError, RuntimeError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        where = f"in {repository}" if repository else f"at {ADDRESS}"
        raise UserError(
            f"the weights of codec {name} cannot be loaded from {where} ({first_line(error)}); check the network, or "
            f"put {WEIGHTS[name]} into {torch.hub.get_dir()}/checkpoints."
        ) from error
    return EncodecCodec(model, name, _sha256(weights))


def _read(file: str, repository: Path | None) -> dict[str, Tensor]:
    if repository is None:
        with _short_timeout():
            return torch.hub.load_state_dict_from_url(
                ADDRESS + file, map_location="cpu", check_hash=True, weights_only=True
            )
    weights: dict[str, Tensor] = torch.load(repository / file, map_location="cpu", weights_only=True)
    return weights


@contextmanager
def _short_timeout() -> Iterator[None]:
    """Give up on a server that does not answer; torch.hub itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _renamed(weights: Mapping[str, Tensor], n_q: int) -> dict[str, Tensor]:
    """Return the weights under transformers' names, without the codebooks above the first `n_q`."""
    renamed = {}
    for name, tensor in weights.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if not name.startswith("quantizer.layers.") or int(name.split(".")[2]) < n_q:
            renamed[name] = tensor
    return renamed


def _sha256(weights: Mapping[str, Tensor]) -> str:
    """Hash the package's names and numbers: file names do not tell a user's own weights apart."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()

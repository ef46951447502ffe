"""EnCodec: from a folder or hub id in transformers' format, or the weights that the `encodec` package publishes.

Both implementations give the same tokens and the same audio, bit for bit, from the same weights.

Source: arXiv 2210.13438.
"""

from __future__ import annotations

import hashlib
import pickle
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from magnet_train.codecs.protocol import Codec
from magnet_train.errors import UserError, first_line
from magnet_train.storage.hub import PATIENCE, find_folder, load_pretrained
from magnet_train.storage.weight_checks import require_finite, require_modest

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

# The weights of the package: 24 kHz mono and 48 kHz stereo.
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
# Pieces of the package's parameter names, and transformers' names for them.
RENAMED = {
    ".model.": ".layers.",
    ".conv.conv.": ".conv.",
    ".convtr.convtr.": ".conv.",
    ".conv.norm.": ".norm.",
    ".convtr.norm.": ".norm.",
    "quantizer.vq.layers.": "quantizer.layers.",
    "._codebook.": ".codebook.",
}


class EncodecCodec(Codec):
    """A `Codec`: a transformers EncodecModel with all its codebooks in use.

    Raises:
        UserError: The model normalises loudness or works in chunks, so that tokens alone cannot be decoded.
    """

    def __init__(self, model: EncodecModel, id: str, sha256: str) -> None:
        config = model.config
        if config.normalize or config.chunk_length_s is not None:
            raise UserError(
                f"codec {id} normalises loudness or works in chunks, so tokens alone cannot be decoded; use "
                "facebook/encodec_32khz, encodec_24khz or encodec_48khz."
            )
        self.model = model.eval()
        self.id, self.sha256 = id, sha256
        self.sample_rate = int(config.sampling_rate)
        self.channels = int(config.audio_channels)
        self.frame_rate = float(config.sampling_rate / config.hop_length)
        self.n_q = int(config.num_quantizers)
        self.card = int(config.codebook_size)
        self._bandwidth = max(config.target_bandwidths)  # kbit/s; the highest uses all codebooks

    @classmethod
    def from_pretrained(cls, source: str | Path, id: str | None = None) -> Self:
        """Load from a folder with config.json and weights, or from a hub id; `id` is recorded instead of `source`.

        Raises:
            UserError: The codec is missing, unreadable or of another kind, or the hub cannot be reached.
        """
        name = str(source)
        folder = find_folder(name, "codec")
        check, remedy = partial(_require_modest, folder, name), "choose another --codec"
        model = load_pretrained(EncodecModel, folder, name, "codec", "encodec", remedy=remedy, check=check)
        require_finite(model.state_dict(), f"codec {name}")
        return cls(model, id or name, hashlib.sha256(_weights_file(folder).read_bytes()).hexdigest())

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        audio = audio.to(self.model.device)
        codes: Tensor = self.model.encode(audio, bandwidth=self._bandwidth).audio_codes  # [1, B, K, T]
        return codes[0]

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self.model.device)
        # The size of a batch shows in the last bits on a CPU, so clips are decoded one by one there.
        size = 1 if tokens.device.type == "cpu" else len(tokens)
        parts = [part[None] for part in torch.split(tokens, size)]  # [1, B, K, T] each
        return torch.cat([self.model.decode(part, audio_scales=[None]).audio_values for part in parts])

    def to(self, device: torch.device | str) -> Self:
        self.model.to(device)
        return self


def _require_modest(folder: Path, name: str) -> None:
    """Refuse settings that describe a codec larger than its weights, or one that cannot be built."""
    config = EncodecConfig.from_pretrained(folder)

    def layers() -> int:
        residual = config.num_residual_layers * len(config.upsampling_ratios)
        return int(residual + config.num_lstm_layers + config.num_quantizers)

    size = _weights_file(folder).stat().st_size
    require_modest(folder, name, "codec", layers, lambda: EncodecModel(config), size)


def _weights_file(folder: Path) -> Path:
    """Return the file that transformers reads."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"codec {folder} lacks weights ({' or '.join(WEIGHT_FILES)}); save them as one file.")


def load_published(name: str) -> EncodecCodec:
    """Load the published weights `name`, a key of `WEIGHTS`, which are downloaded once.

    The 48 kHz model was trained on audio of normalised loudness, with the scale stored beside the tokens. A token
    model has no place for a scale, so the audio is encoded at its own loudness.

    Raises:
        UserError: The weights cannot be found, or are not those of this model.
    """
    config = EncodecConfig(
        **SETTINGS[name], target_bandwidths=[BANDWIDTH_KBPS], normalize=False, chunk_length_s=None
    )
    model = EncodecModel(config)
    patience = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(PATIENCE)  # torch.hub itself would wait for ever
        weights = torch.hub.load_state_dict_from_url(
            ADDRESS + WEIGHTS[name], map_location="cpu", check_hash=True, weights_only=True
        )
        model.load_state_dict(_renamed(weights, int(config.num_quantizers)))
    except (OSError, RuntimeError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"the weights of codec {name} cannot be loaded from {ADDRESS} ({first_line(error)}); check the network, or "
            f"put {WEIGHTS[name]} into {torch.hub.get_dir()}/checkpoints."
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    digest = hashlib.sha256()
    for parameter, tensor in sorted(weights.items()):  # the package's names, and numbers
        digest.update(parameter.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return EncodecCodec(model, name, digest.hexdigest())


def _renamed(weights: Mapping[str, Tensor], n_q: int) -> dict[str, Tensor]:
    """Return the weights under transformers' names, without the codebooks above the first `n_q`."""
    renamed = {}
    for name, tensor in weights.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if not name.startswith("quantizer.layers.") or int(name.split(".")[2]) < n_q:
            renamed[name] = tensor
    return renamed

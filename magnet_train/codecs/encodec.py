"""EnCodec: from a folder or hub id in transformers' format, or the weights that the `encodec` package publishes.

Both implementations give the same tokens and the same audio, bit for bit, from the same weights.

Source: arXiv 2210.13438.
"""

from __future__ import annotations

import hashlib
import pickle
import socket
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from magnet_train.codecs.pretrained import Layout, PretrainedCodec
from magnet_train.errors import UserError, first_line
from magnet_train.storage.hub import PATIENCE

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


class EncodecCodec(PretrainedCodec):
    """A `Codec`: a transformers EncodecModel.

    Raises:
        UserError: The model normalises loudness or works in chunks, so that tokens alone cannot be decoded.
    """

    model_class, config_class = EncodecModel, EncodecConfig

    def __init__(self, model: EncodecModel, id: str, sha256: str) -> None:
        config = model.config
        if config.normalize or config.chunk_length_s is not None:
            raise UserError(
                f"codec {id} normalises loudness or works in chunks, so tokens alone cannot be decoded; use "
                "facebook/encodec_32khz, encodec_24khz or encodec_48khz."
            )
        super().__init__(model, id, sha256)
        self._bandwidth = max(config.target_bandwidths)  # kbit/s; the highest uses all codebooks

    @staticmethod
    def layout(config: EncodecConfig) -> Layout:
        hop, n_q, card = int(config.hop_length), int(config.num_quantizers), int(config.codebook_size)
        return Layout(int(config.sampling_rate), int(config.audio_channels), hop, n_q, card)

    @staticmethod
    def layers(config: EncodecConfig) -> int:
        residual = config.num_residual_layers * len(config.upsampling_ratios)
        return int(residual + config.num_lstm_layers + config.num_quantizers)

    def _pad(self, audio: Tensor) -> Tensor:
        return audio  # its layers pad

    def _encode(self, audio: Tensor) -> Tensor:
        codes: Tensor = self.model.encode(audio, bandwidth=self._bandwidth).audio_codes  # [1, B, K, T]
        return codes[0]

    def _decode(self, tokens: Tensor) -> Tensor:
        audio: Tensor = self.model.decode(tokens[None], audio_scales=[None]).audio_values
        return audio


def load_published(name: str) -> EncodecCodec:
    """Load the published weights `name`, a key of `WEIGHTS`, which are downloaded once.

    The 48 kHz model was trained on audio of normalised loudness, with the scale stored beside the tokens. Token models
    cannot use a scale, so the audio is encoded at its own loudness.

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

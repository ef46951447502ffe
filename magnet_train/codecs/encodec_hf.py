"""EnCodec in transformers' format: facebook/encodec_32khz, the packaged codec, or a folder of the same kind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecModel
from transformers.utils import logging

from magnet_train.codecs.protocol import Codec
from magnet_train.errors import UserError
from magnet_train.storage.hub import find_folder, lacking, unreadable
from magnet_train.storage.weight_checks import require_finite, require_modest

logging.disable_progress_bar()  # a bar for a file that loads in milliseconds is noise

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class EncodecCodec(Codec):
    """A transformers EncodecModel with all its codebooks in use.

    Args:
        model: The model.
        id: The name that `load_codec` takes.
        sha256: Hash of its weights.

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
        """Load from a folder with config.json and weights, or from a hub id.

        Args:
            source: Folder or hub id.
            id: Name to record instead of `source`.

        Raises:
            UserError: The codec is missing, unreadable or of another kind, or the hub cannot be reached.
        """
        name = str(source)
        folder = find_folder(name, "codec")
        try:
            model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
            if model_type != "encodec":
                kind = f"model_type {model_type}" if model_type else "no model_type"
                raise UserError(
                    f"{name} is not an EnCodec in transformers' format: its config.json has {kind}; choose another --codec."
                )
            _require_modest(folder, name)
            model, report = EncodecModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
        except UserError:
            raise
        except Exception as error:  # transformers raises many kinds, down to those of safetensors
            raise unreadable(name, "codec", error) from error
        if report["missing_keys"]:
            raise lacking(name, "codec", report["missing_keys"])
        require_finite(model.state_dict(), f"codec {name}")
        return cls(model, id or name, hashlib.sha256(_weights_file(folder).read_bytes()).hexdigest())

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """See `Codec.encode`."""
        audio = audio.to(self.model.device)
        codes: Tensor = self.model.encode(audio, bandwidth=self._bandwidth).audio_codes  # [1, B, K, T]
        return codes[0]

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """See `Codec.decode`."""
        tokens = tokens.to(self.model.device)
        # The size of a batch shows in the last bits on a CPU, so clips are decoded one by one there.
        size = 1 if tokens.device.type == "cpu" else len(tokens)
        parts = [part[None] for part in torch.split(tokens, size)]  # [1, B, K, T] each
        return torch.cat([self.model.decode(part, audio_scales=[None]).audio_values for part in parts])

    def to(self, device: torch.device | str) -> Self:
        """See `Codec.to`."""
        self.model.to(device)
        return self


def _require_modest(folder: Path, name: str) -> None:
    """Refuse settings that describe a codec larger than its weights, or none that can be built."""
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

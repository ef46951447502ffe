"""EnCodec as transformers has it: facebook/encodec_32khz, the packaged codec, or a folder like them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecModel
from transformers.utils import logging

from magnet_train.codecs.protocol import Codec, clip_by_clip
from magnet_train.errors import UserError
from magnet_train.storage.hub import find_folder, lacking, unreadable
from magnet_train.storage.weight_checks import require_finite, require_modest

logging.disable_progress_bar()  # a bar for a file that loads in milliseconds is noise

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class EncodecCodec(Codec):
    """A transformers EncodecModel behind the codec protocol, all its codebooks in use.

    Args:
        model: The codec in evaluation mode.
        id: Where it came from, as `load_codec` takes it.
        sha256: Hash of its weights file.

    Raises:
        UserError: The model normalises loudness or cuts audio in chunks of its own: its tokens alone would
            not hold all that decoding needs.
    """

    def __init__(self, model: EncodecModel, id: str, sha256: str) -> None:
        config = model.config
        if config.normalize or config.chunk_length_s is not None:
            raise UserError(
                f"codec {id} normalises loudness or works in chunks, so that tokens alone do not give "
                "the audio back; use facebook/encodec_32khz, or encodec_48khz of the encodec package."
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
        """Load from a folder or a hub id.

        Args:
            source: Folder with config.json and weights, or hub id.
            id: Name to record instead of `source`.

        Raises:
            UserError: Nothing readable is there, or the hub cannot be reached.
        """
        name = str(source)
        folder = find_folder(name, "codec")
        try:
            model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
            if model_type != "encodec":
                kind = f"model_type {model_type}" if model_type else "no model_type"
                raise UserError(
                    f"{name} is no EnCodec as transformers saves it: its config.json has {kind}; choose another --codec."
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
        return clip_by_clip(
            lambda part: self.model.decode(part[None], audio_scales=[None]).audio_values,
            tokens.to(self.model.device),
        )

    def to(self, device: torch.device | str) -> Self:
        """See `Codec.to`."""
        self.model.to(device)
        return self


def _require_modest(folder: Path, name: str) -> None:
    """Refuse settings that describe a codec larger than its weights.

    Raises:
        UserError: They do, or no codec can be built of them.
    """
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
    raise UserError(f"codec {folder} holds none of {', '.join(WEIGHT_FILES)}; save its weights as one file.")

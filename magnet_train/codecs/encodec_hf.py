"""EnCodec as transformers has it: facebook/encodec_32khz, the packaged quickstart codec, or a folder like them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import EncodecModel
from transformers.utils import cached_file, logging

from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

logging.disable_progress_bar()  # a bar for a file that loads in milliseconds is noise

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class EncodecCodec:
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
                f"codec {id} normalises loudness or works in chunks, so that tokens alone do not give the audio "
                "back; use facebook/encodec_32khz, or encodec_48khz for that model of the encodec package."
            )
        self.model = model.eval()
        self.id, self.sha256 = id, sha256
        self.sample_rate = int(config.sampling_rate)
        self.channels = int(config.audio_channels)
        self.frame_rate = float(config.sampling_rate / config.hop_length)
        self.n_q = int(config.num_quantizers)
        self.card = int(config.codebook_size)
        self._bandwidth = config.target_bandwidths[-1]  # kbit/s; the highest uses all codebooks

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
        try:
            if Path(name).is_dir() and _model_type(Path(name)) != "encodec":
                raise UserError(f"{name} is a {_model_type(Path(name))} model, not an EnCodec; choose another --codec.")
            model = EncodecModel.from_pretrained(name, dtype=torch.float32)
            weights = _weights_file(name)
        except UserError:
            raise
        except Exception as error:  # transformers raises many kinds, down to those of safetensors
            raise UserError(explain_loading(name, "codec", error)) from error
        return cls(model, id or name, hashlib.sha256(weights.read_bytes()).hexdigest())

    @property
    def info(self) -> CodecInfo:
        """Who makes these tokens."""
        return CodecInfo(
            self.id, self.sha256, self.sample_rate, self.channels, self.frame_rate, self.n_q, self.card
        )

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """See `Codec.encode`."""
        audio = audio.to(self.model.device)
        codes: Tensor = self.model.encode(audio, bandwidth=self._bandwidth).audio_codes  # [1, B, K, T]
        return codes[0].clone()

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """See `Codec.decode`."""
        audio: Tensor = self.model.decode(tokens.to(self.model.device)[None], audio_scales=[None]).audio_values
        return audio.clone()

    def to(self, device: torch.device | str) -> Self:
        """See `Codec.to`."""
        self.model.to(device)
        return self


def _weights_file(name: str) -> Path:
    for file in WEIGHT_FILES:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            return Path(found)
    raise UserError(f"codec {name} holds none of {', '.join(WEIGHT_FILES)}; choose a folder or hub id that does.")


def _model_type(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text()).get("model_type")


def explain_loading(name: str, what: str, error: Exception) -> str:
    """Say in one sentence why a model could not be loaded, and what to do."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if Path(name).exists():
        return f"{what} {name} cannot be loaded ({reason}); it needs config.json and undamaged weights."
    return (
        f"{what} {name} is neither a folder here nor a model that could be fetched from the hub ({reason}); "
        "check the name and the network, or give a local folder."
    )

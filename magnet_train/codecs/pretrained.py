"""Base class of transformers' codecs: loading from a folder or hub id, padding to whole frames."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from magnet_train.codecs.protocol import Codec
from magnet_train.errors import UserError
from magnet_train.storage.hub import find_folder, load_pretrained, recorded_name, unreadable
from magnet_train.storage.weight_checks import require_finite, require_modest

HIGHEST_RATE = 1_000_000  # Hz
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class Layout(NamedTuple):
    """Audio format and token layout of a codec, read from its configuration."""

    sample_rate: int  # Hz
    channels: int
    hop: int  # samples in a frame
    n_q: int
    card: int


class PretrainedCodec(Codec):
    """A `Codec`: a model of transformers with all its codebooks in use; a smaller `n_q` uses the first of them."""

    model_class: ClassVar[Any]  # transformers is loosely typed
    config_class: ClassVar[Any]

    def __init__(self, model: Any, id: str, sha256: str) -> None:
        self.model = model.eval()
        self.id, self.sha256, self.kind = id, sha256, str(model.config.model_type)
        self.sample_rate, self.channels, self.hop, self.n_q, self.card = self.layout(model.config)
        self.frame_rate = self.sample_rate / self.hop

    @classmethod
    def from_pretrained(cls, source: str | Path, id: str | None = None) -> Self:
        """Load from a folder with config.json and weights, or from a hub id; `id` is recorded instead of `source`.

        Raises:
            UserError: The codec is missing, unreadable or of another kind, or the hub cannot be reached.
        """
        name = id or recorded_name(str(source))
        folder = find_folder(str(source), "codec")
        check, remedy = partial(cls._require_modest, folder, name), "choose another --codec"
        kind = cls.config_class.model_type
        model = load_pretrained(cls.model_class, folder, name, "codec", kind, remedy=remedy, check=check)
        require_finite(model.state_dict(), f"codec {name}")
        codec = cls(model, name, hashlib.sha256(_weights_file(folder).read_bytes()).hexdigest())
        codec._try()
        return codec

    @classmethod
    def _require_modest(cls, folder: Path, name: str) -> None:
        """Refuse settings that describe a codec larger than its weights, or one that cannot be built."""
        config = cls.config_class.from_pretrained(folder)

        def layers() -> int:
            layout = cls.layout(config)
            if min(layout) < 1 or not layout.hop <= layout.sample_rate <= HIGHEST_RATE:
                raise ValueError(layout)
            return cls.layers(config)

        size = _weights_file(folder).stat().st_size
        require_modest(folder, name, "codec", layers, lambda: cls.model_class(config), size)

    @torch.no_grad()
    def _try(self) -> None:
        """Encode and decode two frames as a trial: weights of the right shapes may belong to other strides."""
        try:
            tokens = self._encode(torch.zeros(1, self.channels, 2 * self.hop))
            audio = self._decode(tokens)
            shape = (*tokens.shape, *audio.shape[:2], round(audio.shape[-1] / self.hop))
            if shape != (1, self.n_q, 2, 1, self.channels, 2):
                raise ValueError("its config.json describes other frames")
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise unreadable(self.id, "codec", error) from error

    @staticmethod
    @abstractmethod
    def layout(config: Any) -> Layout:
        """Read the layout off a configuration."""

    @staticmethod
    @abstractmethod
    def layers(config: Any) -> int:
        """Return a lower bound of the layers with weights that a configuration describes."""

    def _encode(self, audio: Tensor) -> Tensor:
        """Encode audio of whole frames, [B, channels, samples], with all codebooks."""
        codes: Tensor = self.model.encode(audio).audio_codes
        return codes

    def _decode(self, tokens: Tensor) -> Tensor:
        """Decode to [B, channels, samples] of about the right length."""
        audio: Tensor = self.model.decode(tokens).audio_values
        return audio

    def _pad(self, audio: Tensor) -> Tensor:
        """Fill the last frame with silence."""
        return F.pad(audio, (0, -audio.shape[-1] % self.hop))

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        audio = self._pad(audio.to(self.model.device))
        return _one_by_one(self._encode, audio)[:, : self.n_q]

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[-1] * self.hop
        audio = _one_by_one(self._decode, tokens.to(self.model.device))[..., :length]
        # Layers of odd strides may end a few samples early; the last sample is repeated there, which does not click.
        return F.pad(audio, (0, length - audio.shape[-1]), mode="replicate")

    def to(self, device: torch.device | str) -> Self:
        self.model.to(device)
        return self


def _one_by_one(call: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Call on each clip by itself on a CPU, where the size of a batch shows in the last bits."""
    size = 1 if batch.device.type == "cpu" else len(batch)
    return torch.cat([call(part) for part in torch.split(batch, size)])


def _weights_file(folder: Path) -> Path:
    """Return the file that transformers reads."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"codec {folder} lacks weights ({' or '.join(WEIGHT_FILES)}); save them as one file.")

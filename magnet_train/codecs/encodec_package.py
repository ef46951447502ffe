"""The 24 kHz mono and 48 kHz stereo models of the `encodec` package behind the codec protocol."""

from __future__ import annotations

import hashlib
import pickle
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from magnet_train.codecs.protocol import Codec, clip_by_clip
from magnet_train.errors import UserError, first_line
from magnet_train.storage.hub import PATIENCE

NAMES = ("encodec_24khz", "encodec_48khz")
ADDRESS = "https://dl.fbaipublicfiles.com/encodec/v0/"
WEIGHTS = {"encodec_24khz": "encodec_24khz-d7cc33bc.th", "encodec_48khz": "encodec_48khz-7e698e3e.th"}
BANDWIDTH_KBPS = {"encodec_24khz": 6.0, "encodec_48khz": 6.0}  # 8 and 4 codebooks


class EncodecPackageCodec(Codec):
    """An `encodec.EncodecModel` used as one chunk without loudness normalisation.

    The 48 kHz model normalises each second of audio and stores the scale beside the tokens; a token model
    has no place for it, so the signal goes through as it is and comes back at its own loudness.

    Args:
        model: The package's model.
        id: One of `NAMES`.
        bandwidth: kbit/s; decides how many codebooks are used.
    """

    def __init__(self, model: Any, id: str, bandwidth: float) -> None:
        self.model = model.eval()
        self.model.set_target_bandwidth(bandwidth)
        self.id = id
        self.sha256 = _hash_of(model)
        self.sample_rate = int(model.sample_rate)
        self.channels = int(model.channels)
        self.frame_rate = self.sample_rate / int(model.encoder.hop_length)
        self.n_q = int(model.quantizer.get_num_quantizers_for_bandwidth(model.frame_rate, bandwidth))
        self.card = int(model.quantizer.bins)

    @classmethod
    def from_name(cls, name: str, repository: Path | None = None) -> Self:
        """Load published weights.

        Args:
            name: One of `NAMES`.
            repository: Folder that holds the package's weight files (`WEIGHTS`); None fetches them once.

        Raises:
            UserError: The weights cannot be had, or are not those of this model.
        """
        from encodec import EncodecModel

        build = {
            "encodec_24khz": EncodecModel.encodec_model_24khz,
            "encodec_48khz": EncodecModel.encodec_model_48khz,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the package's own, about torch's weight_norm
            model = build[name](pretrained=False)
        try:  # not left to the package, which would unpickle whatever the address answers
            model.load_state_dict(_weights(WEIGHTS[name], repository))
        except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            where = f"in {repository}" if repository else f"at {ADDRESS}"
            raise UserError(
                f"the weights of codec {name} are not to be had {where} ({first_line(error)}); check "
                f"the network, or put {WEIGHTS[name]} into {torch.hub.get_dir()}/checkpoints."
            ) from error
        return cls(model, name, BANDWIDTH_KBPS[name])

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """See `Codec.encode`."""
        latent = self.model.encoder(audio.to(self._device))
        codes: Tensor = self.model.quantizer.encode(
            latent, self.model.frame_rate, self.model.bandwidth
        )  # [K, B, T]
        return codes.transpose(0, 1).contiguous()

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """See `Codec.decode`."""
        return clip_by_clip(
            lambda part: self.model.decoder(self.model.quantizer.decode(part.transpose(0, 1))),
            tokens.to(self._device),
        )

    def to(self, device: torch.device | str) -> Self:
        """See `Codec.to`."""
        self.model.to(device)
        return self

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device


def _weights(file: str, repository: Path | None) -> dict[str, Tensor]:
    if repository is None:
        with _impatient():
            return torch.hub.load_state_dict_from_url(
                ADDRESS + file, map_location="cpu", check_hash=True, weights_only=True
            )
    weights: dict[str, Tensor] = torch.load(repository / file, map_location="cpu", weights_only=True)
    return weights


@contextmanager
def _impatient() -> Iterator[None]:
    """Give up on a server that does not answer; torch.hub itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _hash_of(model: Any) -> str:
    """Hash the weights themselves: the package's file names do not tell a user's own weights apart."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

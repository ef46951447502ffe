"""Transformer, text encoder and codec of a model bundle: built, changed by adapters, and collected for saving."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from magnet_train.checkpoints.adapter import merge_adapter, weights_sha256
from magnet_train.checkpoints.audiocraft.names import CODEC_FILE, THEIR_STORE
from magnet_train.checkpoints.bundle import UNSPECIFIED, ModelBundle, load_weights
from magnet_train.checkpoints.load import read_bundle
from magnet_train.codecs import PACKAGED, QUICKSTART, Codec, load_codec, packaged_codec
from magnet_train.decoding import DecodingConfig
from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer
from magnet_train.models.precision import compute_dtype, dtype_name, usable_device
from magnet_train.text import TextEncoder, text_encoder_from_spec


class ModelParts:
    """The parts of a bundle on one device.

    The codec is loaded when first used, and so is a frozen text encoder, whose weights are not the model's.

    Args:
        bundle: Settings and weights.
        device: Where to compute.
        precision: Of the transformer, see `magnet_train.models.precision.compute_dtype`.

    Raises:
        UserError: The weights do not fit the settings, the device is missing, or it cannot compute in this precision.
    """

    def __init__(self, bundle: ModelBundle, device: str, precision: str) -> None:
        self.bundle = bundle
        self.device = usable_device(device)
        self.lm = _build_lm(bundle)
        self.dtype = compute_dtype(precision, self.device, self.lm.dim)
        frozen_t5 = bundle.text.get("kind") == "t5" and bundle.text.get("trainable") is False
        self._text: TextEncoder | None = None if frozen_t5 else self._load_text()
        self._codec: Codec | None = None
        load_weights(self.trained(), bundle.weights, bundle.source)
        self.lm.eval().convert(self.dtype)  # before it moves: fewer bytes on the device
        self.lm.to(self.device)

    @property
    def text(self) -> TextEncoder:
        """The text encoder, see `Magnet.text`."""
        if self._text is None:
            self._text = self._load_text()
        return self._text

    def _load_text(self) -> TextEncoder:
        text = text_encoder_from_spec(self.bundle.text, self.bundle.text_folder)
        needed = self.bundle.lm.get("text_dim")
        if text.dim != needed:
            raise UserError(
                f"{self.bundle.source} expects text states of width {needed}, but text encoder {text.id} gives "
                f"{text.dim}; name the encoder that it was trained with."
            )
        return text.eval().to(self.device)

    @property
    def codec(self) -> Codec:
        """The codec, see `Magnet.codec`."""
        if self._codec is None:
            source, info, folder = self.bundle.source, self.bundle.codec, self.bundle.codec_folder
            if folder is not None and (folder / CODEC_FILE).is_file():
                raise UserError(
                    f"{source} has a codec in audiocraft's own format ({folder / CODEC_FILE}), which this version "
                    "cannot decode; take its tokens (generate_tokens), or decode them with audiocraft."
                )
            if folder is None and info.id.startswith(THEIR_STORE):
                raise UserError(
                    f"{source} names codec {info.id}, which lies in a store of audiocraft's authors; put the release's "
                    f"{CODEC_FILE} beside the weights, or take the tokens alone."
                )
            name = str(folder or info.id)
            codec = load_codec(replace(info, id=name), device=str(self.device))
            remedy = f"put codec {info.id} there, or export the model again"
            info.require_same_tokens(codec.info, "the model", name, remedy)
            self._codec = codec
        return self._codec

    def trained(self) -> nn.ModuleDict:
        """Return the modules whose weights are the model's: a frozen text encoder has its own."""
        parts: dict[str, nn.Module] = {"lm": self.lm}
        return nn.ModuleDict(parts if self._text is None else {**parts, "text": self._text})

    def load_adapter(self, path: str | Path, strength: float) -> None:
        """Add a LoRA adapter, see `Magnet.load_adapter`."""
        adapter = read_bundle(path)
        if not adapter.adapter:
            raise UserError(f"{path} holds a whole model instead of an adapter; load it as the model.")
        if weights_sha256(self.bundle.weights) != adapter.base.get("weights_sha256"):
            warnings.warn(
                f"adapter {path} was trained on {adapter.base.get('source')}, but {self.bundle.source} has other "
                "weights; its effect may differ here.",
                stacklevel=3,
            )
        own = {f"lm.{name}": tensor for name, tensor in self.lm.state_dict().items()}
        merged = merge_adapter(replace(self.bundle, weights=own), adapter, strength)
        self.lm.load_state_dict({name.removeprefix("lm."): tensor for name, tensor in merged.weights.items()})
        self.bundle = replace(
            self.bundle,
            training={**adapter.training, "adapter strength": strength},
            data=adapter.data,
            base=adapter.base,
            licence=self.bundle.licence if adapter.licence == UNSPECIFIED else adapter.licence,
        )

    def collect(self, scratch: Path, decoding: DecodingConfig, licence: str | None) -> ModelBundle:
        """Return the bundle with the weights as they are now and local copies of codec and text encoder.

        Args:
            scratch: Folder for files of the text encoder, until the bundle is written.
            decoding: Settings of the decoder.
            licence: Replaces that of the bundle, unless None.

        Raises:
            UserError: The weights were rounded when the model was loaded.
        """
        if self.dtype != torch.float32:
            raise UserError(
                f"the weights were rounded to {dtype_name(self.dtype)} when the model was loaded; load it with "
                "dtype float32 to save it."
            )
        bundle = self.bundle
        text_folder, name = bundle.text_folder, bundle.text.get("name")
        local = name is not None and name != QUICKSTART and (Path(name).is_dir() or Path(name).is_absolute())
        if text_folder is None and name and (local or (self._text is not None and self._text.trainable)):
            text_folder = scratch
            self.text.save(text_folder)
        base = dict(bundle.base)
        if base and not base.get("hub"):  # a path of this machine is private: its last two parts stay
            base["source"] = "/".join(Path(str(base.get("source"))).parts[-2:])
        weights = {
            tensor_name: _as_stored(tensor.cpu(), bundle.weights.get(tensor_name))
            for tensor_name, tensor in self.trained().state_dict().items()
        }
        return replace(
            bundle,
            weights=weights,
            decoding=decoding.for_codec(self.lm.n_q, self.lm.streams),
            codec_folder=self._codec_folder(),
            text_folder=text_folder,
            licence=licence or bundle.licence,
            base=base,
        )

    def _codec_folder(self) -> Path | None:
        """Return the folder of a codec that is saved with the model; None for one on the hub."""
        folder, name = self.bundle.codec_folder, self.bundle.codec.id
        if folder is None and name in PACKAGED:
            return packaged_codec(name)
        is_local = Path(name).is_dir() or Path(name).is_absolute()
        if folder is None and is_local and not name.startswith(THEIR_STORE):
            _ = self.codec  # raises if the codec is gone or has changed since it made the tokens
            return Path(name)
        return folder


def _as_stored(tensor: Tensor, stored: Tensor | None) -> Tensor:
    """Return `tensor` in the type of the file that it came from, where that is lossless: fp16 in, fp16 out."""
    if stored is None or stored.dtype == tensor.dtype:
        return tensor
    narrow = tensor.to(stored.dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def _build_lm(bundle: ModelBundle) -> MagnetTransformer:
    try:
        lm = MagnetTransformer(**bundle.lm)
    except (TypeError, ValueError, RuntimeError, UserError) as error:
        raise UserError(
            f"{bundle.source} describes a model that cannot be built ({error}); export it again."
        ) from error
    codec = bundle.codec
    if (lm.n_q, lm.card) != (codec.n_q, codec.card):
        raise UserError(
            f"{bundle.source} has a model of {lm.n_q} codebooks of {lm.card} entries but a codec of {codec.n_q} of "
            f"{codec.card}; export it again."
        )
    if lm.streams != codec.streams:
        raise UserError(
            f"{bundle.source} has a model of {lm.streams} stream(s) of tokens but a codec of {codec.streams}; export it "
            "again."
        )
    return lm

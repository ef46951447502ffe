"""A whole `Magnet` of random weights, as fast as a trained one: text encoder and codec included."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import EncodecConfig, EncodecModel, T5Config, T5EncoderModel

from harness.config import BenchmarkConfig
from harness.tones.world import ToneWorld
from magnet_train import Magnet, MagnetTransformer
from magnet_train.checkpoints.bundle import ModelBundle
from magnet_train.codecs import QUICKSTART, load_codec
from magnet_train.decoding import DecodingConfig
from magnet_train.text import T5Text
from magnet_train.text.encoder import Tokenizer


def random_magnet(
    folder: Path, config: BenchmarkConfig, steps: tuple[int, ...], dtype: str, small: bool = False
) -> Magnet:
    """Build a model with a text encoder of the size of T5-base and a codec of that of facebook/encodec_32khz.

    Args:
        folder: Keeps the files of both.
        config: Sizes of the transformer, the longest clip and the device.
        steps: Decoding steps of each codebook.
        dtype: As for `Magnet`.
        small: Take the packaged text encoder and codec instead, with fewer codebook entries.
    """
    if small:
        text = T5Text(QUICKSTART, trainable=True, pretrained=False)
    else:
        text = T5Text(str(write_text_encoder(folder / "text")))
    codec = load_codec(QUICKSTART if small else str(write_codec(folder / "codec"))).info
    torch.manual_seed(0)
    lm = MagnetTransformer(**config.lm_config | {"n_q": codec.n_q, "card": codec.card, "text_dim": text.dim})
    weights = {f"lm.{name}": tensor for name, tensor in lm.state_dict().items()}
    weights |= {f"text.{name}": tensor for name, tensor in text.state_dict().items()}
    decoding = DecodingConfig(decoding_steps=steps)
    seconds = config.frames / codec.frame_rate
    bundle = ModelBundle("random weights", lm.config, text.spec(), codec, decoding, seconds, weights)
    return Magnet(bundle, config.device, dtype)


def captions(count: int) -> list[str]:
    """Return captions whose words the text encoder knows."""
    return [caption.text for caption in ToneWorld().captions(count)]


def write_text_encoder(folder: Path) -> Path:
    """Write an encoder of the size of T5-base, with the tokenizer of the packaged one."""
    torch.manual_seed(0)
    config = T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128)
    T5EncoderModel(config).save_pretrained(folder)
    Tokenizer(QUICKSTART, max_length=256).tokenizer.save_pretrained(folder)
    return folder


def write_codec(folder: Path) -> Path:
    """Write a codec of the size of facebook/encodec_32khz: 4 codebooks of 2,048, 50 frames a second, mono."""
    torch.manual_seed(0)
    config = EncodecConfig(
        sampling_rate=32_000,
        audio_channels=1,
        upsampling_ratios=[8, 5, 4, 4],
        num_filters=64,
        codebook_size=2048,
        target_bandwidths=[2.2],
        use_causal_conv=False,
        use_conv_shortcut=False,
        normalize=False,
    )
    EncodecModel(config).save_pretrained(folder)
    return folder

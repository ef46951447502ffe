"""Real shards, and one real checkpoint, saved by Lightning after three steps with averaged weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    EncodecModel,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    T5EncoderModel,
)

from harness.shard_writer import ShardWriter
from magnet_train.codecs import load_codec, packaged_codec
from magnet_train.decoding import DecodingConfig
from magnet_train.models import MagnetTransformer
from magnet_train.text import T5Text
from magnet_train.text.encoder import Tokenizer, folder_of
from magnet_train.tokens import CodecInfo
from magnet_train.training.module import MagnetModule

STEPS = 3
SECONDS = 0.48  # 24 frames
FRAMES = 24
CODEC = CodecInfo("quickstart", "0" * 64, 8000, 1, 50.0, n_q=4, card=256)  # the packaged one but for its hash


def random_batches(card: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "tokens": torch.randint(card, (2, 4, FRAMES), generator=generator),
            "valid": torch.ones(2, FRAMES, dtype=torch.bool),
            "noise": torch.rand(2, 2 + FRAMES, generator=generator),
            "text": ["a low bell", "a high flute"],
            "key": ["a", "b"],
            "slot": torch.arange(2),
        }
        for _ in range(STEPS)
    ]


@pytest.fixture(scope="session")
def write_clips() -> Callable[..., Path]:
    """Return a function that makes a folder of shards: captioned clips of random tokens, each a frame longer."""

    def write(folder: Path, clips: int = 40, shortest: int = 64, codec: CodecInfo = CODEC) -> Path:
        rng = np.random.default_rng(0)
        with ShardWriter(folder, codec) as writer:
            for index in range(clips):
                tokens = rng.integers(0, 256, (4, shortest + index)).astype(np.int16)
                writer.add(
                    f"clip{index:03d}", tokens, {"text": f"a {['calm', 'fast'][index % 2]} flute on c4"}
                )
        return folder

    return write


@pytest.fixture(scope="session")
def token_shards(write_clips: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty clips, longer than a second."""
    return write_clips(tmp_path_factory.mktemp("token_shards") / "shards")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.ckpt` of a tiny model with the packaged codec and text encoder; its EMA and raw weights differ."""
    path = tmp_path_factory.mktemp("fit") / "last.ckpt"
    torch.manual_seed(0)
    codec = load_codec("quickstart").info
    module = MagnetModule(
        codec=codec,
        lm=_tiny_lm,
        text=T5Text("quickstart", trainable=True, pretrained=False),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        segment_duration=SECONDS,
        warmup_steps=1,
        decoding=DecodingConfig(decoding_steps=(3, 2, 2, 2), max_cfg_coef=3.0),
    )
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EMAWeightAveraging(decay=0.9), _SaveAfter(STEPS, path)],
    )
    trainer.fit(module, DataLoader(random_batches(codec.card), batch_size=None))  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="session")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLAP of random weights as transformers saves one, which hears windows of a second."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clap")
    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "low", "high", "bell", "flute", "piano", "slow"]
    audio = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "window_size": 4,
    }
    text = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 96,
    }
    torch.manual_seed(0)
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=12)).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16, max_length_s=1, truncation="rand_trunc", sampling_rate=48_000
    ).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def ast_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audio spectrogram transformer of random weights and 6 classes, which hears windows of a second."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    folder = tmp_path_factory.mktemp("ast")
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=6,
        max_length=100,
        num_mel_bins=32,
        initializer_range=0.5,  # else all sounds alike would be classified the same
    )
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=100, num_mel_bins=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def musicgen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random MusicGen of the packaged codec, as transformers saves it."""
    folder = tmp_path_factory.mktemp("musicgen")
    _write_musicgen(folder)
    return folder


@pytest.fixture(scope="session")
def write_musicgen() -> Callable[..., None]:
    """Return a function that writes such a folder with other settings of the decoder."""
    return _write_musicgen


def _write_musicgen(folder: Path, **decoder: Any) -> None:
    """Write a random MusicGen; `decoder` changes settings of its decoder."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 256,
        "num_codebooks": 4,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pad_token_id": 256,
        "bos_token_id": 256,
    }
    model = MusicgenForConditionalGeneration(
        text_encoder=T5EncoderModel(AutoConfig.from_pretrained(folder_of("quickstart"))),
        audio_encoder=EncodecModel.from_pretrained(packaged_codec()),
        decoder=MusicgenForCausalLM(MusicgenDecoderConfig(**settings | decoder)),
    )
    for parameter in [*model.decoder.parameters(), *model.enc_to_dec_proj.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)  # else every token would be as probable as any other
    model.save_pretrained(folder)
    Tokenizer("quickstart", max_length=256).tokenizer.save_pretrained(folder)


@pytest.fixture
def change_checkpoint(checkpoint: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """Return a function that writes a copy of the checkpoint after `change(content)`."""

    def write(change: Callable[[dict[str, Any]], None]) -> Path:
        content = torch.load(checkpoint, weights_only=True)
        change(content)
        torch.save(content, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return write


class _SaveAfter(pl.Callback):
    """Saves in the middle of `fit`, where the averaged and the raw weights are both at hand."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def _tiny_lm(n_q: int, card: int, text_dim: int) -> MagnetTransformer:
    return MagnetTransformer(n_q, card, text_dim, dim=16, num_heads=2, num_layers=1)

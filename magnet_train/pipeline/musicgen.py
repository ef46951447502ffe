"""MusicGen as a rescorer: an autoregressive model gives the probabilities of MAGNeT's tokens.

Shapes: B clips, K codebooks, T frames, S text positions. Column c of MusicGen's input holds frame c - 1 - k of codebook
k (the delay pattern), or the special token without such a frame.

Source: arXiv 2401.04577, section 3.4; MusicGen, arXiv 2306.05284, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from transformers import MusicgenForConditionalGeneration

from magnet_train.decoding import Rescorer
from magnet_train.errors import UserError
from magnet_train.storage.hub import find_folder, load_pretrained
from magnet_train.text.encoder import Tokenizer
from magnet_train.tokens import CodecInfo

MUSICGEN = "facebook/musicgen-small"
MAX_TEXT = 256  # tokens of a caption


class RescoringModel(Protocol):
    """The contract of a `rescorer` of `Magnet.generate`."""

    def require_same_tokens(self, codec: CodecInfo) -> None:
        """Raise `UserError` if the model has other tokens than `codec`."""

    def for_texts(self, texts: Sequence[str | None]) -> Rescorer:
        """Return the rescorer of B clips about these texts."""


class MusicgenRescorer:
    """MusicGen of transformers, without its codec; `name` is its path or hub id, for messages.

    Raises:
        UserError: The model is stereo, or its special token has another id than in all MusicGens.
    """

    def __init__(self, model: MusicgenForConditionalGeneration, tokenizer: Tokenizer, name: str) -> None:
        config, self.name, self.tokenizer = model.config, name, tokenizer
        self._text_encoder: Any = model.text_encoder.eval()  # transformers is loosely typed
        self._projection: Any = getattr(model, "enc_to_dec_proj", torch.nn.Identity())
        self._decoder: Any = model.decoder.eval()
        self.n_q = int(config.decoder.num_codebooks)
        self.card = int(config.decoder.vocab_size)
        self.sample_rate = int(config.audio_encoder.sampling_rate)
        self.frame_rate = float(config.audio_encoder.sampling_rate / config.audio_encoder.hop_length)
        if config.decoder.audio_channels != 1:
            raise UserError(
                f"rescorer {name} is a stereo model with two streams of tokens, unlike MAGNeT; use {MUSICGEN}."
            )
        if config.decoder.pad_token_id != self.card:
            raise UserError(
                f"rescorer {name} has pad_token_id {config.decoder.pad_token_id} where MusicGen has the first id "
                f"after its {self.card} codes; correct its config.json."
            )

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | Path = MUSICGEN, device: str | torch.device = "cpu"
    ) -> Self:
        """Load a MusicGen in transformers' format from a folder or hub id, to the device of the MAGNeT.

        Raises:
            UserError: The model is missing or cannot be read.
        """
        name = str(path_or_hub_id)
        folder = find_folder(name, "rescorer")
        kind, remedy = MusicgenForConditionalGeneration, f"use {MUSICGEN} or a folder of the same kind"
        its_codec = "audio_encoder."
        model = load_pretrained(kind, folder, name, "rescorer", "musicgen", remedy=remedy, optional=its_codec)
        del model.audio_encoder
        return cls(model.to(device), Tokenizer(str(folder), MAX_TEXT), name)

    def require_same_tokens(self, codec: CodecInfo) -> None:
        """Compare sizes and rates with those of a MAGNeT's codec; the weights of the two codecs are not compared.

        Raises:
            UserError: The number or size of the codebooks, the sample rate or the frame rate differ.
        """
        for name in ("n_q", "card", "sample_rate", "frame_rate"):
            mine, theirs = getattr(self, name), getattr(codec, name)
            if mine != theirs:
                raise UserError(
                    f"rescorer {self.name} has {name} {mine:g} but codec {codec.id} of the model has {theirs:g}; use "
                    "a MusicGen that was trained on the same codec."
                )

    @torch.no_grad()
    def for_texts(self, texts: Sequence[str | None]) -> Rescorer:
        """Return the rescorer of B clips about these texts, which are read once for the whole generation.

        An empty text is MusicGen's null condition: states of zero.
        """
        ids, mask = self.tokenizer(texts)
        device = self._decoder.device
        ids, mask = ids.to(device), mask.to(device)
        readable = mask | ~mask.any(dim=1, keepdim=True)  # a row without any key could be NaN
        states = self._text_encoder(input_ids=ids, attention_mask=readable.long()).last_hidden_state
        # Zeros contribute nothing to attention, since MusicGen's values have no bias.
        states = self._projection(states) * mask[..., None]
        return partial(self._probabilities, states, readable.long())

    @torch.no_grad()
    def _probabilities(self, text: Tensor, text_mask: Tensor, tokens: Tensor, stage: int) -> Tensor:
        """Return probabilities float32 [B, T] in one pass over all frames, each given the tokens before it.

        `text` is float [B, S, width]. Codebooks that are still masked are MusicGen's special token, which has the same
        number as the mask id.
        """
        states = self._decoder.model(
            input_ids=delayed(tokens, self.card, tokens.shape[-1] + stage).flatten(0, 1),
            encoder_hidden_states=text,
            encoder_attention_mask=text_mask,
            use_cache=False,
        ).last_hidden_state
        # Column c predicts the next one, which holds frame c - k of this codebook.
        logits = self._decoder.lm_heads[stage](states[:, stage:]).float()  # [B, T, card]
        own = logits.gather(-1, tokens[:, stage, :, None])[..., 0]
        probs: Tensor = (own - logits.logsumexp(dim=-1)).exp()
        return probs


def delayed(tokens: Tensor, special: int, columns: int) -> Tensor:
    """Arrange tokens [B, K, T] in the delay pattern, int64 [B, K, columns], with `special` where there is no frame."""
    batch, n_q, num_frames = tokens.shape
    pattern = tokens.new_full((batch, n_q, num_frames + n_q), special)
    for codebook in range(n_q):
        pattern[:, codebook, 1 + codebook : 1 + codebook + num_frames] = tokens[:, codebook]
    return pattern[..., :columns]

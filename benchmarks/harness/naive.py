"""A naive MAGNeT for comparison: the same weights and results without any optimization.

Every call computes all K heads at every frame, adds a dense mask that each layer repeats for the batch,
projects the text again and sorts every distribution. Written from a description of the usual pattern.

Shapes: B clips, K codebooks, T frames, S text positions, D = dim, H heads, L = span_len frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magnet_train.decoding import DecodingConfig
from magnet_train.decoding.sampling import MIN_TEMPERATURE
from magnet_train.models.attention import Projections
from magnet_train.models.positions import sinusoidal_positions
from magnet_train.models.transformer import FEED_FORWARD_SCALE, NORM_EPS

IGNORED = -1  # target that cross-entropy skips
SETTLED = -1e4

Draw = Callable[[Tensor], Tensor]  # probabilities of the nucleus [B, T, card] -> tokens [B, T]


class NaiveAttention(Projections):
    """Attention with a dense additive mask [1, H, T, T], repeated for the batch."""

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        q = self._heads(self.q_proj(x))
        k, v = self._heads(self.k_proj(memory)), self._heads(self.v_proj(memory))
        if mask is not None:
            mask = mask.repeat(len(x), 1, 1, 1)[:, :, : q.shape[2], : k.shape[2]]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


class NaiveLayer(nn.Module):
    """Pre-norm layer; clips without a text attend to zeros."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(dim, eps=NORM_EPS)
        self.self_attention = NaiveAttention(dim, num_heads)
        self.norm_cross = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attention = NaiveAttention(dim, num_heads)
        self.norm_feed_forward = nn.LayerNorm(dim, eps=NORM_EPS)
        self.linear_in = nn.Linear(dim, FEED_FORWARD_SCALE * dim, bias=False)
        self.linear_out = nn.Linear(FEED_FORWARD_SCALE * dim, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None, memory: Tensor) -> Tensor:
        h = self.norm_self(x)
        x = x + self.self_attention(h, h, mask)
        x = x + self.cross_attention(self.norm_cross(x), memory, None)
        return x + self.linear_out(F.gelu(self.linear_in(self.norm_feed_forward(x))))  # type: ignore[no-any-return]


class NaiveTransformer(nn.Module):
    """The model of `MagnetTransformer(**config)`, for clips of up to `num_frames`; loads its state dict."""

    mask: Tensor

    def __init__(self, config: dict[str, Any], num_frames: int) -> None:
        super().__init__()
        n_q, card, dim, num_heads = (config[name] for name in ("n_q", "card", "dim", "num_heads"))
        self.n_q, self.card, self.dim = n_q, card, dim
        self.embeddings = nn.ModuleList(nn.Embedding(card + 1, dim) for _ in range(n_q))
        self.text_proj = nn.Linear(config["text_dim"], dim)
        self.layers = nn.ModuleList(NaiveLayer(dim, num_heads) for _ in range(config["num_layers"]))
        self.out_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.heads = nn.Parameter(torch.empty(n_q, card, dim))
        frames = torch.arange(math.ceil(num_frames / 8) * 8)
        far = (frames[:, None] - frames).abs() > config["subcodes_context"]
        mask = torch.zeros(far.shape).masked_fill(far, float("-inf"))
        self.register_buffer("mask", mask.repeat(1, num_heads, 1, 1), persistent=False)

    def forward(self, tokens: Tensor, stage: int, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return logits of all codebooks, float [B, K, T, card]."""
        x: Tensor = sum(emb(tokens[:, k]) for k, emb in enumerate(self.embeddings))
        x = x + sinusoidal_positions(x.shape[1], self.dim, x.device).to(x.dtype)
        memory = self.text_proj(text) * text_mask[..., None].to(text.dtype)
        mask = self.mask.to(x.dtype) if stage > 0 else None
        for layer in self.layers:
            x = layer(x, mask, memory)
        x = self.out_norm(x)
        return torch.stack([F.linear(x, head) for head in self.heads], dim=1)


def naive_loss(logits: Tensor, tokens: Tensor, learn: Tensor, stage: int) -> Tensor:
    """Mean cross-entropy of a stage from logits of all codebooks.

    Args:
        logits: float [B, K, T, card]. They are copied as a codebook pattern requires, although the parallel
            pattern changes nothing.
        tokens: int64 [B, K, T].
        learn: bool [B, T], masked and not padding.
        stage: k.
    """
    batch, n_q, num_frames, card = logits.shape
    logits = logits.permute(0, 3, 1, 2)  # [B, card, K, T]
    logits = torch.cat([logits, torch.full_like(logits[..., :1], float("nan"))], dim=-1)
    codebooks, frames = (torch.arange(size, device=logits.device) for size in (n_q, num_frames))
    index = frames + (num_frames + 1) * codebooks[:, None]
    logits = logits.reshape(batch, card, -1)[..., index.flatten()].view(batch, card, n_q, num_frames)
    logits = logits.permute(0, 2, 3, 1)  # [B, K, T, card]
    targets = tokens[:, stage].masked_fill(~learn, IGNORED)
    return F.cross_entropy(
        logits[:, stage].contiguous().view(-1, card).float(), targets.flatten(), ignore_index=IGNORED
    )


def draw_multinomial(nucleus: Tensor) -> Tensor:
    """Draw from the nucleus by `torch.multinomial`."""
    return torch.multinomial(nucleus.flatten(0, 1), 1).view(nucleus.shape[:2])


def naive_choose(
    both: Tensor, stage: int, cfg_coef: float, temperature: float, top_p: float, draw: Draw
) -> tuple[Tensor, Tensor]:
    """Guide, sort and sample at every frame.

    Args:
        both: float [2B, K, T, card], logits with and without the text.
        stage: k.
        cfg_coef: Guidance scale.
        temperature: Of this step.
        top_p: Above 0.
        draw: Draws tokens.

    Returns:
        Tokens int64 [B, T] and their probabilities before `top_p`, float [B, T].
    """
    conditional, null = both[:, stage].float().chunk(2)
    logits = null + (conditional - null) * cfg_coef
    probs = torch.softmax(logits / max(temperature, MIN_TEMPERATURE), dim=-1)
    ranked, index = torch.sort(probs, dim=-1, descending=True, stable=True)
    ranked = ranked * (ranked.cumsum(dim=-1) - ranked <= top_p)
    nucleus = torch.zeros_like(probs).scatter(-1, index, ranked / ranked.sum(dim=-1, keepdim=True))
    tokens = draw(nucleus)
    return tokens, probs.gather(-1, tokens[..., None])[..., 0]


@torch.inference_mode()
def naive_generate(
    model: nn.Module,
    text: Tensor,
    text_mask: Tensor,
    shape: tuple[int, int, int],
    decoding: DecodingConfig,
    span_len: int,
    draw: Draw = draw_multinomial,
    after_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Generate tokens int64 [B, K, T] with guidance, top-p, non-overlapping spans and "max" scores, without a prompt.

    Args:
        model: A `NaiveTransformer`, compiled or not.
        text: float [B, S, text_dim].
        text_mask: bool [B, S].
        shape: (B, K, T); T is a multiple of L.
        decoding: Steps, temperature, top_p and guidance.
        span_len: L.
        draw: Draws tokens.
        after_step: Called after each step.
    """
    batch, _, num_frames = shape
    card, device = int(model.card), text.device  # type: ignore[arg-type]
    text = torch.cat([text, torch.zeros_like(text)])
    text_mask = torch.cat([text_mask, torch.zeros_like(text_mask)])
    tokens = torch.full(shape, card, device=device)
    for stage, num_steps in enumerate(decoding.decoding_steps):
        scores = torch.zeros(batch, num_frames // span_len, device=device)
        for index, progress in enumerate(torch.linspace(0, 1, num_steps, device=device)):
            rate = torch.cos(progress * (math.pi * 0.5))
            count = max(int((rate * scores.shape[1]).item()), 1)
            chunks = torch.zeros_like(scores, dtype=torch.bool)
            chunks.scatter_(1, scores.sort(dim=-1, descending=True, stable=True).indices[:, :count], True)
            chosen = chunks.repeat_interleave(span_len, dim=-1)
            tokens[:, stage] = tokens[:, stage].masked_fill(chosen, card)
            cfg_coef = (rate * decoding.max_cfg_coef + (1 - rate) * decoding.min_cfg_coef).item()
            temperature = decoding.temperature * (num_steps - 1 - index) / num_steps
            both = model(torch.cat([tokens, tokens]), stage, text, text_mask)
            sampled, probs = naive_choose(both, stage, cfg_coef, temperature, decoding.top_p, draw)
            tokens[:, stage] = torch.where(tokens[:, stage] == card, sampled, tokens[:, stage])
            scores = 1 - probs.view(batch, -1, span_len).amax(dim=-1)
            scores = scores.masked_fill(~chunks, SETTLED)
            after_step()
    return tokens

"""The MAGNeT transformer: layer and model; attention is in `attention.py`.

Shapes: B clips, R of them with a text, K codebooks, T frames, M queried frames, S text positions, D = dim.

Sources: arXiv 2401.04577 (MAGNeT), section 3; arXiv 2306.05284 (MusicGen), for the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magnet_train.errors import UserError, first_line
from magnet_train.masking import at_frames
from magnet_train.models.attention import (
    CrossAttention,
    SelfAttention,
    TextMemory,
    TextStates,
    Window,
    window_of,
)
from magnet_train.models.positions import POSITIONS, Positions, rotation_of, sinusoidal_positions

FEED_FORWARD_SCALE = 4
NORM_EPS = 1e-5
MOST_GRAPHS = 32  # of compiled layers
LEFT_OUT = {"streams": 1, "positions": "sinusoidal"}  # arguments that models from before do not have
SPAN_SECONDS = 0.06  # best of 20 to 200 ms in the paper
CONTEXT_SECONDS = 0.1


class Layer(nn.Module):
    """Pre-norm layer: self-attention, cross-attention to the text, feed-forward."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(dim, eps=NORM_EPS)
        self.self_attention = SelfAttention(dim, num_heads)
        self.norm_cross = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attention = CrossAttention(dim, num_heads)
        self.norm_feed_forward = nn.LayerNorm(dim, eps=NORM_EPS)
        self.linear_in = nn.Linear(dim, FEED_FORWARD_SCALE * dim, bias=False)
        self.linear_out = nn.Linear(FEED_FORWARD_SCALE * dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        window: Window | None,
        text: TextStates | TextMemory | None,
        query_frames: Tensor | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """Return [B, T, D], or [B, M, D] of `query_frames` int64 [B, M]; the first R clips attend to `text`.

        `rotation` is that of rotary positions, complex64 [T, D/2H].
        """
        x = x + self.self_attention(self.norm_self(x), window, rotation)  # [B, T, D]
        if query_frames is not None:
            x = at_frames(x, query_frames)  # [B, M, D]
        if text is not None:
            # Clips without a text would add exactly zero: their values are zero and no layer has a bias.
            with_text, without = x[: len(text[0])], x[len(text[0]) :]  # [R, T, D], [B - R, T, D]
            with_text = with_text + self.cross_attention(self.norm_cross(with_text), text)
            x = torch.cat([with_text, without]) if len(without) else with_text
        return x + self.linear_out(F.gelu(self.linear_in(self.norm_feed_forward(x))))  # type: ignore[no-any-return]


class MagnetTransformer(nn.Module):
    """Bidirectional transformer that predicts the masked tokens of one codebook, given a text.

    Args:
        n_q: K, number of codebooks.
        card: Entries in each codebook; `card` itself is the mask id.
        text_dim: Width of the text encoder's states.
        dim: Width of the model; even.
        num_heads: Attention heads; divides `dim`.
        num_layers: Transformer layers.
        span_len: Frames in a masked span that the model is trained for; None: 60 ms at the codec's frame rate, 3 frames
            without `set_codec`.
        subcodes_context: Frames each side that codebooks above the first attend to; -1 for all. None: 100 ms, 5 frames
            without `set_codec`.
        text_key_mask: Hide the padding behind a text, so that a clip does not depend on the other texts of its
            batch. False keeps padding as keys with zero value, as the released weights were trained.
        streams: Codebooks that attend to all frames, the first ones: 1, or 2 of a codec with streams for left and right.
        positions: "sinusoidal", from the start of the clip, as in the paper; "rotary", relative to each other, for
            training on crops that begin anywhere in a bar (needs an even `dim / num_heads`).

    Raises:
        UserError: A size is out of range, or two do not fit together.

    Source: arXiv 2401.04577, section 3.
    """

    def __init__(
        self,
        n_q: int,
        card: int,
        text_dim: int = 768,
        dim: int = 1024,
        num_heads: int = 16,
        num_layers: int = 24,
        span_len: int | None = None,
        subcodes_context: int | None = None,
        text_key_mask: bool = True,
        streams: int = 1,
        positions: Positions = "sinusoidal",
    ) -> None:
        super().__init__()
        if num_heads < 1 or num_layers < 1:
            raise UserError(f"model.lm.num_heads {num_heads} and num_layers {num_layers} must be at least 1.")
        if dim % num_heads or dim % 2 or dim < 4:
            raise UserError(
                f"model.lm.dim {dim} must be even, at least 4 and a multiple of num_heads {num_heads}."
            )
        if streams not in (1, 2) or n_q % streams:
            raise UserError(f"model.lm.streams {streams} must be 1, or 2 with an even number of codebooks.")
        if positions not in POSITIONS:
            raise UserError(f"model.lm.positions '{positions}' must be one of {', '.join(POSITIONS)}.")
        if positions == "rotary" and dim // num_heads % 2:
            raise UserError(
                f"model.lm.positions rotary needs heads of even width, not {dim // num_heads} (model.lm.dim {dim} / "
                f"num_heads {num_heads})."
            )
        self.n_q, self.card, self.dim, self.text_key_mask = n_q, card, dim, text_key_mask
        self.positions = positions
        self._sizes = {"n_q": n_q, "card": card, "text_dim": text_dim, "dim": dim}
        self._sizes |= {"num_heads": num_heads, "num_layers": num_layers}
        self._span_len, self._subcodes_context = span_len, subcodes_context
        self.set_codec(50.0, streams)
        if self.span_len < 1 or self.subcodes_context < -1:
            raise UserError(
                f"model.lm.span_len {span_len} must be at least 1 and subcodes_context {subcodes_context} at least -1."
            )
        self.embeddings = nn.ModuleList(nn.Embedding(card + 1, dim) for _ in range(n_q))
        self.text_proj = nn.Linear(text_dim, dim)
        self.layers = nn.ModuleList(Layer(dim, num_heads) for _ in range(num_layers))
        self.out_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        # One parameter for all K heads: a head that a step does not use gets a zero gradient instead of none, as
        # in the reference's optimizer and as DDP needs.
        self.heads = nn.Parameter(torch.empty(n_q, card, dim))
        self._init_weights()

    def set_codec(self, frame_rate: float, streams: int) -> None:
        """Set what follows from the codec: the codebooks that attend to all frames, and lengths that were not given.

        Args:
            frame_rate: Token frames a second (Hz).
            streams: As in the class.
        """
        self.streams = streams
        self.set_lengths(_frames(SPAN_SECONDS, frame_rate), _frames(CONTEXT_SECONDS, frame_rate))

    def set_lengths(self, span_len: int, subcodes_context: int) -> None:
        """Set the lengths that were not given when the model was built (frames)."""
        self.span_len = span_len if self._span_len is None else self._span_len
        self.subcodes_context = subcodes_context if self._subcodes_context is None else self._subcodes_context

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this model; those of `LEFT_OUT` only where they differ."""
        lengths = {"span_len": self.span_len, "subcodes_context": self.subcodes_context}
        newer = {"streams": self.streams, "positions": self.positions}
        newer = {name: value for name, value in newer.items() if value != LEFT_OUT[name]}
        return {**self._sizes, **lengths, "text_key_mask": self.text_key_mask, **newer}

    @property
    def mask_id(self) -> int:
        """The id of a masked token."""
        return self.card

    def forward(
        self, tokens: Tensor, stage: int, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Predict codebook `stage` at every frame.

        Args:
            tokens: int64 [B, K, T], ids 0..card (card = masked).
            stage: k, 0..K-1.
            text: float [B, S, text_dim], raw states of the text encoder; None is the null condition.
            text_mask: bool or int [B, S], true where `text` holds a token; a row of false is the null condition.
                None: all of `text` counts.

        Returns:
            Logits float [B, T, card].

        Raises:
            ValueError: `tokens` or `stage` do not fit the model.
        """
        return self.head(self.hidden(tokens, stage, text, text_mask), stage)

    def head(self, hidden: Tensor, stage: int) -> Tensor:
        """Return logits [..., card] of codebook `stage` for hidden states [..., D]."""
        return F.linear(hidden.to(self.heads.dtype), self.heads[stage])

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compile the layers in place; they share a graph for each combination of optional arguments.

        Varying sizes (clips of a codebook, tokens of a text) are symbolic from the start, so that no step recompiles.

        Raises:
            UserError: torch cannot compile on this machine.
        """
        try:
            torch.compile(torch.neg, backend=backend)(self.heads[:1, :1, :2].detach())
        except Exception as error:  # no compiler, an old GPU, a folder that cannot be written: no common type
            cause = getattr(error, "inner_exception", error)
            raise UserError(
                f"torch cannot compile here ({first_line(cause)[:120]}); install a C++ compiler such as g++, or go without."
            ) from error
        # Restricted or not, with and without text, one clip or several: more variants than torch allows by default.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
        for layer in self.layers:
            layer.compile(backend=backend, dynamic=True)

    def convert(self, dtype: torch.dtype) -> None:
        """Convert the weights for inference, all but the output norm and the heads.

        These stay as they are, float32: guidance multiplies the difference of two predictions, and with it their rounding.
        """
        for part in (self.embeddings, self.text_proj, self.layers):
            part.to(dtype)

    def hidden(
        self,
        tokens: Tensor,
        stage: int,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the hidden states [B, T, D] that `head` reads.

        The arguments are those of `forward`, and the `rows` (clips) that have a text. By default these are read from a
        `text_mask` on the CPU; from one on a GPU that would synchronise, so all clips count.
        """
        if text is None:
            return self.states(tokens, stage)
        if rows is None:
            rows = _rows_with_text(text_mask, len(tokens))
        rows = rows or [0]  # so that every weight gets a gradient: DDP waits for all of them
        if len(rows) == len(tokens):
            return self.states(tokens, stage, [self.read_text(text, text_mask)] * len(self.layers))
        order = torch.tensor([*rows, *sorted(set(range(len(tokens))) - set(rows))])
        order = order.to(tokens.device, non_blocking=True)
        first = order[: len(rows)]
        memory = self.read_text(text[first], None if text_mask is None else text_mask.to(text.device)[first])
        states = self.states(tokens[order], stage, [memory] * len(self.layers))
        return states[order.argsort()]

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the sum of the codebooks' embeddings, [B, T, D], of tokens int64 [B, K, T]."""
        x: Tensor = sum(emb(tokens[:, k]) for k, emb in enumerate(self.embeddings))  # [B, T, D]
        return x

    def states(
        self,
        tokens: Tensor,
        stage: int,
        texts: Sequence[TextStates | TextMemory] | None = None,
        query_frames: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states that `head` reads, [B, T, D], or [B, M, D] of `query_frames`.

        Args:
            tokens: int64 [B, K, T]; the clips that have a text come first.
            stage: k.
            texts: For each layer the text of the first R clips; the others, or all when None, have none.
            query_frames: int64 [B, M]; the last layer computes only these frames after self-attention.
        """
        if tokens.dim() != 3 or tokens.shape[1] != self.n_q:
            raise ValueError(f"tokens of shape {list(tokens.shape)} should be [B, {self.n_q}, T].")
        if not 0 <= stage < self.n_q:
            raise ValueError(f"stage {stage} should lie in 0..{self.n_q - 1}.")
        num_frames = tokens.shape[-1]
        x = self.embed(tokens)  # [B, T, D]
        rotation = None
        if self.positions == "rotary":
            rotation = rotation_of(num_frames, self.dim // self._sizes["num_heads"], x.device)
        else:
            x = x + sinusoidal_positions(num_frames, self.dim, x.device).to(x.dtype)
        restricted = stage >= self.streams and self.subcodes_context >= 0
        window = window_of(num_frames, self.subcodes_context, x.device) if restricted else None
        for depth, layer in enumerate(self.layers):
            text = None if texts is None else texts[depth]
            queried = query_frames if depth == len(self.layers) - 1 else None
            x = layer(x, window, text, queried, rotation)
        return self.out_norm(x.to(self.out_norm.weight.dtype))  # type: ignore[no-any-return]

    def read_text(
        self, text: Tensor, text_mask: Tensor | None = None, hide_padding: bool = False
    ) -> TextStates:
        """Project text-encoder states [R, S, text_dim] to the width of the model; `text_mask` as in `forward`.

        `hide_padding` hides padding whatever `text_key_mask` is, as if each text were read alone.
        """
        states = self.text_proj(text.to(self.text_proj.weight.dtype))  # [R, S, D]
        if text_mask is None:
            return TextStates(states, None)
        present = text_mask.to(states.device, torch.bool)
        states = states * present[..., None].to(states.dtype)
        if not (self.text_key_mask or hide_padding):
            return TextStates(states, None)
        # A row without a text may attend to all positions: its values are zero, and softmax over no key is NaN.
        readable = present | ~present.any(dim=-1, keepdim=True)
        return TextStates(states, readable[:, None, None, :])

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Draw from truncated Gaussians of std 1/sqrt(fan in), smaller in deeper layers as in the reference."""
        for emb in self.embeddings:
            _truncated_normal(emb.weight, self.dim**-0.5)  # type: ignore[arg-type]
        _truncated_normal(self.heads, self.dim**-0.5)
        for depth, layer in enumerate(self.layers, start=1):
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    _truncated_normal(module.weight, (module.in_features * 2 * depth) ** -0.5)


def _frames(seconds: float, frame_rate: float) -> int:
    return max(1, round(seconds * frame_rate))


def _rows_with_text(text_mask: Tensor | None, batch: int) -> list[int]:
    if text_mask is None or text_mask.device.type != "cpu":
        return list(range(batch))
    return text_mask.any(dim=-1).nonzero()[:, 0].tolist()


def _truncated_normal(weight: Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """Return the number of parameters of `module`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)

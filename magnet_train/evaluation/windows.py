"""Cut clips of any length into the windows that a model hears, and put many windows through it at once.

Shapes: blocks float32 [1, samples] or [samples]; window float32 [samples], at most the model's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from magnet_train.errors import UserError
from magnet_train.evaluation.frechet import Floats


def cut(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Cut mono audio into windows one after another.

    What is left at the end is a window of its own if it is half as long as one, or all there is; otherwise it
    is left out: the models fill up short windows, and a breath would count as much as ten seconds.

    Args:
        blocks: Audio in order, float32 [1, samples] or [samples].
        size: Samples in a window.
    """
    held = torch.empty(0)
    first = True
    for block in blocks:
        held = torch.cat([held, block.reshape(-1)])
        while len(held) >= size:
            yield held[:size]
            held, first = held[size:], False
    if len(held) and (first or 2 * len(held) >= size):
        yield held


def as_noise(blocks: Iterable[Tensor], name: str, seed: int) -> Iterator[Tensor]:
    """Replace audio by white noise as long and, block by block, as loud (root mean square).

    Args:
        blocks: float32 [1, samples] or [samples].
        name: Of the clip: the noise depends on it and on the seed, not on which other clips there are.
        seed: Of the noise.
    """
    digest = hashlib.blake2b(f"{seed} {name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    for block in blocks:
        noise = torch.from_numpy(rng.standard_normal(block.shape[-1], dtype=np.float32))
        yield noise * block.square().mean().sqrt()


def through_windows(
    clips: Sequence[Iterable[Tensor]],
    model: Callable[[Sequence[Tensor]], Floats],
    size: int,
    batch_size: int,
    clip_done: Callable[[], None] = lambda: None,
) -> list[Floats | UserError]:
    """Put the windows of clips through a model.

    Args:
        clips: Of each clip its audio in blocks, read when its turn comes.
        model: Takes windows, gives float64 [windows, D].
        size: Samples in a window.
        batch_size: Windows for the model at once, also of several clips.
        clip_done: Called after each clip was read.

    Returns:
        Of each clip float64 [W, D], or the UserError that reading it raised.
    """
    rows: list[list[Floats]] = [[] for _ in clips]
    errors: dict[int, UserError] = {}
    waiting: list[tuple[int, Tensor]] = []

    def empty() -> None:
        if waiting:
            results = model([window for _, window in waiting])
            for (clip, _), row in zip(waiting, results, strict=True):
                rows[clip].append(row)
            waiting.clear()

    for index, blocks in enumerate(clips):
        try:
            for window in cut(blocks, size):
                waiting.append((index, window))
                if len(waiting) == batch_size:
                    empty()
        except UserError as error:  # windows of it that went through already count no more
            errors[index] = error
            waiting[:] = [(clip, window) for clip, window in waiting if clip != index]
        clip_done()
    empty()
    return [errors[index] if index in errors else np.stack(found) for index, found in enumerate(rows)]

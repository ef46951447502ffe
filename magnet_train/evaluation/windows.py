"""Cut clips of any length into a model's windows, and run the model on many windows at once.

Shapes: blocks float32 [1, samples] or [samples]; window float32 [samples], at most the model's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from magnet_train.errors import UserError
from magnet_train.evaluation.measures import Floats


def cut(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Cut mono audio into consecutive windows.

    A remainder at the end is a window of its own if it is at least half as long as one, or all there is. A shorter
    one is dropped: the models fill up short windows, so a fraction of a second would count as much as ten seconds.

    Args:
        blocks: Audio in order, float32 [1, samples] or [samples].
        size: Samples in a window.
    """
    rest = torch.empty(0)
    first = True
    for block in blocks:
        rest = torch.cat([rest, block.reshape(-1)])
        while len(rest) >= size:
            yield rest[:size]
            rest, first = rest[size:], False
    if len(rest) and (first or 2 * len(rest) >= size):
        yield rest


def as_noise(blocks: Iterable[Tensor], name: str, seed: int) -> Iterator[Tensor]:
    """Replace audio by white noise of the same length and, block by block, the same root mean square.

    Args:
        blocks: float32 [1, samples] or [samples].
        name: Of the clip: the noise depends on it and on the seed, not on the other clips.
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
    """Run a model on the windows of clips.

    Args:
        clips: The audio of each in blocks, read when its turn comes.
        model: Takes windows, gives float64 [windows, D].
        size: Samples in a window.
        batch_size: Windows per call of the model, also of several clips.
        clip_done: Called after each clip was read.

    Returns:
        Of each clip float64 [W, D], or the UserError that reading it raised.
    """
    rows: list[list[Floats]] = [[] for _ in clips]
    errors: dict[int, UserError] = {}
    waiting: list[tuple[int, Tensor]] = []

    def flush() -> None:
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
                    flush()
        except UserError as error:  # its windows that the model has seen already are dropped
            errors[index] = error
            waiting[:] = [(clip, window) for clip, window in waiting if clip != index]
        clip_done()
    flush()
    return [errors[index] if index in errors else np.stack(found) for index, found in enumerate(rows)]

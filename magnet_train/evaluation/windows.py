"""Clips cut into the windows of a model, and white noise in place of clips.

Shapes: blocks of mono audio float32 [1, samples] or [samples]; W windows of a clip, D numbers of the model for each.
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
    """Cut mono audio into consecutive windows of `size` samples.

    A remainder at the end is a window of its own if it is at least half as long as one, or all there is. A shorter
    one is dropped: the models fill up short windows, so a fraction of a second would count as much as ten seconds.
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

    The noise depends on the seed and on the clip's name, not on the other clips.
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
        clips: Blocks of audio of each clip.
        model: Turns windows into float64 [windows, D].
        size: Samples in a window.
        batch_size: Windows per call of the model; a batch may hold windows of several clips.
        clip_done: Called after each clip was read.

    Returns:
        For each clip float64 [W, D], or the UserError that reading it raised.
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

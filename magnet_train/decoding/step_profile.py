"""The step profile of a model: the likelihood of real clips by number of decoding steps, codebook by codebook.

The likelihood of a codebook is conditioned on the real tokens of those below, so it depends on the steps of that codebook
alone, and a profile is one short curve per codebook. A pass is one step of one codebook.

Shapes: N clips, B clips of a batch, K codebooks, T frames, L numbers of passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from magnet_train.decoding.config import MOST_STEPS, DecodingConfig
from magnet_train.decoding.generate import LogitsFn, Progress
from magnet_train.decoding.likelihood import log_likelihood
from magnet_train.decoding.sampling import clip_generators
from magnet_train.errors import UserError

Quality = Literal["draft", "normal", "best"]
# Nats per frame of each codebook that a quality may lose.
LOSS: dict[Quality, float] = {"draft": 0.05, "normal": 0.01, "best": 0.0}
PASSES = (1, 2, 4, 8, 16, 32)
_MOST_COLUMNS = 100  # of a record
# The decoder that is scored, without guidance and top_p. In parity mode a codebook may have no steps.
_SCORED = DecodingConfig(span_arrangement="spread", top_p=0.0, max_cfg_coef=1.0, parity=True)


@dataclass(frozen=True)
class StepProfile:
    """Negative log-likelihood of real clips by codebook and passes.

    Args:
        passes: L numbers of passes, ascending.
        nats: [K][L], mean over clips (nats per frame).
        std_error: [K][L], standard error of the difference from the lowest value of the codebook, on the same clips.
        clips: N.
        sha256: Hash of the measured weights.
    """

    passes: tuple[int, ...]
    nats: tuple[tuple[float, ...], ...]
    std_error: tuple[tuple[float, ...], ...]
    clips: int
    sha256: str

    @classmethod
    def of(cls, nats: Tensor, sha256: str) -> Self:
        """Summarise the nats of two clips or more, float64 [N, K, L] of `nats_by_passes`.

        Raises:
            UserError: A number is not finite.
        """
        if not bool(nats.isfinite().all()):
            raise UserError("the model gives a real clip the probability 0; train it further, then measure.")
        means = nats.mean(dim=0)  # [K, L]
        lowest = means.argmin(dim=-1)[:, None].expand(len(nats), -1, 1)
        errors = (nats - nats.gather(-1, lowest)).std(dim=0) / len(nats) ** 0.5
        return cls(PASSES, _rounded(means), _rounded(errors), len(nats), sha256)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON primitives, which `from_record` reads."""
        return {name: _as_lists(value) for name, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: object, n_q: int, where: str) -> Self:
        """Read and check a record of `to_dict`.

        Raises:
            UserError: It is not a profile of `n_q` codebooks.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(record, Mapping) or record.keys() != names or not _is_sound(record, n_q):
            raise UserError(
                f"{where} has a steps_profile that is not one of {n_q} codebooks; measure it again with `magnet-train "
                "export --profile VAL_SHARDS`."
            )
        nats, errors = (tuple(map(tuple, record[name])) for name in ("nats", "std_error"))
        return cls(tuple(record["passes"]), nats, errors, record["clips"], record["sha256"])

    def choose(self, quality: Quality) -> tuple[int, ...]:
        """Return `decoding_steps`: for each codebook the fewest passes that lose at most `LOSS` plus a standard error."""
        return tuple(
            next(
                passes
                for passes, value, error in zip(self.passes, curve, errors, strict=True)
                if value - min(curve) <= LOSS[quality] + error
            )
            for curve, errors in zip(self.nats, self.std_error, strict=True)
        )


@torch.no_grad()
def nats_by_passes(
    logits_fn: LogitsFn,
    tokens: Tensor,
    *,
    card: int,
    first_index: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Return the negative log-likelihood of clips with each number of `PASSES`, float64 [B, K, L] (nats per frame).

    Args:
        logits_fn: Called 63 times for each codebook.
        tokens: int64 [B, K, T], ids 0..card-1.
        card: Entries in each codebook, and the mask id.
        first_index: Index of the first clip, from which its decoding order is drawn, the same for all numbers of passes.
        progress: Called after each pass with (passes done, passes in all).
    """
    batch, n_q, num_frames = tokens.shape
    nats = torch.zeros(batch, n_q, len(PASSES), dtype=torch.float64, device=tokens.device)
    done, total = 0, n_q * sum(PASSES)
    for k in range(n_q):
        for column, passes in enumerate(PASSES):
            steps = tuple(passes if stage == k else 0 for stage in range(n_q))
            generators = clip_generators(0, range(first_index, first_index + batch), tokens.device)
            found = log_likelihood(
                logits_fn,
                tokens,
                replace(_SCORED, decoding_steps=steps),
                card=card,
                generator=generators,
                progress=_after(progress, done, total),
            )
            nats[:, k, column] = -found[:, k] / num_frames
            done += passes
    return nats


def _after(progress: Progress | None, before: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(before + done, total)


def _is_sound(record: Mapping[str, Any], n_q: int) -> bool:
    passes, clips = record["passes"], record["clips"]
    if not isinstance(passes, list | tuple) or not 1 <= len(passes) <= _MOST_COLUMNS:
        return False
    if not all(type(number) is int and 1 <= number <= MOST_STEPS for number in passes):
        return False
    if list(passes) != sorted(set(passes)) or type(clips) is not int or clips < 1:
        return False
    tables = [record["nats"], record["std_error"]]
    if not all(_is_table(table, n_q, len(passes)) for table in tables):
        return False
    return isinstance(record["sha256"], str) and all(error >= 0 for row in tables[1] for error in row)


def _is_table(table: object, rows: int, columns: int) -> bool:
    """Return whether it is a list of lists of finite numbers, [rows][columns]."""
    return (
        isinstance(table, list | tuple)
        and len(table) == rows
        and all(isinstance(row, list | tuple) and len(row) == columns for row in table)
        and all(type(number) is float and math.isfinite(number) for row in table for number in row)
    )


def _rounded(table: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(number, 6) for number in row) for row in table.tolist())


def _as_lists(value: Any) -> Any:
    return (
        [_as_lists(part) for part in value]
        if isinstance(value, Sequence) and type(value) is not str
        else value
    )

"""Tokens: the codec that made them, and the batch for training.

Shapes: tokens int64 [B, K, T] with B clips, K = n_q codebooks (coarse to fine), T frames. Ids 0..card-1 are
codes, `card` itself is the mask id. `valid` bool [B, T] is True where a clip has audio.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from magnet_train.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Columns of `TokenBatch.noise`: progress on the mask schedule, condition dropout, order of the spans from here on.
SCHEDULE, CONDITION, SPANS = 0, 1, 2


class TokenBatch(TypedDict):
    """A batch of clips: the contract between dataloaders and training.

    Masks are a function of `noise`, and `noise` of (seed, slot), whichever process computes them.
    """

    tokens: Tensor  # int64 [B, K, T]; padded frames hold card
    valid: Tensor  # bool [B, T]; False in padded frames
    noise: Tensor  # float32 [B, 2 + T], uniform in [0, 1), the same for a slot in every run; see `SCHEDULE`
    text: list[str]  # B captions, "" where there is none
    key: list[str]  # B keys as in the shards, "" in rows that only fill up the batch
    slot: Tensor  # int64 [B], global sample index; -1 in rows that only fill up the batch
    skipped: list[str]  # for each damaged clip that was not used, the reason


@dataclass(frozen=True)
class CodecInfo:
    """Identify a codec and the shape of its tokens.

    Args:
        id: What `load_codec` takes: a hub id, a packaged name or a folder.
        sha256: Hash of the weights in hexadecimal; two codecs with different hashes make different tokens.
        sample_rate: Audio samples per second (Hz).
        channels: Audio channels, 1 or 2.
        frame_rate: Token frames per second (Hz).
        n_q: Number of codebooks, K, over all streams.
        card: Entries in each codebook.
        streams: 2 where left and right are encoded by a mono codec and their codebooks alternate (L0 R0 L1 R1 ...),
            else 1. The first codebook of each stream, 0..streams-1, attends to all frames.
        kind: `model_type` of its class in transformers.
    """

    id: str
    sha256: str
    sample_rate: int
    channels: int
    frame_rate: float
    n_q: int
    card: int
    streams: int = 1
    kind: str = "encodec"

    @property
    def mask_id(self) -> int:
        """The id of a masked token, one past the last code."""
        return self.card

    def frames(self, seconds: float) -> int:
        """Return the number of token frames nearest to `seconds` of audio, at least 0."""
        return max(0, round(seconds * self.frame_rate))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON primitives, which `from_dict` reads; fields that have their defaults are left out."""
        return {name: value for name, value in asdict(self).items() if _DEFAULTS.get(name) != value}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], where: str = "codec record") -> CodecInfo:
        """Read the record that `to_dict` made, from the file or key `where`; unknown fields are ignored.

        Raises:
            UserError: A field is missing or is not a number where one is needed, or the streams do not fit the rest.
        """
        missing = [field.name for field in fields(cls) if field.name not in {*_DEFAULTS, *record}]
        if missing:
            raise UserError(
                f"{where} lacks {', '.join(missing)}; write it again with this version's tokenize or export."
            )
        try:
            info = cls(
                id=str(record["id"]),
                sha256=str(record["sha256"]),
                sample_rate=int(record["sample_rate"]),
                channels=int(record["channels"]),
                frame_rate=float(record["frame_rate"]),
                n_q=int(record["n_q"]),
                card=int(record["card"]),
                streams=int(record.get("streams", 1)),
                kind=str(record.get("kind", "encodec")),
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} has a field that is not a number ({error}); write it again.") from error
        if info.streams != 1 and (info.streams, info.channels, info.n_q % 2) != (2, 2, 0):
            raise UserError(
                f"{where} has {info.streams} streams with {info.channels} channels and {info.n_q} codebooks; it must be 1 "
                "stream, or 2 with 2 channels and an even number of codebooks; write it again."
            )
        return info

    @property
    def codebooks(self) -> str:
        """The number of codebooks, in words that name the streams."""
        each = self.n_q // self.streams
        return f"{each} codebooks" if self.streams == 1 else f"{each} codebooks each of left and right"

    @property
    def _options(self) -> str:
        stereo = " --stereo" if self.streams == 2 else ""
        return f"--codec {self.id} --codebooks {self.n_q // self.streams}{stereo}"

    def require_same_tokens(
        self, other: CodecInfo, mine: str, theirs: str, remedy: str | None = None
    ) -> None:
        """Refuse a codec whose tokens do not mean the same as those of this one.

        `mine` and `theirs` name in the message who uses this codec ("the model") and the other one ("shards/"). `remedy`
        is for codecs of other names; None means to tokenize again with this codec.

        Raises:
            UserError: The number or size of the codebooks, the streams, the frame rate or the weights differ.
        """
        for name in ("streams", "n_q", "card", "frame_rate", "sha256"):
            a, b = getattr(self, name), getattr(other, name)
            if a != b and (name != "sha256" or (a and b)):  # an unknown hash proves nothing
                if (self.id, self.sha256) == (other.id, other.sha256) and name in ("streams", "n_q"):
                    raise UserError(
                        f"{mine} uses {self.codebooks} of codec {self.id} and {theirs} holds {other.codebooks}; "
                        f"{remedy or f'tokenize the audio again with {self._options}'}."
                    )
                if self.id == other.id:
                    raise UserError(
                        f"{mine} and {theirs} both name codec {self.id} but mean different versions of it ({name} "
                        f"{a} and {b}); use the version of magnet-train or of the codec that made the tokens."
                    )
                remedy = remedy or f"tokenize the audio again with --codec {self.id}"
                raise UserError(
                    f"{mine} uses tokens of codec {self.id} ({name} {a}) and {theirs} holds those of {other.id} "
                    f"({name} {b}); {remedy}."
                )


_DEFAULTS = {field.name: field.default for field in fields(CodecInfo) if field.default is not MISSING}


def tokens_to_npy(tokens: npt.ArrayLike, card: int) -> bytes:
    """Encode tokens, integers [K, T] in 0..card-1, as `.npy` in the smallest type for `card` <= 65536 entries."""
    dtype = "<i2" if card <= 2**15 else "<u2"
    buffer = io.BytesIO()  # written to a file directly, numpy would not notice that the disk is full
    np.save(buffer, np.ascontiguousarray(tokens, dtype=dtype), allow_pickle=False)
    return buffer.getvalue()

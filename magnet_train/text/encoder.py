"""The contract of a text encoder.

Shapes: B captions, S positions of the longest caption, D = dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from torch import Tensor, nn

from magnet_train.errors import UserError

_T = TypeVar("_T")


class TextEncoder(nn.Module):
    """Captions to the states that the model attends to.

    A new kind is a subclass with a `kind` of its own, listed in `magnet_train.text.KINDS`.

    Attributes:
        kind: Name of the kind in checkpoints.
        id: Name of this encoder, for messages and cards.
        dim: Width of the states.
        trainable: True if the weights train along, and are saved with the model.
    """

    kind: ClassVar[str]
    id: str
    dim: int
    trainable: bool

    def forward(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Encode captions.

        Args:
            texts: B captions; an empty or missing one is the null condition of the model.

        Returns:
            States float [B, S, D], and a mask bool [B, S] that is True where a state counts: nowhere in the row of
            a null condition.
        """
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """Return a description in JSON primitives that `from_spec` reads."""
        raise NotImplementedError

    @classmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path | None) -> Self:
        """Build the encoder that `spec()` described.

        Args:
            spec: The description, which may come from any file.
            folder: What `save` wrote, where it is at hand; None goes by the name in `spec`.

        Raises:
            UserError: A field is missing or of the wrong type, or files cannot be read.
        """
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write what `from_spec` needs beside the description and the trained weights: nothing by default."""


def field(spec: dict[str, Any], name: str, kind: type[_T]) -> _T:
    """Return a field of a description, whose type is checked."""
    value = spec.get(name)
    if not isinstance(value, kind):
        raise UserError(
            f"the text encoder's description needs '{name}' of type {kind.__name__}; export the model again."
        )
    return value

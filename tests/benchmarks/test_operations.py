"""What the operations of torch's profiler count as."""

from __future__ import annotations

import operations
import pytest


@pytest.mark.parametrize(
    ("name", "shapes", "expected"),
    [
        ("aten::mm", [[1000, 1024], [1024, 4096]], "products with weights"),
        ("aten::mm", [[1000, 1024], [1024, 2048]], "heads"),
        ("aten::mm", [[2048, 655], [655, 1024]], "heads"),  # the gradient of their weights
        ("aten::bmm", [[1, 500, 1024], [1, 1024, 384]], "attention"),
        ("aten::_softmax", [[1, 500, 16, 24], [], []], "attention"),
        ("aten::_softmax", [[1, 500, 2048], [], []], "noise, guidance, softmax or loss over a codebook"),
        ("aten::uniform_", [[500, 2048], [], []], "noise, guidance, softmax or loss over a codebook"),
        ("aten::copy_", [[1024, 4096], [1024, 4096], []], "casts, copies and fills"),
        ("aten::native_layer_norm", [[2, 500, 1024], []], "norms and GELU"),
        ("aten::_fused_adamw_", [[], []], "optimizer and clipping"),
        ("aten::add", [[2, 500, 1024], [2, 500, 1024], []], "everything else"),
    ],
)
def test_an_operation_is_of_one_kind(name: str, shapes: list[list[int]], expected: str) -> None:
    assert operations.kind_of(name, shapes, card=2048) == expected

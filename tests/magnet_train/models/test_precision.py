"""The precision of a model: how it is chosen, what stays in float32, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from magnet_train import Magnet
from magnet_train.errors import UserError
from magnet_train.models import GuidedLogits, MagnetTransformer, precision
from magnet_train.models.attention import attention
from magnet_train.models.precision import compute_dtype, has_fast_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("gain", "dim", "expected"),
    [
        (3.0, 1024, torch.bfloat16),
        (3.0, 256, torch.bfloat16),
        (3.0, 128, torch.float32),  # the products of a small model are not what takes the time
        (1.2, 1024, torch.float32),
        (0.01, 1024, torch.float32),  # emulated
    ],
)
def test_auto_takes_what_the_cpu_multiplies_faster(
    gain: float, dim: int, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_cpu_gain", lambda: gain)
    assert compute_dtype("auto", CPU, dim) is expected
    assert compute_dtype("float32", CPU, dim) is torch.float32
    assert compute_dtype("bfloat16", CPU, dim) is torch.bfloat16  # it works everywhere, slow or not


def test_the_cpu_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = has_fast_bfloat16(CPU)
    monkeypatch.setattr(precision, "_product_seconds", lambda dtype: pytest.fail("measured again"))
    assert has_fast_bfloat16(CPU) is first


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("half", "choose auto, float32, bfloat16 or float16"),
        ("float16", "precision float16 needs a GPU; use bfloat16 or float32"),
        ("float64", "precision 'float64' is not known"),
    ],
)
def test_a_precision_that_cannot_be_is_refused(checkpoint: Path, name: str, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        Magnet.from_pretrained(checkpoint, dtype=name)


@pytest.fixture
def lm() -> MagnetTransformer:
    torch.manual_seed(0)
    return MagnetTransformer(4, 64, text_dim=16, dim=64, num_heads=4, num_layers=4).eval()


def test_guided_logits_in_bfloat16_are_close(lm: MagnetTransformer) -> None:
    """Output norm and heads stay in float32, so guidance does not multiply the rounding of logits."""
    small = copy.deepcopy(lm)
    small.convert(torch.bfloat16)
    kinds = {name: weight.dtype for name, weight in small.state_dict().items()}
    in_float32 = {name for name, dtype in kinds.items() if dtype == torch.float32}
    assert in_float32 == {"heads", "out_norm.weight", "out_norm.bias"}
    tokens, text = torch.randint(65, (2, 4, 200)), torch.randn(2, 5, 16)
    for stage, coefficient in ((0, 1.0), (0, 10.0), (2, 10.0)):
        exact, rounded = (GuidedLogits(model, text)(tokens, stage, coefficient) for model in (lm, small))
        assert rounded.dtype == torch.float32
        error = (rounded - exact).square().mean().sqrt() / exact.std()
        assert error < 0.02 * coefficient


@pytest.mark.parametrize("masked", [False, True])
def test_attention_trains_in_bfloat16(masked: bool) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, 40, 32, requires_grad=True) for _ in range(3)]
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    allowed = torch.rand(40, 40) < 0.5 if masked else None
    if allowed is not None:
        allowed.fill_diagonal_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = attention(*rounded, 4, allowed)
    expected = attention(*exact, 4, allowed)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, atol=0.03, rtol=0.03)
    result.sum().backward()
    expected.sum().backward()
    for ours, reference in zip(rounded, exact, strict=True):
        assert ours.grad is not None
        assert reference.grad is not None
        torch.testing.assert_close(ours.grad.float(), reference.grad, atol=0.05, rtol=0.05)


def test_a_model_in_bfloat16_generates(checkpoint: Path) -> None:
    magnet = Magnet.from_pretrained(checkpoint, dtype=torch.bfloat16)
    assert magnet.dtype is torch.bfloat16
    tokens = magnet.generate_tokens(["a low bell", "a flute"], seed=3)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < magnet.lm.card
    alone = magnet.generate_tokens(["a flute"], seed=3, first_index=1)
    assert torch.equal(alone[0], tokens[1])  # on a CPU, in any precision
    assert bool(magnet.generate(["a low bell"], seed=3).isfinite().all())


def test_rounded_weights_are_not_saved_as_the_models(checkpoint: Path, tmp_path: Path) -> None:
    magnet = Magnet.from_pretrained(checkpoint, dtype="bfloat16")
    with pytest.raises(
        UserError, match="rounded to bfloat16 when the model was loaded; load it with dtype float32"
    ):
        magnet.save_pretrained(tmp_path / "export")
    assert not (tmp_path / "export").exists()

"""The LightningModule by itself: what the loss counts, how gradients are clipped, what a checkpoint holds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader

from magnet_train.decoding import DecodingConfig
from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer
from magnet_train.text import ClassLabels, NoText
from magnet_train.tokens import CodecInfo
from magnet_train.training.module import MagnetModule
from magnet_train.training.objective import (
    LossSums,
    group_by_context,
    masked_cross_entropy_sum,
    predict_masked,
)

CODEC = CodecInfo("tiny", "0" * 64, 8000, 1, 50.0, n_q=2, card=16)
FRAMES = 32
RATE = 0.1  # learning rate of a single step


def build(**changes) -> MagnetModule:
    torch.manual_seed(0)
    options = {
        "codec": CODEC,
        "lm": partial(MagnetTransformer, dim=32, num_heads=4, num_layers=2),
        "text": ClassLabels(["a", "b"], dim=8),
        "segment_duration": FRAMES / 50,
        "decoding": DecodingConfig(decoding_steps=(3, 2)),
    } | changes
    return MagnetModule(**options)


def batch_of(count: int = 4, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "tokens": torch.randint(16, (count, 2, FRAMES), generator=generator),
        "valid": torch.ones(count, FRAMES, dtype=torch.bool),
        "noise": torch.rand(count, 2 + FRAMES, generator=generator),
        "text": ["a", "b"] * (count // 2),
        "key": [str(i) for i in range(count)],
        "slot": torch.arange(count),
    }


def sums_of(module: MagnetModule, batch: dict, stages: list[int], captions: bool = True) -> tuple[float, int]:
    """Summed loss and number of masked tokens."""
    hidden, text_mask = module.text(batch["text"])
    text_mask = text_mask & captions
    predictions = list(
        predict_masked(
            module.lm,
            batch["tokens"],
            module.draw_mask(batch["noise"]),
            batch["valid"],
            stages,
            hidden,
            text_mask,
        )
    )
    loss = sum(masked_cross_entropy_sum(p.logits, p.targets).item() for p in predictions)
    return loss, sum(len(p.targets) for p in predictions)


def rows_of(batch: dict, rows: slice) -> dict:
    return {key: value[rows] for key, value in batch.items()}


def test_loss_ignores_padding_and_what_is_not_masked():
    module, batch = build(), batch_of()
    batch["valid"][:, 20:] = False
    loss, count = sums_of(module, batch, [0] * 4)
    assert 0 < count < 4 * 20
    padded = dict(batch, tokens=batch["tokens"].clone())
    padded["tokens"][..., 20:] = 16  # what a padded position holds: no class of the cross-entropy
    assert sums_of(module, padded, [0] * 4)[1] == count
    assert loss > 0


def test_loss_of_a_batch_is_that_of_its_parts():
    module, batch = build(), batch_of(4)
    whole = sums_of(module, batch, [1] * 4)
    parts = [sums_of(module, rows_of(batch, slice(i, i + 2)), [1] * 2) for i in (0, 2)]
    assert whole == (pytest.approx(sum(p[0] for p in parts), rel=1e-6), sum(p[1] for p in parts))


def test_clips_of_different_codebooks_go_through_together():
    module, batch = build(), batch_of(6)
    stages = [1, 0, 1, 1, 0, 0]
    loss, count = sums_of(module, batch, stages)
    alone = [sums_of(module, rows_of(batch, slice(i, i + 1)), [k]) for i, k in enumerate(stages)]
    assert (loss, count) == (pytest.approx(sum(p[0] for p in alone), rel=1e-6), sum(p[1] for p in alone))


def test_a_batch_of_padding_alone_counts_nothing():
    module, batch = build(), batch_of()
    batch["valid"][:] = False
    assert sums_of(module, batch, [0] * 4) == (0.0, 0)


def test_dropped_captions_are_the_null_condition():
    module, batch = build(), batch_of()
    dropped, _ = sums_of(module, batch, [0] * 4, captions=False)
    nothing, _ = sums_of(module, dict(batch, text=[""] * 4), [0] * 4)
    assert dropped == pytest.approx(nothing)
    assert dropped != pytest.approx(sums_of(module, batch, [0] * 4)[0])


def test_first_codebooks_of_both_sides_are_run_together():
    passes = [
        (list(stages), clips) for stages, clips in group_by_context([0, 3, 1, 2, 1], 4, False, streams=2)
    ]
    assert passes == [([0, 1], [0, 2, 4]), ([2, 3], [1, 3])]


def test_what_a_stereo_codec_sets():
    codec = replace(CODEC, frame_rate=86.1328125, n_q=4, channels=2, streams=2)
    module = build(codec=codec, decoding=DecodingConfig(), lm=partial(MagnetTransformer, dim=32, num_heads=4))
    assert (module.lm.streams, module.lm.span_len, module.lm.subcodes_context) == (2, 5, 9)
    assert module.decoding.decoding_steps == (20, 20, 10, 10)
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["magnet_train"]["lm"]["streams"] == 2
    assert checkpoint["magnet_train"]["codec"]["streams"] == 2
    module.on_load_checkpoint(checkpoint)


def test_lengths_that_are_not_given_are_those_of_the_checkpoint():
    lm = partial(MagnetTransformer, dim=32, num_heads=4, num_layers=1)
    codec = replace(CODEC, frame_rate=86.1328125)
    checkpoint: dict = {}
    build(codec=codec, lm=partial(lm, span_len=3, subcodes_context=5)).on_save_checkpoint(checkpoint)
    resumed = build(codec=codec, lm=lm)
    assert resumed.lm.span_len == 5
    resumed.on_load_checkpoint(checkpoint)
    assert (resumed.lm.span_len, resumed.lm.subcodes_context) == (3, 5)
    with pytest.raises(UserError, match=r"span_len 3 and this run has model\.lm\.span_len 4"):
        build(codec=codec, lm=partial(lm, span_len=4)).on_load_checkpoint(checkpoint)


@pytest.mark.parametrize("order", [1, -1])
def test_positions_are_those_of_the_checkpoint(order):
    """Their weights have the same shapes, so that nothing else would tell them apart."""
    saved, now = ["sinusoidal", "rotary"][::order]
    lm = partial(MagnetTransformer, dim=32, num_heads=4, num_layers=1)
    checkpoint: dict = {}
    build(lm=partial(lm, positions=saved)).on_save_checkpoint(checkpoint)
    build(lm=partial(lm, positions=saved)).on_load_checkpoint(checkpoint)
    with pytest.raises(UserError, match=rf"positions {saved} and this run has model\.lm\.positions {now}"):
        build(lm=partial(lm, positions=now)).on_load_checkpoint(checkpoint)


def test_samples_repeat_with_their_seed():
    module = build().eval()
    first = module.sample(["a", None], seed=3)
    assert first.shape == (2, 2, FRAMES)
    assert torch.equal(first, module.sample(["a", None], seed=3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segment_duration": 0.02}, "shorter than one span"),
        ({"stage_weights": [1.0]}, "stage_weights"),
        ({"cfg_dropout": 1.5}, "cfg_dropout"),
        ({"decoding": DecodingConfig(decoding_steps=(20, 10, 10, 10))}, "decoding_steps"),
    ],
)
def test_settings_that_do_not_fit(changes, words):
    with pytest.raises(UserError, match=words):
        build(**changes)


def test_checkpoint_describes_the_model_in_primitives(tmp_path):
    module = build(text=NoText())
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "c.ckpt")
    stored = torch.load(tmp_path / "c.ckpt", weights_only=True)["magnet_train"]
    assert MagnetTransformer(**stored["lm"]).config == module.lm.config
    assert CodecInfo.from_dict(stored["codec"]) == CODEC
    module.on_load_checkpoint(checkpoint)


def test_resume_refuses_another_model_or_codec():
    checkpoint: dict = {}
    build().on_save_checkpoint(checkpoint)
    with pytest.raises(UserError, match="num_layers 2"):
        build(lm=partial(MagnetTransformer, dim=32, num_heads=4, num_layers=3)).on_load_checkpoint(checkpoint)
    other = CodecInfo("tiny", "1" * 64, 8000, 1, 50.0, n_q=2, card=16)
    with pytest.raises(UserError, match="sha256"):
        build(codec=other).on_load_checkpoint(checkpoint)
    with pytest.raises(UserError, match="not written by magnet-train"):
        build().on_load_checkpoint({})


def test_other_masks_are_one_method():
    class Everything(MagnetModule):
        def draw_mask(self, noise):
            return torch.ones_like(super().draw_mask(noise))

    torch.manual_seed(0)
    lm = partial(MagnetTransformer, dim=32, num_heads=4, num_layers=2)
    module = Everything(CODEC, lm, NoText(), decoding=DecodingConfig(decoding_steps=(3, 2)))
    assert sums_of(module, batch_of(), [0] * 4)[1] == 4 * FRAMES


def test_another_loss_is_one_method():
    class SecondAlone(MagnetModule):
        def sum_losses(self, predictions):
            total = torch.zeros(())
            nats, counts = torch.zeros(2, self.codec.n_q)
            for stage, logits, targets, _ in predictions:
                loss = masked_cross_entropy_sum(logits, targets)
                total = total + (stage == 1) * loss
                nats[stage], counts[stage] = loss.detach(), len(targets)
            return LossSums(total, nats, counts)

    lm = partial(MagnetTransformer, dim=32, num_heads=4, num_layers=2)
    module = SecondAlone(CODEC, lm, NoText(), decoding=DecodingConfig(decoding_steps=(3, 2)))
    batch = batch_of()
    assert module.stages_of(batch) == [0, 1, 0, 1]
    loss = module.training_step(batch, 0)
    loss.backward()
    second, _ = sums_of(module, {name: values[1::2] for name, values in batch.items()}, [1, 1])
    assert loss.item() * FRAMES == pytest.approx(second, rel=1e-6)
    gradients = module.lm.heads.grad.flatten(1).abs().sum(dim=1)  # [K]
    assert gradients[0] == 0 < gradients[1]


def test_the_objective_asks_the_device_nothing():
    """On the meta device nothing could answer: `.item()`, `.nonzero()` and a copy to the CPU all raise there."""
    batch = batch_of()
    lm = build().lm.to("meta")
    mask = build().draw_mask(batch["noise"])
    text, text_mask = torch.empty(4, 3, 8, device="meta"), torch.empty(4, 3, dtype=torch.bool, device="meta")
    for stages in ([1] * 4, [0, 1, 0, 1]):
        predictions = list(
            predict_masked(
                lm,
                batch["tokens"].to("meta"),
                mask,
                batch["valid"],
                stages,
                text,
                text_mask,
                with_text=[1, 2],
            )
        )
        for p in predictions:
            masked_cross_entropy_sum(p.logits, p.targets).backward()
        assert sum(len(p.targets) for p in predictions) == int(mask.sum())
    assert all(p.grad is not None for p in lm.parameters())


def test_what_masks_are_made_of_stays_on_the_host():
    moved = build().transfer_batch_to_device(batch_of(), torch.device("meta"), 0)
    where = {name: value.device.type for name, value in moved.items() if isinstance(value, torch.Tensor)}
    assert where == {"tokens": "meta", "valid": "cpu", "noise": "cpu", "slot": "cpu"}


def test_dropped_captions_skip_cross_attention():
    module, batch = build(), batch_of()
    rows = []
    for layer in module.lm.layers:
        layer.cross_attention.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    batch["noise"][:, 1] = torch.tensor([0.1, 0.6, 0.9, 0.2])
    dropped = 2
    module.cfg_dropout = 0.5
    module.stages_of = lambda batch: [1] * 4
    module.training_step(batch, 0)
    assert rows == [4 - dropped] * 2


def move_of_a_step(optimizer, clip: float | None, algorithm: str | None = None, **trainer) -> torch.Tensor:
    """Train for a step; return how far each number of the model went."""
    module = build(optimizer=optimizer, warmup_steps=0)
    before = torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        gradient_clip_val=clip,
        gradient_clip_algorithm=algorithm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    ).fit(module, DataLoader([batch_of()], batch_size=None))
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach() - before


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_fused_clips_like_unfused(precision, algorithm):
    # SGD goes as far as the gradient is long: what is left of it after clipping shows.
    moves = [
        move_of_a_step(partial(torch.optim.SGD, lr=RATE, fused=fused), 0.01, algorithm, precision=precision)
        for fused in (True, False)
    ]
    torch.testing.assert_close(*moves)
    if algorithm == "value":
        assert moves[0].abs().max() == pytest.approx(0.01 * RATE, rel=1e-3)
    else:
        assert moves[0].norm() == pytest.approx(0.01 * RATE, rel=1e-3)


def test_without_clipping_the_gradient_is_left_alone():
    free, clipped = (
        move_of_a_step(partial(torch.optim.SGD, lr=RATE, fused=True), clip, precision="bf16-mixed")
        for clip in (None, 0.01)
    )
    assert free.norm() > 2 * clipped.norm()


def test_adamw_fused_is_adamw():
    moves = [
        move_of_a_step(partial(torch.optim.AdamW, lr=RATE, fused=fused), 1.0, precision="bf16-mixed")
        for fused in (True, False)
    ]
    torch.testing.assert_close(*moves, rtol=1e-5, atol=1e-6)


def test_a_loss_scale_and_clipping_and_fused_do_not_go_together():
    half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(UserError, match="fused to false"):
        move_of_a_step(partial(torch.optim.AdamW, lr=RATE, fused=True), 1.0, plugins=[half])

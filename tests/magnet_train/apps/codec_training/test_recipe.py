"""The recipe: its initialization is a transform codec, at any sample rate."""

import numpy as np
import pytest
import torch
from transformers import EncodecModel

from harness.tones.world import FRAME, ToneWorld
from magnet_train.apps.codec_training import SAMPLE_RATES
from magnet_train.apps.codec_training.initialization import (
    fit_centres,
    fit_codebooks,
    fit_projection,
    initialize_from_mdct,
    mdct_basis,
    nearest,
    run_layers,
)
from magnet_train.apps.codec_training.losses import codec_loss, flatness, tonality
from magnet_train.apps.codec_training.recipe import LATENTS, RATE, learning_rate, with_errors
from magnet_train.apps.codec_training.run import recipe_of
from train_codec import PLANS


@pytest.fixture(scope="module")
def audio():
    return torch.from_numpy(np.stack([clip for _, clip in ToneWorld("default", 2).clips(60)]))


@pytest.fixture(scope="module")
def started(audio):
    torch.manual_seed(0)
    model = EncodecModel(PLANS["quickstart"].recipe.config())
    projection = fit_projection(audio, FRAME, LATENTS, PLANS["quickstart"].recipe.whitening)
    initialize_from_mdct(model, *projection)
    return model, projection


def si_sdr(output, audio):
    """Return the scale-invariant signal-to-distortion ratio (dB), [B]."""
    target = (output * audio).sum(-1, keepdim=True) / audio.square().sum(-1, keepdim=True) * audio
    return 10 * (target.square().sum(-1) / (output - target).square().sum(-1)).log10()


def test_the_basis_reconstructs_what_two_frames_cover():
    basis = mdct_basis(16)
    torch.testing.assert_close(basis @ basis.T, torch.eye(16), atol=1e-6, rtol=0)
    audio = torch.randn(160)
    frames = audio.unfold(0, 32, 16) @ basis.T @ basis
    output = torch.zeros(160)
    for index, frame in enumerate(frames):
        output[16 * index : 16 * index + 32] += frame
    torch.testing.assert_close(output[16:-16], audio[16:-16])


def test_the_convolutions_compute_the_projection(started, audio):
    model, (analysis, _) = started
    with torch.no_grad():
        latents = run_layers(model.encoder, audio[:, None])  # [B, 64, 64]
        padded = torch.nn.functional.pad(audio, (FRAME // 2, FRAME // 2))
        expected = torch.einsum("bfn,dn->bdf", padded.unfold(-1, 2 * FRAME, FRAME), analysis)
        error = (latents[:, : len(analysis)] - expected).abs().mean() / expected.abs().mean()
        assert error < 0.1  # from the nonlinearity of the activations
        torch.testing.assert_close(model.encoder(audio[:, None]), latents)  # the LSTM adds nothing
        output = run_layers(model.decoder, latents)[:, 0]
    assert si_sdr(output, audio).median() > 12  # without training; random weights give less than 0


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(done / 100) for done in range(101)]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(RATE, rel=0.02)
    assert rates.index(max(rates)) == 4
    assert rates[100] == pytest.approx(RATE / 50)


def test_each_codebook_quantizes_the_residual_of_those_before(started, audio):
    model, _ = started
    with torch.no_grad():
        latents = run_layers(model.encoder, audio[:, None])
    vectors = latents.transpose(1, 2).flatten(0, 1)
    fit_codebooks(model.quantizer, vectors, 4, lambda _: None)
    codes = model.quantizer.encode(latents)  # [K, B, frames]
    first = model.quantizer.layers[0].codebook
    assert torch.equal(codes[0].flatten(), nearest(vectors, first.embed))
    assert len(codes[0].unique()) > 200  # of 256
    power = latents.square().mean()
    left = [
        (latents - model.quantizer.decode(codes[:count])).square().mean() / power for count in (1, 2, 3, 4)
    ]
    assert left == sorted(left, reverse=True)
    assert left[3] < left[0] / 2


def test_centres_find_clusters_and_none_stays_without_vectors():
    torch.manual_seed(0)
    clusters = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = clusters.repeat(100, 1) + 0.1 * torch.randn(300, 2)
    centres = fit_centres(vectors, 8, iterations=30)
    assert (nearest(vectors, centres).bincount(minlength=8) > 0).all()
    distance = (vectors - centres[nearest(vectors, centres)]).norm(dim=1)
    assert distance.mean() < 0.2


def test_only_finer_codes_are_replaced():
    torch.manual_seed(0)
    codes = torch.arange(4 * 50 * 40).view(4, 50, 40)
    changed = with_errors(codes, 0.9) != codes
    assert not changed[0].any()
    assert changed[1:].float().mean() == pytest.approx(0.9 / 2, rel=0.2)
    by_clip = changed[1:].float().mean(dim=(0, 2))
    assert by_clip.min() < 0.05
    assert by_clip.max() > 0.4
    for codebook, made in zip(codes, with_errors(codes, 0.9), strict=True):
        assert torch.isin(made, codebook).all()  # by codes of the same codebook


def test_the_loss_compares_waveforms_of_tones_and_the_power_of_noise():
    torch.manual_seed(0)
    time = torch.arange(3840) / 8000
    tone = 0.5 * torch.sin(2 * torch.pi * 440 * time)[None]
    noise, other_noise = 0.3 * torch.randn(1, 3840), 0.3 * torch.randn(1, 3840)
    assert flatness(tone) < 0.01 < 0.5 < flatness(noise)
    assert tonality(tone) == 1
    assert tonality(noise) == pytest.approx(0.05)
    assert codec_loss(tone, tone) < 1e-3
    assert codec_loss(other_noise, noise) < codec_loss(torch.zeros_like(noise), noise) / 3  # silence is worse
    assert codec_loss(-tone, tone) > 1  # the sign of a tone counts


@pytest.mark.parametrize("rate", SAMPLE_RATES)
def test_the_transform_works_at_every_rate_that_the_command_offers(rate):
    torch.manual_seed(0)
    recipe = recipe_of(rate, codebooks=2, card=16)
    time = torch.arange(48 * recipe.hop) / rate
    clips = torch.stack([torch.sin(2 * torch.pi * pitch * time) for pitch in (110, 220, 330, 495, 660, 880)])
    clips = 0.3 * (clips + clips.roll(1, 0))
    model = EncodecModel(recipe.config())
    initialize_from_mdct(model, *fit_projection(clips, recipe.hop, LATENTS, recipe.whitening))
    with torch.no_grad():
        latents = run_layers(model.encoder, clips[:, None])
        assert latents.shape == (6, LATENTS, 48)
        output = run_layers(model.decoder, latents)[:, 0]
    assert output.shape == clips.shape
    assert si_sdr(output, clips).min() > 12


def test_transformers_counts_the_codebooks_that_were_asked_for():
    for card in (16, 100, 512, 1000, 4096):
        for codebooks in range(1, 17):
            assert recipe_of(16_000, codebooks, card).config().num_quantizers == codebooks

"""Real files of each format, read back and measured."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from magnet_train.audio import AudioStream, audio_seconds, read_audio, write_audio
from magnet_train.audio.resampling import ratio_of, resample, resample_blocks
from magnet_train.errors import UserError


def tone(frequency: float, rate: int, seconds: float = 0.5) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(int(rate * seconds)) / rate)


def loudest_frequency(audio: torch.Tensor, rate: int) -> float:
    spectrum = torch.fft.rfft(audio * torch.hann_window(audio.shape[-1])).abs()
    return float(spectrum.argmax()) * rate / audio.shape[-1]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_every_format_is_read_at_the_requested_rate(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(440, 44_100).numpy(), 44_100)
    audio = read_audio(path, sample_rate=16_000, channels=1)
    assert audio.dtype == torch.float32
    assert audio.shape[0] == 1
    assert audio.shape[1] == pytest.approx(8_000, abs=1_200)  # mp3 encoders pad the ends
    assert loudest_frequency(audio[0], 16_000) == pytest.approx(440, abs=4)


def test_channels_are_mixed_and_doubled(tmp_path: Path) -> None:
    stereo = np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 8_000, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", stereo[:, 0], 8_000, subtype="FLOAT")
    soundfile.write(
        tmp_path / "four.wav", np.concatenate([stereo, stereo * 0], axis=1), 8_000, subtype="FLOAT"
    )
    assert read_audio(tmp_path / "stereo.wav", 8_000, 1).eq(0.125).all()
    assert read_audio(tmp_path / "mono.wav", 8_000, 2).eq(0.5).all()
    assert read_audio(tmp_path / "mono.wav", 8_000, 2).shape == (2, 100)
    assert read_audio(tmp_path / "four.wav", 8_000, 2)[:, 0].tolist() == [0.5, -0.25]


def test_an_odd_rate_needs_no_giant_filter() -> None:
    audio = resample(tone(440, 22_051)[None], ratio_of(22_051, 32_000))
    assert audio.shape[1] == pytest.approx(16_000, abs=3)
    assert loudest_frequency(audio[0], 32_000) == pytest.approx(440, abs=3)


def test_write_and_read_back_within_16_bits(tmp_path: Path) -> None:
    audio = torch.stack([tone(300, 8_000), tone(500, 8_000)])
    write_audio(tmp_path / "new" / "clip.wav", audio, 8_000)
    back = read_audio(tmp_path / "new" / "clip.wav", 8_000, 2)
    assert (back - audio).abs().max() <= 1 / 2**15
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["clip.wav"]


def test_too_loud_audio_is_scaled_down_not_clipped(tmp_path: Path) -> None:
    audio = 4 * tone(300, 8_000)[None]  # peak 2
    write_audio(tmp_path / "loud.wav", audio, 8_000)
    back = read_audio(tmp_path / "loud.wav", 8_000, 1)
    torch.testing.assert_close(back, audio / audio.abs().max(), atol=1 / 2**14, rtol=0)


def test_non_finite_audio_is_a_bug_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite"):
        write_audio(tmp_path / "x.wav", torch.full((1, 5), math.nan), 8_000)
    with pytest.raises(ValueError, match="channels, samples"):
        write_audio(tmp_path / "x.wav", torch.zeros(5), 8_000)
    assert not list(tmp_path.iterdir())


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8_000)
    soundfile.write(tmp_path / "nan.wav", np.full(5, np.nan, dtype=np.float32), 8_000, subtype="FLOAT")
    soundfile.write(tmp_path / "slow.wav", np.zeros(5), 3)
    (tmp_path / "headerless.raw").write_bytes(bytes(100))
    for name, reason in [
        ("slow.wav", "3 samples a second"),
        ("headerless.raw", "cannot read"),
        ("text.wav", "cannot read"),
        ("empty.wav", "no audio samples"),
        ("nan.wav", "NaN or infinite"),
        ("absent.wav", "no audio file"),
    ]:
        with pytest.raises(UserError, match=reason) as caught:
            read_audio(tmp_path / name, 8_000, 1)
        assert name in str(caught.value)


def test_a_folder_that_cannot_be_created_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_audio(tmp_path / "file" / "clip.wav", torch.zeros(1, 5), 8_000)


@pytest.mark.parametrize(
    ("source", "target"),
    [(44_100, 32_000), (22_050, 8_000), (48_000, 32_000), (8_000, 32_000), (22_051, 32_000), (16_000, 8_000)],
)
@pytest.mark.parametrize("samples", [1, 7, 4_410, 60_017])
def test_resampling_in_blocks_equals_resampling_the_whole(source: int, target: int, samples: int) -> None:
    audio = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    whole = resample(audio, ratio_of(source, target))
    for size in (997, 20_000):
        blocks = torch.cat(list(resample_blocks(audio.split(size, dim=-1), source, target)), dim=-1)
        assert blocks.shape == whole.shape
        torch.testing.assert_close(blocks, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_stream_is_the_whole_file_in_blocks(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"noise.{suffix}"
    noise = 0.1 * np.random.default_rng(0).standard_normal((25 * 22_050, 2))
    soundfile.write(path, noise, 22_050)
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = torch.from_numpy(samples.T.copy()).mean(dim=0, keepdim=True)
    whole = resample(mono, ratio_of(rate, 16_000))
    blocks = list(AudioStream(path, 16_000, 1))
    assert len(blocks) >= 3
    assert max(block.shape[-1] for block in blocks) <= 11 * 16_000
    torch.testing.assert_close(torch.cat(blocks, dim=-1), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("start", [0.0, 3.0, 9.9])
def test_an_mp3_has_no_noise_where_a_block_or_a_part_begins(tmp_path: Path, rate: int, start: float) -> None:
    """The frames of a quiet or pure sound depend on those before them, which a seek forgets."""
    path = tmp_path / "tone.mp3"
    soundfile.write(path, 0.3 * np.sin(np.arange(25 * rate) / 20), rate)
    whole, _ = soundfile.read(path, dtype="float32")
    part = torch.cat(list(AudioStream(path, rate, 1, start=start)), dim=-1)
    expected = torch.from_numpy(whole[round(start * rate) :])[None]
    torch.testing.assert_close(part, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_part_of_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"noise.{suffix}"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(25 * 8_000), 8_000)
    whole = read_audio(path, 8_000, 1)
    for start, end, size in (
        (3.5, 16.0, 12.5 * 8_000),
        (20.0, 30.0, whole.shape[-1] - 160_000),
        (0.5, 25.0, 24.5 * 8_000),
    ):
        part = torch.cat(list(AudioStream(path, 8_000, 1, start=start, end=end)), dim=-1)
        assert part.shape[-1] == size
        expected = whole[:, round(start * 8_000) : round(end * 8_000)]
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="no audio samples after 70 s"):
        list(AudioStream(path, 8_000, 1, start=70.0, end=80.0))
    assert audio_seconds(path) == whole.shape[-1] / 8_000


def test_the_digest_is_of_the_decoded_samples(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-9_000, 9_000, 12 * 8_000, dtype=np.int16)
    for name in ("a.wav", "b.flac"):
        soundfile.write(tmp_path / name, noise, 8_000)
    soundfile.write(tmp_path / "other.wav", noise // 2, 8_000)
    soundfile.write(tmp_path / "faster.wav", noise, 16_000)
    digests = []
    for name in ("a.wav", "b.flac", "other.wav", "faster.wav"):
        stream = AudioStream(tmp_path / name, 8_000, 1)
        assert list(stream)
        digests.append(stream.digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3

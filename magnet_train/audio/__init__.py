"""Read, resample and write audio files."""

from magnet_train.audio.reading import AudioStream, WrongScaleError, read_audio
from magnet_train.audio.recording import audio_seconds
from magnet_train.audio.splicing import SampleFormat, sample_format, write_spliced
from magnet_train.audio.writing import draw_spectrogram, encode_wav, write_audio

__all__ = [
    "AudioStream",
    "SampleFormat",
    "WrongScaleError",
    "audio_seconds",
    "draw_spectrogram",
    "encode_wav",
    "read_audio",
    "sample_format",
    "write_audio",
    "write_spliced",
]

"""Read, resample and write audio files."""

from magnet_train.audio.reading import AudioStream, WrongScaleError, read_audio
from magnet_train.audio.recording import audio_seconds
from magnet_train.audio.writing import draw_spectrogram, encode_wav, fits_16_bit, write_audio, write_edit

__all__ = [
    "AudioStream",
    "WrongScaleError",
    "audio_seconds",
    "draw_spectrogram",
    "encode_wav",
    "fits_16_bit",
    "read_audio",
    "write_audio",
    "write_edit",
]

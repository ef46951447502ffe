"""Make a small EnCodec from a folder of audio: transform, codebooks by k-means, trained decoder."""

SAMPLE_RATES = (8000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # Hz, of the codecs that can be made

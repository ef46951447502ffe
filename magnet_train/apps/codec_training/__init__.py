"""Make a small EnCodec from a folder of audio: transform, codebooks by k-means, trained decoder."""

"""Write the text encoder in the package: `python tools/write_text_encoder.py --out DIR`.

DIR gets a tokenizer with the words of the tones' captions and the configuration of a small T5. There are no weights:
they are trained with the model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from magnet_train.text.vocabulary import small_t5, word_tokenizer

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from harness.tones.captions import (
    NOISE_PHRASES,
    PAIR_PHRASES,
    PITCHES,
    RHYTHMS,
    TIMBRES,
    TONE_PHRASES,
)

WIDTH = 96
LAYERS = 1


def vocabulary() -> list[str]:
    """Return every word and punctuation mark that occurs in captions, sorted."""
    names = (PITCHES | TIMBRES | RHYTHMS).values()
    values = [synonym for synonyms in names for synonym in synonyms]
    blank = dict.fromkeys(("pitch", "timbre", "rhythm", "first", "second"), "")
    phrases = [phrase.format(**blank) for phrase in TONE_PHRASES + NOISE_PHRASES + PAIR_PHRASES]
    text = " ".join(values + phrases)
    marks = {mark for mark in text if not mark.isalnum() and not mark.isspace()}
    for mark in marks:
        text = text.replace(mark, f" {mark} ")
    return sorted(set(text.split()))


def write_text_encoder(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and config.json for transformers' Auto classes.

    Args:
        folder: Destination; created if missing.
    """
    words = vocabulary()
    word_tokenizer(words).save_pretrained(folder)
    small_t5(len(words), WIDTH, LAYERS).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python tools/write_text_encoder.py", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    write_text_encoder(parser.parse_args().out)

"""Write the text encoder of the quickstart: `python tools/write_text_encoder.py --out DIR`.

DIR gets a word-level tokenizer of the captions' vocabulary and the configuration of a small T5. There are no weights:
they are trained with the model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config

from magnet_train.apps.quickstart.captions import (
    NOISE_PHRASES,
    PAIR_PHRASES,
    PITCHES,
    RHYTHMS,
    TIMBRES,
    TONE_PHRASES,
)

SPECIAL = ("<pad>", "</s>", "<unk>")
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
    words = {word: index for index, word in enumerate((*SPECIAL, *vocabulary()))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words["</s>"])])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    T5Config(
        vocab_size=len(words),
        d_model=WIDTH,
        d_kv=WIDTH // 4,
        d_ff=2 * WIDTH,
        num_layers=LAYERS,
        num_decoder_layers=0,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    ).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python tools/write_text_encoder.py", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    write_text_encoder(parser.parse_args().out)

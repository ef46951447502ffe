"""Write the text encoder of the quickstart: a tokenizer that knows its words, and a small T5's shape.

`python tools/text_files.py FOLDER`. No weights: they train along with the model.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config

from magnet_train.apps.quickstart.captions import vocabulary

SPECIAL = ("<pad>", "</s>", "<unk>")
WIDTH = 96
LAYERS = 1


def write_text_encoder(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and config.json, loadable by transformers' Auto classes.

    Args:
        folder: Where to; made if missing.
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
    write_text_encoder(Path(sys.argv[1]))

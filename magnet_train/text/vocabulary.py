"""A vocabulary of whole words from captions, its tokenizer, and the configuration of a small T5 that reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config

from magnet_train.errors import UserError

CAPTIONS = "captions"  # name of a tokenizer or T5 whose words come from the captions of the shards
SPECIAL = ("<pad>", "</s>", "<unk>")
MOST_WORDS = 10_000
WIDTH, LAYERS = 128, 2  # of the T5 "captions"; checkpoints rely on them


def split_words(caption: str) -> list[str]:
    """Return the words and punctuation marks of a caption in lower case, as `word_tokenizer` splits it."""
    lower = normalizers.Lowercase().normalize_str(caption)
    return [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(lower)]


def learn_words(captions: Iterable[str], where: str) -> list[str]:
    """Return the words and punctuation marks of captions in lower case, sorted; at most the `MOST_WORDS` most frequent.

    Args:
        captions: Captions of all clips; empty ones are skipped.
        where: The shards, for messages.

    Raises:
        UserError: No clip has a caption, or all have the same.
    """
    counts: Counter[str] = Counter()
    clips, first, differ = 0, "", False
    for caption in filter(str.strip, captions):
        clips, first, differ = clips + 1, first or caption, differ or (bool(first) and caption != first)
        counts.update(split_words(caption))
    if not clips:
        raise UserError(
            f"no clip in {where} has a caption, so there are no words to learn; tokenize with captions, or use "
            "-c configs/text/none.yaml."
        )
    if not differ:
        short = first if len(first) <= 60 else first[:60] + "..."
        raise UserError(
            f"all captions in {where} are the same ('{short}'), so they tell no clips apart; write different ones, or "
            "use -c configs/text/none.yaml."
        )
    return sorted(
        word for word, _ in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:MOST_WORDS]
    )


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words in lower case; each text ends with "</s>", other words are "<unk>"."""
    numbers = {word: index for index, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", numbers["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def small_t5(words: int, width: int = WIDTH, layers: int = LAYERS) -> T5Config:
    """Return the configuration of an encoder for a vocabulary of that many words, `SPECIAL` not counted."""
    return T5Config(
        vocab_size=len(SPECIAL) + words,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=layers,
        num_decoder_layers=0,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )

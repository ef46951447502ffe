"""A vocabulary from captions."""

from __future__ import annotations

import pytest

from magnet_train.errors import UserError
from magnet_train.text import T5Text, TextEncoder, WordText, text_encoder_from_spec
from magnet_train.text.vocabulary import MOST_WORDS, learn_words

CAPTIONS = ["A slow, sad Piano.", "", "a fast drum loop", "ein schöner Bass, laut"]


def encoders() -> list[TextEncoder]:
    return [WordText("captions", dim=8), T5Text("captions", trainable=True, pretrained=False)]


def test_words_are_those_that_the_tokenizer_finds() -> None:
    words = learn_words(CAPTIONS, "shards")
    assert words == sorted(
        ["a", "slow", ",", "sad", "piano", ".", "fast", "drum", "loop", "ein", "schöner", "bass", "laut"]
    )
    for encoder in encoders():
        assert encoder.lacks_words
        encoder.set_words(words)
        assert not encoder.lacks_words
        assert encoder.tokenizer.unknown_words(CAPTIONS) == []
        assert encoder.tokenizer.unknown_words(["a slow Tuba, sad", "tuba"]) == ["Tuba", "tuba"]
        hidden, mask = encoder(["a fast drum loop", None])
        assert hidden.shape == (2, 5, encoder.dim)
        assert mask.sum(dim=1).tolist() == [5, 0]


def test_only_the_most_frequent_words_stay() -> None:
    captions = [f"word{index} again" for index in range(MOST_WORDS + 5)] + ["word7 word7"]
    words = learn_words(captions, "shards")
    assert len(words) == MOST_WORDS
    assert {"again", "word7"} <= set(words)


@pytest.mark.parametrize("captions", [[], ["", " "]])
def test_without_captions_there_are_no_words(captions: list[str]) -> None:
    with pytest.raises(UserError, match=r"no clip in my_shards has a caption.*none\.yaml"):
        learn_words(captions, "my_shards")


def test_captions_that_are_all_alike_tell_nothing_apart() -> None:
    with pytest.raises(UserError, match=r"all captions in my_shards are the same \('a tone'\)"):
        learn_words(["a tone", "", "a tone"], "my_shards")


def test_a_t5_with_new_words_must_be_trained() -> None:
    with pytest.raises(UserError, match="trainable: true and pretrained: false"):
        T5Text("captions")


@pytest.mark.parametrize("words", ["a word", [1, 2], {"a": 1}])
def test_words_of_a_checkpoint_are_checked(words: object) -> None:
    spec = {**WordText("captions", dim=8, words=["a"]).spec(), "words": words}
    with pytest.raises(UserError, match="export the model again"):
        text_encoder_from_spec(spec)

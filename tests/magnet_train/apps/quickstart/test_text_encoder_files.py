"""The packaged text encoder has every word of the captions, and equals what its script writes."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, T5EncoderModel

import write_text_encoder
from harness.tones.world import PRESETS, ToneWorld
from magnet_train.codecs import packaged_codec

PACKAGED = packaged_codec().with_name("text")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(PACKAGED)


def test_no_caption_holds_an_unknown_word(tokenizer):
    for preset in PRESETS:
        for caption in ToneWorld(preset, seed=11).captions(300, "test"):
            assert tokenizer.unk_token_id not in tokenizer(caption.text).input_ids, caption.text


def test_words_are_lowered_punctuation_split_and_the_end_marked(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("Trumpet playing C4, FAST").input_ids) == [
        "trumpet", "playing", "c4", ",", "fast", "</s>",
    ]  # fmt: skip
    assert tokenizer.convert_ids_to_tokens(tokenizer("").input_ids) == ["</s>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("a banjo").input_ids) == ["a", "<unk>", "</s>"]


def test_a_t5_encoder_is_built_from_the_configuration(tokenizer):
    model = T5EncoderModel(AutoConfig.from_pretrained(PACKAGED))
    batch = tokenizer(["a fast saw on g4", "steady noise"], return_tensors="pt", padding=True)
    states = model(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    assert states.shape == (2, 6, write_text_encoder.WIDTH)
    assert torch.isfinite(states).all()
    assert sum(parameter.numel() for parameter in model.parameters()) < 200_000


def test_the_packaged_files_are_what_the_script_writes(tmp_path):
    write_text_encoder.write_text_encoder(tmp_path)
    for name in ("tokenizer.json", "config.json"):
        written, packaged = (json.loads((folder / name).read_text()) for folder in (tmp_path, PACKAGED))
        for record in (written, packaged):
            record.pop("transformers_version", None)
        assert written == packaged

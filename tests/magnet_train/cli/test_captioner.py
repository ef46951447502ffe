"""`describe --captioner` with a small random Qwen2-Audio, and `tokenize` with its captions."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from known_music import clicks
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    WhisperFeatureExtractor,
)

from datamodules.tokenize.description import read_description
from magnet_train.audio import read_audio
from magnet_train.audio.tempo_and_key import RATE
from magnet_train.cli.captioner import FILES, PROMPT
from magnet_train.cli.main import main

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
WORDS = [
    "<unk>",
    *SPECIAL,
    *["slow", "fast", "piano", "flute", "bell", "drum", "low", "high", "soft", "loud"],
]
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
AUDIO = {
    "num_mel_bins": 16,
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "max_source_positions": 50,  # a second
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        additional_special_tokens=SPECIAL,
    )


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it; the model hears a second, and says one of ten words at a time."""
    folder = tmp_path_factory.mktemp("qwen2_audio")
    torch.manual_seed(0)
    text = Qwen2Config(**TEXT, initializer_range=0.5).to_dict()
    model = Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(
            audio_config=AUDIO | {"model_type": "qwen2_audio_encoder"},
            text_config=text,
            audio_token_index=WORDS.index("<|AUDIO|>"),
        )
    )
    parts = getattr(model, "model", model)  # transformers 5.0 has no inner model
    for parameter in [*parts.audio_tower.parameters(), *parts.multi_modal_projector.parameters()]:
        torch.nn.init.normal_(parameter, std=0.5)  # else all files would sound alike to it
    # It says the words and not the others, so it goes on to the end.
    model.get_output_embeddings().weight.data[:7] = 0
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    Qwen2AudioProcessor(extractor, tokenizer()).save_pretrained(folder)
    # what a folder says about decoding is not followed
    (folder / "generation_config.json").write_text('{"do_sample": true, "num_beams": 64, "eos_token_id": 3}')
    return folder


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    folder.mkdir()
    rng = np.random.default_rng(0)
    soundfile.write(folder / "click.wav", clicks(120, 4.0), RATE)
    soundfile.write(folder / "noise.flac", 0.3 * rng.standard_normal((16_000, 2)), 16_000)
    (folder / "noise.txt").write_text("my own words")
    (folder / "broken.wav").write_bytes(b"RIFF nothing else")
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def by_hand(folder: Path, audio: np.ndarray) -> str:
    """The answer of the model with transformers' own classes, most probable word by most probable word."""
    model = Qwen2AudioForConditionalGeneration.from_pretrained(folder).eval()
    processor = Qwen2AudioProcessor.from_pretrained(folder)
    words = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    words += f"Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=[words], audio=[audio], return_tensors="pt", sampling_rate=16_000)
    answer = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=128, eos_token_id=3)
    (text,) = processor.batch_decode(answer[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())


def test_captions_lie_beside_the_files_and_tokenize_can_use_them(qwen, music, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    before = everything(music)
    words = ["describe", str(music), "--captioner", str(qwen), "--device", "cpu", "--workers", "1"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "generated caption" in printed
    after = everything(music)
    assert before == {name: after[name] for name in before}
    assert set(after) - set(before) == {"click.wav.describe.json", "noise.flac.describe.json"}
    # of a longer file the second in the middle, of the model's own rate
    (click,) = read_audio(music / "click.wav", 16_000, 1)
    (noise,) = read_audio(music / "noise.flac", 16_000, 1)
    click_fields = read_description(music / "click.wav").fields
    noise_fields = read_description(music / "noise.flac").fields
    assert click_fields["bpm"] == 120
    assert click_fields["generated_caption"] == by_hand(qwen, click[24_000:40_000].numpy())
    assert noise_fields["generated_caption"] == by_hand(qwen, noise.numpy())
    assert click_fields["generated_caption"] != noise_fields["generated_caption"]
    assert set(click_fields["generated_caption"].split()) <= set(WORDS)
    assert " ".join(click_fields["generated_caption"].split()[:3]) in printed
    # a file with words of its own keeps them
    shards = tmp_path / "shards"
    words = [
        "tokenize",
        "--audio",
        str(music),
        "--out",
        str(shards),
        "--codec",
        "quickstart",
        "--device",
        "cpu",
    ]
    assert main([*words, "--caption_template", "{generated_caption}"]) == 0
    with tarfile.open(shards / "shard-000000.tar") as tar:
        clips = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]
    assert [clip["text"] for clip in clips] == [click_fields["generated_caption"], "my own words"]


def test_only_what_this_model_has_not_heard(qwen, music, tmp_path):
    assert main(["describe", str(music), "--workers", "1"]) == 0
    plain = read_description(music / "click.wav")
    words = ["describe", str(music), "--device", "cpu", "--workers", "1", "--captioner"]
    assert main([*words, str(qwen)]) == 0
    captioned = read_description(music / "click.wav")
    assert captioned.fields.items() > plain.fields.items()
    assert captioned.confidence == plain.confidence
    state = everything(music), (music / "click.wav.describe.json").stat().st_mtime_ns
    assert main([*words, str(qwen)]) == 0
    assert main(["describe", str(music), "--workers", "1"]) == 0
    assert state == (everything(music), (music / "click.wav.describe.json").stat().st_mtime_ns)
    other = shutil.copytree(qwen, tmp_path / "other")
    model = Qwen2AudioForConditionalGeneration.from_pretrained(other)
    head = model.get_output_embeddings().weight
    torch.nn.init.zeros_(head)  # all words alike: the first, <unk>, which is skipped
    head.data[WORDS.index("drum")] = 1e-3
    model.save_pretrained(other)
    assert main([*words, str(other)]) == 0
    assert (
        read_description(music / "click.wav").fields["generated_caption"]
        != captioned.fields["generated_caption"]
    )


def test_all_of_a_folder_comes_from_the_hub(qwen):
    assert all(any(path.match(pattern) for pattern in FILES) for path in qwen.iterdir())


def another_class(folder: Path) -> None:
    Qwen2ForCausalLM(Qwen2Config(**TEXT)).save_pretrained(folder)


def no_processor(folder: Path) -> None:
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def without_audio(folder: Path) -> None:
    """A model that sees; its weights are not looked at."""
    LlavaConfig(text_config=Qwen2Config(**TEXT).to_dict()).save_pretrained(folder)
    LlavaProcessor(CLIPImageProcessor(), tokenizer(), patch_size=14).save_pretrained(folder)


def template_without_audio(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def code_of_its_own(folder: Path) -> None:
    """Which writes a file where it is run."""
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text(f"open({str(folder / 'was_run')!r}, 'w')")


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            another_class,
            "is not an audio language model: its config.json has model_type qwen2; choose one such as",
        ),
        (no_processor, "has no usable processor"),
        (without_audio, "does not take audio and text: its processor is a LlavaProcessor; choose"),
        (template_without_audio, "cannot caption audio ("),
        (no_config, "cannot be loaded ("),
        (code_of_its_own, "cannot be loaded ("),
        (cut_weights, "cannot be loaded ("),
    ],
)
def test_bad_models_are_one_sentence(
    change: Callable[[Path], None], said: str, qwen: Path, music: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(qwen, tmp_path / "models" / "bad")
    change(tmp_path / "models" / "bad")
    before = everything(music)
    words = ["describe", str(music), "--captioner", "models/bad", "--device", "cpu", "--workers", "1"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert f"captioner models/bad {said}" in error
    assert "Traceback" not in error
    assert everything(music) == before
    assert not (tmp_path / "models" / "bad" / "was_run").exists()

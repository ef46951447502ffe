"""The models that judge sound, of random weights in the formats of the hub: same in, same out, whatever is beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from magnet_train.errors import UserError
from magnet_train.evaluation import AudioTagger, Clap


@pytest.fixture(scope="module")
def clap(clap_folder: Path) -> Clap:
    return Clap.from_pretrained(str(clap_folder))


@pytest.fixture(scope="module")
def tagger(ast_folder: Path) -> AudioTagger:
    return AudioTagger.from_pretrained(str(ast_folder))


def sounds(rate: int, number: int = 5) -> list[torch.Tensor]:
    """Tones of different pitch and length, the longest a second."""
    lengths = np.linspace(0.3, 1.0, number)
    return [
        0.3 * torch.sin(2 * np.pi * (200 + 300 * n) * torch.arange(int(seconds * rate)) / rate)
        for n, seconds in enumerate(lengths)
    ]


def test_clap_embeds_to_unit_length(clap):
    audio = clap.embed_audio(sounds(clap.sample_rate))
    text = clap.embed_text(["a low bell", "a flute"])
    assert audio.shape == (5, 12)
    assert text.shape == (2, 12)
    for rows in (audio, text):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-9)
    assert np.abs(audio[0] - audio[1]).max() > 1e-4  # it does listen


def test_clap_does_not_depend_on_batch_or_run(clap):
    windows = sounds(clap.sample_rate)
    together = clap.embed_audio(windows)
    np.testing.assert_array_equal(clap.embed_audio(windows), together)
    alone = np.concatenate([clap.embed_audio([window]) for window in windows])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    captions = ["a low bell", "a", "a slow high flute piano bell"]
    np.testing.assert_allclose(clap.embed_text(captions, 1), clap.embed_text(captions, 3), atol=1e-5)


def test_clap_equals_transformers_own_way(clap, clap_folder):
    from transformers import ClapFeatureExtractor, ClapModel

    windows = sounds(clap.sample_rate, 3)
    features = ClapFeatureExtractor.from_pretrained(clap_folder)(
        [window.numpy() for window in windows], sampling_rate=48_000, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = ClapModel.from_pretrained(clap_folder).eval().get_audio_features(**features).pooler_output
    np.testing.assert_allclose(clap.embed_audio(windows), theirs.numpy(), atol=1e-6)


def test_captions_beyond_77_tokens_are_cut(clap):
    long = " ".join(["bell"] * 77)
    np.testing.assert_allclose(clap.embed_text([long]), clap.embed_text([f"{long} piano piano"]), atol=1e-6)


def test_probabilities_add_up_and_do_not_depend_on_the_batch(tagger):
    windows = sounds(tagger.sample_rate)
    together = tagger.probabilities(windows)
    assert together.shape == (5, 6)
    np.testing.assert_allclose(together.sum(axis=1), 1)
    alone = np.concatenate([tagger.probabilities([window]) for window in windows])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-4


def test_probabilities_are_the_softmax_of_transformers_logits(tagger, ast_folder):
    from transformers import ASTFeatureExtractor, ASTForAudioClassification

    windows = sounds(tagger.sample_rate, 3)
    features = ASTFeatureExtractor.from_pretrained(ast_folder)(
        [window.numpy() for window in windows], sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        logits = ASTForAudioClassification.from_pretrained(ast_folder).eval()(**features).logits
    np.testing.assert_allclose(tagger.probabilities(windows), logits.softmax(-1).numpy(), atol=1e-6)


def test_a_few_samples_and_silence_give_finite_numbers(clap, tagger):
    for model, embed in ((clap, clap.embed_audio), (tagger, tagger.probabilities)):
        assert np.isfinite(embed([torch.full((3,), 0.1), torch.zeros(model.sample_rate)])).all()


def test_longer_than_a_window_is_refused_not_cut_at_random(clap, tagger):
    for model, embed in ((clap, clap.embed_audio), (tagger, tagger.probabilities)):
        with pytest.raises(ValueError, match="at most"):
            embed([torch.zeros(model.window_samples + 1)])


def test_no_tokenizer_only_stops_the_captions(clap_folder, tmp_path):
    folder = shutil.copytree(clap_folder, tmp_path / "clap")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    clap = Clap.from_pretrained(str(folder))
    assert clap.embed_audio(sounds(clap.sample_rate, 1)).shape == (1, 12)
    with pytest.raises(UserError, match=r"no usable tokenizer .*there is none of tokenizer\.json"):
        clap.embed_text(["a bell"])


def test_what_is_not_such_a_model_is_refused_in_a_sentence(clap_folder, ast_folder, tmp_path):
    with pytest.raises(
        UserError, match=r"of type clap: its config.json has model_type audio-spectrogram-transformer;"
    ):
        Clap.from_pretrained(str(ast_folder))
    with pytest.raises(
        UserError, match=r"of type audio-spectrogram-transformer: its config.json has model_type clap;"
    ):
        AudioTagger.from_pretrained(str(clap_folder))
    with pytest.raises(UserError, match=r"--clap nobody/nothing is neither a folder here nor could it be"):
        Clap.from_pretrained("nobody/nothing", what="--clap")
    with pytest.raises(UserError, match="cannot be loaded"):
        Clap.from_pretrained(str(tmp_path))
    broken = shutil.copytree(clap_folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        Clap.from_pretrained(str(broken))
    incomplete = shutil.copytree(clap_folder, tmp_path / "unheard")
    (incomplete / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"no readable preprocessor_config\.json"):
        Clap.from_pretrained(str(incomplete))


def test_missing_weights_are_not_made_up(clap_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(clap_folder, tmp_path / "clap")
    weights = load_file(folder / "model.safetensors")
    weights.pop("audio_projection.linear1.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the weights audio_projection\.linear1\.weight"):
        Clap.from_pretrained(str(folder))


def test_weights_in_the_old_format_are_read_as_plain_data(clap, clap_folder, tmp_path):
    from safetensors.torch import load_file

    folder = shutil.copytree(clap_folder, tmp_path / "clap")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    old = Clap.from_pretrained(str(folder))
    windows = sounds(clap.sample_rate, 2)
    np.testing.assert_array_equal(old.embed_audio(windows), clap.embed_audio(windows))
    assert old.origin.sha256 != clap.origin.sha256
    torch.save({"evil": Evil(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        Clap.from_pretrained(str(folder))
    assert not (tmp_path / "ran").exists()


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_code_beside_the_weights_is_not_run(clap_folder, tmp_path):
    folder = shutil.copytree(clap_folder, tmp_path / "clap")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass X: pass\n")
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        kinds = ("AutoModel", "AutoFeatureExtractor", "AutoTokenizer", "AutoConfig")
        content["auto_map"] = dict.fromkeys(kinds, "evil.X") | {"AutoTokenizer": ["evil.X", "evil.X"]}
        (folder / name).write_text(json.dumps(content))
    Clap.from_pretrained(str(folder)).embed_text(["a bell"])
    assert not (tmp_path / "ran").exists()


def test_a_model_that_fuses_parts_of_long_audio_is_no_more_random(clap_folder, tmp_path):
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    config = ClapConfig.from_pretrained(clap_folder)
    config.audio_config.enable_fusion = True
    torch.manual_seed(0)
    ClapModel(config).save_pretrained(tmp_path)
    ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="fusion").save_pretrained(tmp_path)
    clap = Clap.from_pretrained(str(tmp_path))
    windows = sounds(clap.sample_rate)
    first = clap.embed_audio(windows)
    for _ in range(3):
        np.testing.assert_array_equal(clap.embed_audio(windows), first)

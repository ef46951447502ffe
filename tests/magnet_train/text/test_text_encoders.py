"""Text encoders from a folder in transformers' format: a random T5 with a vocabulary of a few words."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from magnet_train.errors import UserError
from magnet_train.text import ClassLabels, NoText, T5Text, TextEncoder, WordText, text_encoder_from_spec

WORDS = ["<pad>", "</s>", "<unk>", "a", "low", "high", "bell", "flute"]
DIM = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t5")
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(WORDS), d_model=DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.1
    )
    T5EncoderModel(config).save_pretrained(path)
    return path


@pytest.fixture(params=["frozen", "trainable", "words", "labels", "none", "own words", "own t5"])
def encoder(request: pytest.FixtureRequest, folder: Path) -> TextEncoder:
    return {
        "frozen": lambda: T5Text(str(folder)),
        "trainable": lambda: T5Text(str(folder), trainable=True),
        "words": lambda: WordText(str(folder), dim=DIM),
        "labels": lambda: ClassLabels(["a low bell", "flute"], dim=DIM),
        "none": lambda: NoText(dim=DIM),
        "own words": lambda: WordText("captions", dim=DIM, words=WORDS[3:]),
        "own t5": lambda: T5Text("captions", trainable=True, pretrained=False, words=WORDS[3:]),
    }[request.param]().eval()


def test_shapes_and_the_null_condition(encoder: TextEncoder) -> None:
    hidden, mask = encoder(["a low bell", None, "flute", ""])
    assert hidden.shape == (*mask.shape, encoder.dim)
    assert hidden.shape[0] == 4
    assert hidden.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert hidden.isfinite().all()
    assert not mask[1].any()
    assert not mask[3].any()
    if not isinstance(encoder, NoText):
        assert mask[0].any()
        assert mask[2].any()


def test_all_without_text(encoder: TextEncoder) -> None:
    hidden, mask = encoder([None, ""])
    assert hidden.shape[1] >= 1
    assert hidden.isfinite().all()
    assert not mask.any()


def test_specification_builds_the_same_encoder(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    again = text_encoder_from_spec(encoder.spec(), tmp_path if encoder.id not in ("labels", "none") else None)
    again.load_state_dict(encoder.state_dict())
    texts = ["a low bell", "flute"]
    assert again.spec() == encoder.spec()
    for ours, theirs in zip(encoder(texts), again.eval()(texts), strict=True):
        assert torch.equal(ours, theirs)


def test_t5_states_are_those_of_transformers(folder: Path) -> None:
    hidden, mask = T5Text(str(folder))(["a low bell", "flute"])
    model = T5EncoderModel.from_pretrained(folder).eval()
    ids = torch.tensor([[3, 4, 6, 1], [7, 1, 0, 0]])  # each caption ends in </s>
    attention = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=attention).last_hidden_state
    assert torch.equal(mask, attention.bool())
    assert torch.equal(hidden, expected)


def test_states_of_a_caption_do_not_depend_on_its_neighbours(folder: Path) -> None:
    encoder = T5Text(str(folder))
    alone, _ = encoder(["flute"])
    beside, mask = encoder(["flute", "a low high bell"])
    torch.testing.assert_close(beside[:1, mask[0]], alone)


def test_frozen_t5_is_neither_saved_nor_copied_but_moves(folder: Path) -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = T5Text(str(folder))
            self.layer = nn.Linear(2, 2)

    owner = Owner()
    assert list(owner.state_dict()) == ["layer.weight", "layer.bias"]
    assert sum(p.numel() for p in owner.parameters()) == 6
    double = copy.deepcopy(owner)
    assert double.text._t5 is owner.text._t5
    owner.train()
    assert not owner.text._t5.training  # its dropout stays off
    assert owner.to(torch.float64).text(["flute"])[0].dtype == torch.float64
    assert not owner.text(["flute"])[0].requires_grad


def test_frozen_t5_keeps_its_precision_under_autocast(folder: Path) -> None:
    encoder = T5Text(str(folder))
    expected, _ = encoder(["a low bell"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(["a low bell"])[0], expected)


def test_trainable_t5_gets_gradients_and_is_saved(folder: Path) -> None:
    encoder = T5Text(str(folder), trainable=True)
    encoder(["a low bell"])[0].square().sum().backward()
    assert all(name.startswith("encoder.") for name in encoder.state_dict())
    # The last layers' weights: those before may have no part in a particular caption.
    assert all(p.grad is not None for p in encoder.parameters())
    assert copy.deepcopy(encoder).encoder is not encoder.encoder


def test_long_captions_are_cut_with_one_warning_and_keep_their_end(folder: Path) -> None:
    encoder = T5Text(str(folder), max_length=4)
    with pytest.warns(UserWarning, match="a low high bell") as caught:
        _, mask = encoder(["a low high bell flute", "flute"])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(["a low high bell flute"])
    assert mask.sum(dim=1).tolist() == [4, 2]
    ids, _ = encoder.tokenizer(["a low high bell flute"])
    assert ids.tolist() == [[3, 4, 5, 1]]


def test_short_captions_give_no_warning(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        T5Text(str(folder), max_length=4)(["a low bell"])


def test_labels_are_looked_up_and_strangers_named() -> None:
    encoder = ClassLabels(["rain", "wind"], dim=4)
    hidden, _ = encoder(["wind", "rain"])
    assert torch.equal(hidden[:, 0], encoder.embedding.weight[[1, 0]])
    with pytest.raises(UserError, match="'snow' is not one of the labels rain, wind"):
        encoder(["snow"])
    with pytest.raises(UserError, match="labels is empty"):
        ClassLabels([])


def test_words_are_vectors_of_their_own(folder: Path) -> None:
    encoder = WordText(str(folder), dim=4)
    first, second = (encoder([text])[0][0] for text in ("low bell", "bell low"))
    assert torch.equal(first[[0, 1]], second[[1, 0]])


def test_packaged_text_encoder_knows_the_quickstart_words() -> None:
    encoder = T5Text("quickstart", trainable=True, pretrained=False)
    unknown = encoder.tokenizer.tokenizer.unk_token_id
    ids, _ = encoder.tokenizer(["xylophone"])
    assert unknown is None or unknown in ids[0].tolist()
    assert encoder([None])[0].isfinite().all()


def _empty(path: Path, _: Path) -> None:
    path.mkdir()


def _cut(path: Path, folder: Path) -> None:
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])


def _lacking(path: Path, folder: Path) -> None:
    _cut(path, folder)
    weights: dict[str, Tensor] = load_file(folder / "model.safetensors")
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, path / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("spoil", [_empty, _cut, _lacking])
def test_unusable_folders_are_one_sentence(
    folder: Path, tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    spoil(tmp_path / "bad", folder)
    with pytest.raises(UserError, match="text encoder") as caught:
        T5Text(str(tmp_path / "bad"))
    assert str(tmp_path / "bad") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_and_frozen_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="random and frozen"):
        T5Text(str(folder), pretrained=False)


def test_the_revision_of_a_hub_model_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hub's cache as a download leaves it, so that all but the download is the real thing."""
    old, new = "1" * 40, "2" * 40
    home = tmp_path / "models--nobody--tiny-t5"
    for commit in (old, new):
        shutil.copytree(folder, home / "snapshots" / commit)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: 2 * w for name, w in weights.items()},
        home / "snapshots" / new / "model.safetensors",
        {"format": "pt"},
    )
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(old)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = T5Text("nobody/tiny-t5")
    assert encoder.spec()["revision"] == old
    (home / "refs" / "main").write_text(new)  # the author uploads other weights
    again = text_encoder_from_spec(encoder.spec())
    assert torch.equal(again(["a bell"])[0], encoder(["a bell"])[0])
    assert not torch.equal(T5Text("nobody/tiny-t5")(["a bell"])[0], encoder(["a bell"])[0])


def test_a_folder_with_code_of_its_own_is_not_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "t5")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": [None, "theirs.Theirs"]}, "tokenizer_class": "Theirs"}
    (tmp_path / "t5" / "tokenizer_config.json").write_text(json.dumps(settings))
    mark = tmp_path / "ran"
    (tmp_path / "t5" / "theirs.py").write_text(f"open({str(mark)!r}, 'w')\nclass Theirs: pass\n")
    with contextlib.suppress(UserError):  # it may be read by what tokenizer.json says
        T5Text(str(tmp_path / "t5"))
    assert not mark.exists()


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="network"):
        T5Text("nobody/no-such-t5")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"kind": "clap"}, "clap"),
        ({"kind": "t5", "trainable": True}, "needs 'name' of type str"),
        ({"kind": "none", "dim": "8"}, "needs 'dim' of type int"),
        ({}, "None"),
    ],
)
def test_unknown_descriptions(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        text_encoder_from_spec(spec)


@pytest.mark.parametrize("kind", [T5Text, WordText])
def test_a_relative_folder_is_recorded_with_its_full_path(
    kind: Callable[[str], TextEncoder], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    spec = kind(folder.name).spec()
    assert spec["name"] == str(folder)
    monkeypatch.chdir(tmp_path)
    text_encoder_from_spec(spec, None)

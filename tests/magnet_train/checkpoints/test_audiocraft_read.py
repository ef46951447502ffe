"""Models of the reference come in whole, under whatever form they lie around, or are refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from magnet_train import Magnet
from magnet_train.checkpoints.audiocraft.names import from_audiocraft_names
from magnet_train.checkpoints.audiocraft.read import reference_layout
from magnet_train.checkpoints.load import read_model
from magnet_train.checkpoints.torch_file import load_plain, to_plain
from magnet_train.cli.main import main
from magnet_train.errors import UserError

RECORDED = Path(__file__).parents[2] / "reference" / "data"
PUBLISHED = json.loads((RECORDED / "published_shapes.json").read_text())
VARIANTS = PUBLISHED["key_name_variants_xsmall_1layer_card16"]
Rewrite = Callable[[Callable[[dict[str, Any], dict[str, Any]], None]], Path]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder as the reference exports it: recorded weights in fp16, and the name of a codec."""
    folder = tmp_path / "release"
    folder.mkdir()
    shutil.copy(RECORDED / "lm_a" / "state_dict.bin", folder)
    pointer = {"pretrained": "facebook/encodec_32khz", "exported": True, "version": "1.4.0a2"}
    torch.save(pointer, folder / "compression_state_dict.bin")
    return folder


@pytest.fixture
def rewrite(release: Path) -> Rewrite:
    """Return a function that changes (package, configuration) of the release."""

    def write(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
        package = torch.load(release / "state_dict.bin", weights_only=True)
        config = yaml.safe_load(package["xp.cfg"])
        change(package, config)
        if isinstance(package.get("xp.cfg"), str):
            package["xp.cfg"] = yaml.safe_dump(config)
        torch.save(package, release / "state_dict.bin")
        return release

    return write


def same_weights(first: Path, second: Path) -> bool:
    a, b = read_model(first).weights, read_model(second).weights
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        Magnet.from_pretrained(path)
    assert "\n" not in str(caught.value)
    assert str(path.parent if path.is_file() else path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(PUBLISHED["models"]))
def test_released_layouts_are_matched_name_by_name(name: str) -> None:
    """All six released models and the large ones, on the meta device: names and shapes, none left over."""
    model = PUBLISHED["models"][name]
    theirs, layout = model["transformer_lm"], PUBLISHED["layouts"][model["layout"]]
    sizes = {key: theirs[key] for key in ("n_q", "card", "dim", "num_heads", "num_layers")}
    text_dim = {"t5-base": 768, "t5-large": 1024}[model["t5"]]
    ours = reference_layout({**sizes, "text_dim": text_dim})
    assert {key: list(tensor.shape) for key, tensor in ours.items()} == layout
    assert sum(tensor.numel() for tensor in ours.values()) == model["n_params"]
    there = from_audiocraft_names(ours)
    assert len(there) == len(layout) + 2 * 2 * theirs["num_layers"] - (
        theirs["n_q"] - 1
    )  # q, k, v apart; heads in one


def test_everything_that_the_release_says(release: Path) -> None:
    magnet, stored = Magnet.from_pretrained(release), read_model(release)
    described = json.loads((RECORDED / "lm_a" / "model.json").read_text())
    for name in ("n_q", "card", "dim", "num_heads", "num_layers", "span_len", "subcodes_context"):
        assert magnet.lm.config[name] == described[name]
    assert magnet.lm.config["text_key_mask"] is False
    assert magnet.segment_duration == described["segment_duration"]
    assert stored.codec.id == "facebook/encodec_32khz"
    assert stored.codec.frame_rate == described["frame_rate"]
    assert stored.codec.sha256 == ""
    assert magnet.decoding.parity
    assert magnet.decoding.decoding_steps == (20, 10, 10, 10)


def test_half_precision_stays_what_it_is(release: Path) -> None:
    weights = read_model(release).weights
    stored = torch.load(release / "state_dict.bin", weights_only=True)["best_state"]
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert torch.equal(weights["lm.embeddings.0.weight"], stored["emb.0.weight"])


def test_bare_file_is_as_good_as_the_folder(release: Path) -> None:
    assert same_weights(release, release / "state_dict.bin")
    assert read_model(release / "state_dict.bin").codec == read_model(release).codec


@pytest.mark.parametrize("sharded", [False, True])
def test_training_checkpoint(release: Path, tmp_path: Path, sharded: bool) -> None:
    """As the reference's solver saves it: the configuration an OmegaConf object, tensors one level down."""
    package = torch.load(release / "state_dict.bin", weights_only=True)
    best = {"model": package["best_state"]}
    training = {
        "best_state": {} if sharded else best,
        "fsdp_best_state": best if sharded else {},
        "xp.cfg": OmegaConf.create(package["xp.cfg"]),
        "history": [{"train": {"ce": 5.0}}],
        "model": {},
    }
    torch.save(training, tmp_path / "checkpoint.th")
    assert same_weights(release, tmp_path / "checkpoint.th")
    ours, theirs = read_model(tmp_path / "checkpoint.th"), read_model(release)
    assert (ours.lm, ours.decoding, ours.segment_duration) == (
        theirs.lm,
        theirs.decoding,
        theirs.segment_duration,
    )


def test_training_checkpoint_whose_configuration_was_resolved(release: Path, tmp_path: Path) -> None:
    """As hydra leaves it: what `${now:...}` gave is remembered in a defaultdict beside the values."""
    package = torch.load(release / "state_dict.bin", weights_only=True)
    config = OmegaConf.create(package["xp.cfg"])
    config["dora"] = {
        "dir": "${now:%Y}",
        "path": Path("/store/xp"),
        "names": ("a", "b"),
        "raw": b"x",
    }
    OmegaConf.clear_resolver("now")
    OmegaConf.register_new_resolver("now", lambda form: "2026" if form == "%Y" else "", use_cache=True)
    assert config.dora.dir == "2026"
    assert config._metadata.resolver_cache  # the test is about it
    training = {"best_state": {"model": package["best_state"]}, "xp.cfg": config, "history": []}
    torch.save(training, tmp_path / "checkpoint.th")
    assert same_weights(release, tmp_path / "checkpoint.th")
    ours, theirs = read_model(tmp_path / "checkpoint.th"), read_model(release)
    assert (ours.lm, ours.decoding, ours.text) == (theirs.lm, theirs.decoding, theirs.text)
    plain = to_plain(load_plain(tmp_path / "checkpoint.th")["xp.cfg"])["dora"]
    assert plain == {"dir": "${now:%Y}", "path": "/store/xp", "names": ["a", "b"], "raw": b"x"}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_name_variants(variant: str, rewrite: Rewrite, release: Path) -> None:
    """Another attention backend is the same model; other parts are another model, and all of them are named."""
    layout = VARIANTS[variant]
    released = VARIANTS["memory_efficient=true (released)"]
    generator = torch.Generator().manual_seed(0)

    def change(package: dict[str, Any], config: dict[str, Any]) -> None:
        package["best_state"] = {
            name: torch.randn(shape, generator=generator) for name, shape in layout.items()
        }
        config["transformer_lm"].update(dim=64, num_heads=4, num_layers=1, n_q=4, card=16)

    folder = rewrite(change)
    surplus = {name.replace(".mha.", ".") for name in layout} - released.keys()
    if not surplus:
        weights = read_model(folder).weights
        packed = next(name for name in layout if "self_attn" in name and name.endswith("in_proj_weight"))
        stored = torch.load(release / "state_dict.bin", weights_only=True)["best_state"][packed]
        assert torch.equal(weights["lm.layers.0.self_attention.k_proj.weight"], stored[64:128])
    else:
        message = refusal(folder)
        assert all(f"unexpected {name}" in message for name in surplus)


def test_every_key_that_does_not_fit_is_named(rewrite: Rewrite) -> None:
    def damage(package: dict[str, Any], config: dict[str, Any]) -> None:
        state = package["best_state"]
        del state["linears.2.weight"], state["transformer.layers.0.norm1.bias"]
        state["stray"] = torch.zeros(1)
        state["transformer.layers.0.self_attn.in_proj_weight"] = torch.zeros(7, 64)
        state["emb.1.weight"] = torch.zeros(3, 64)

    message = refusal(rewrite(damage))
    for name in (
        "missing linears.2.weight",
        "missing transformer.layers.0.norm1.bias",
        "unexpected stray",
        "transformer.layers.0.self_attn.in_proj_weight is [7, 64] instead of [192, 64]",
        "emb.1.weight is [3, 64] instead of [33, 64]",
    ):
        assert name in message


@pytest.mark.parametrize(("setting", "value"), [("n_q", 3), ("card", 31), ("num_heads", 3), ("dim", "wide")])
def test_configuration_for_another_model(rewrite: Rewrite, setting: str, value: Any) -> None:
    refusal(rewrite(lambda _, config: config["transformer_lm"].update({setting: value})))


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("transformer_lm", "bias_ff", True),
        ("transformer_lm", "positional_embedding", "sin_rope"),
        ("transformer_lm", "positional_embedding", ["sin"]),
        ("codebooks_pattern", "modeling", "delay"),
        ("fuser", "prepend", ["description"]),
    ],
)
def test_architecture_that_we_do_not_build(rewrite: Rewrite, section: str, setting: str, value: Any) -> None:
    assert f"{section}.{setting}" in refusal(
        rewrite(lambda _, config: config[section].update({setting: value}))
    )


def test_rotary_positions_of_a_release(release: Path, rewrite: Rewrite) -> None:
    """Their frequencies are buffers of the file; float16 rounds them."""
    shutil.copy(RECORDED / "lm_rope" / "state_dict.bin", release)
    own = Magnet.from_pretrained(release)
    assert own.lm.positions == "rotary"

    def in_half(package: dict[str, Any], _: dict[str, Any]) -> None:
        package["best_state"] = {name: tensor.half() for name, tensor in package["best_state"].items()}

    assert Magnet.from_pretrained(rewrite(in_half)).lm.positions == "rotary"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("transformer.rope.frequencies"), "missing transformer.rope.frequencies"),
        (
            lambda state: state["transformer.layers.1.self_attn.rope.frequencies"].mul_(1.1),
            "transformer.layers.1.self_attn.rope.frequencies of another period than 10,000",
        ),
    ],
)
def test_rotary_positions_of_another_kind(
    release: Path, rewrite: Rewrite, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    shutil.copy(RECORDED / "lm_rope" / "state_dict.bin", release)
    assert words in refusal(rewrite(lambda package, _: change(package["best_state"])))


@pytest.mark.parametrize("section", ["transformer_lm", "masking", "dataset", "conditioners", "sample_rate"])
def test_configuration_that_lacks_a_section(rewrite: Rewrite, section: str) -> None:
    assert section in refusal(rewrite(lambda _, config: config.pop(section)))


def test_configuration_that_is_no_yaml(rewrite: Rewrite) -> None:
    refusal(rewrite(lambda package, _: package.update({"xp.cfg": 3})))


def test_file_without_weights(rewrite: Rewrite) -> None:
    assert "best_state" in refusal(rewrite(lambda package, _: package.pop("best_state")))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated(release: Path, share: float) -> None:
    file = release / "state_dict.bin"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    refusal(release)


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("file", ["state_dict.bin", "compression_state_dict.bin"])
def test_no_code_of_a_release_runs(release: Path, tmp_path: Path, file: str) -> None:
    package = torch.load(release / file, weights_only=True)
    torch.save({**package, "version": Trap(tmp_path / "ran")}, release / file)
    assert "could run code" in refusal(release)
    assert not (tmp_path / "ran").exists()


def test_codec_by_its_pointer_or_else_by_the_configuration(release: Path) -> None:
    torch.save({"pretrained": "me/other_codec"}, release / "compression_state_dict.bin")
    assert read_model(release).codec.id == "me/other_codec"
    (release / "compression_state_dict.bin").unlink()
    assert read_model(release).codec.id == "facebook/encodec_32khz"


def test_codec_in_the_references_own_format_is_carried_but_not_decoded(release: Path, tmp_path: Path) -> None:
    shutil.copy(RECORDED / "lm_b" / "state_dict.bin", release)  # its text states are as wide as its T5's
    torch.save({"best_state": {"w": torch.ones(3)}, "xp.cfg": "{}"}, release / "compression_state_dict.bin")
    magnet = Magnet.from_pretrained(release)
    with pytest.raises(UserError, match="own format"):
        _ = magnet.codec
    magnet.save_pretrained(tmp_path / "ours")
    Magnet.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "back", format="audiocraft")
    kept = (tmp_path / "back" / "compression_state_dict.bin").read_bytes()
    assert kept == (release / "compression_state_dict.bin").read_bytes()


def test_codec_file_that_holds_nothing_useful(release: Path) -> None:
    torch.save({"something": 1}, release / "compression_state_dict.bin")
    assert "compression_state_dict.bin" in refusal(release)


def test_licence_of_the_releases_card(release: Path) -> None:
    assert read_model(release).licence == "unspecified"
    (release / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    assert Magnet.from_pretrained(release).licence == "cc-by-nc-4.0"


def test_raw_weights_of_what_has_only_one_set(release: Path, tmp_path: Path, capsys: Any) -> None:
    for path in (release, release / "state_dict.bin"):
        options = ["--checkpoint", str(path), "--out", str(tmp_path / "out"), "--raw"]
        assert main(["export", *options]) == 1
        assert "one set of weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_text_encoder_is_looked_for_only_when_it_is_needed(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    magnet = Magnet.from_pretrained(release)
    with pytest.raises(UserError, match="text encoder t5-"):
        magnet.generate_tokens(["a low bell"])


@pytest.mark.parametrize(
    ("name", "licence"),
    [("facebook/magnet-small-10secs", "CC-BY-NC-4.0"), ("me/model", "unspecified")],
)
def test_release_in_the_hubs_cache(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, licence: str
) -> None:
    """A cache as huggingface_hub lays it out, and no network: the released weights are not for commercial use."""
    repository = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(release, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    magnet = Magnet.from_pretrained(name)
    assert magnet.licence == licence
    magnet.save_pretrained(tmp_path / "out")
    assert licence.lower() in (tmp_path / "out" / "README.md").read_text()
    assert "not for commercial use" in (tmp_path / "out" / "README.md").read_text().lower()
    assert main(["inspect", name]) == 0

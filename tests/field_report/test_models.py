"""Files of models that promise too much or hold nothing usable: one sentence, and no memory taken for the promise."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from magnet_train import Magnet
from magnet_train.checkpoints.bundle import ModelBundle
from magnet_train.checkpoints.export import save_export
from magnet_train.checkpoints.load import read_bundle, read_model
from magnet_train.codecs import (
    encodec,  # noqa: F401  its imports take more memory than the promises may
    load_codec,
    packaged_codec,
)
from magnet_train.decoding import DecodingConfig
from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer
from magnet_train.text.encoder import folder_of
from magnet_train.tokens import CodecInfo

RECORDED = Path(__file__).parents[1] / "reference" / "data" / "lm_b"
PROMISED = 10**9
ROOM = 600 * 2**20  # bytes; the smallest of the promises below is of gigabytes
Change = Callable[[dict[str, Any]], None]


@contextmanager
def little_room() -> Iterator[None]:
    """Let the kernel refuse more memory than `ROOM`, so that taking it is another error than the right one."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refusal(source: Path) -> str:
    with little_room(), pytest.raises(UserError) as caught:
        Magnet.from_pretrained(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.fixture(scope="module")
def tiny() -> ModelBundle:
    """A model of a few thousand numbers that needs no text encoder."""
    torch.manual_seed(0)
    lm = MagnetTransformer(2, 8, text_dim=8, dim=16, num_heads=2, num_layers=1)
    return ModelBundle(
        source="tiny",
        lm=lm.config,
        text={"kind": "none", "dim": 8},
        codec=CodecInfo("me/codec", "0" * 64, 8000, 1, 50.0, n_q=2, card=8),
        decoding=DecodingConfig(decoding_steps=(2, 2)),
        segment_duration=1.0,
        weights={f"lm.{name}": tensor for name, tensor in lm.state_dict().items()},
    )


@pytest.fixture
def checkpoint(tiny: ModelBundle, tmp_path: Path) -> Callable[[Change], Path]:
    """Return a function that writes a `.ckpt` after a change."""

    def write(change: Change) -> Path:
        record = {
            "format": 1,
            "lm": dict(tiny.lm),
            "text": dict(tiny.text),
            "codec": tiny.codec.to_dict(),
            "decoding": {**vars(tiny.decoding), "decoding_steps": [2, 2]},
            "segment_duration": 1.0,
        }
        content = {"magnet_train": record, "state_dict": dict(tiny.weights), "global_step": 1}
        change(content)
        torch.save(content, tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    return write


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a release of audiocraft, or a training checkpoint, after a change."""

    def write(change: Change, training: bool = False) -> Path:
        package = torch.load(RECORDED / "state_dict.bin", weights_only=True)
        config = yaml.safe_load(package["xp.cfg"])
        package["xp.cfg"] = config
        change(package)
        if training:
            package |= {"xp.cfg": OmegaConf.create(config), "best_state": {"model": package["best_state"]}}
        else:
            package["xp.cfg"] = yaml.safe_dump(config)
        path = tmp_path / ("checkpoint.th" if training else "state_dict.bin")
        torch.save(package, path)
        return path

    return write


SETTINGS = [
    *(("lm", name, PROMISED) for name in ("n_q", "card", "text_dim", "dim", "num_heads", "num_layers")),
    *(("lm", name, PROMISED) for name in ("span_len", "subcodes_context")),
    *(
        ("lm", name, value)
        for name in ("n_q", "num_layers", "dim")
        for value in (0, -1, 2.5, True, "4", None)
    ),
    ("decoding", "decoding_steps", [PROMISED, 2]),
    ("decoding", "decoding_steps", [2.5, 2]),
    ("decoding", "temperature", "hot"),
    ("text", "dim", PROMISED),
    ("codec", "frame_rate", 10.0**18),
    ("codec", "sample_rate", 0),
    ("codec", "n_q", PROMISED),
]


@pytest.mark.case("B18")
@pytest.mark.parametrize(("section", "name", "value"), SETTINGS)
def test_settings_of_a_checkpoint_and_of_an_export(
    tiny: ModelBundle,
    checkpoint: Callable[[Change], Path],
    tmp_path: Path,
    section: str,
    name: str,
    value: Any,
) -> None:
    refusal(checkpoint(lambda content: content["magnet_train"][section].update({name: value})))
    save_export(tiny, tmp_path / "export")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    config[section][name] = value
    (tmp_path / "export" / "config.json").write_text(json.dumps(config))
    refusal(tmp_path / "export")


@pytest.mark.case("B18")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name", ["transformer_lm.n_q", "transformer_lm.card", "transformer_lm.dim", "transformer_lm.num_layers"]
)
def test_settings_of_the_references_models(release: Callable[..., Path], name: str, training: bool) -> None:
    section, setting = name.split(".")

    def promise(package: dict[str, Any]) -> None:
        package["xp.cfg"][section][setting] = PROMISED

    assert str(PROMISED) in refusal(release(promise, training))


@pytest.mark.case("B18")
@pytest.mark.parametrize("steps", [[PROMISED] * 4, ["many"], [2.5]])
def test_steps_of_the_references_models(release: Callable[..., Path], steps: list[Any]) -> None:
    refusal(release(lambda package: package["xp.cfg"]["generate"]["lm"].update(decoding_steps=steps)))


@pytest.mark.case("B18")
@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(PROMISED),
        torch.zeros(1).expand(PROMISED, PROMISED),
        torch.empty(PROMISED, device="meta"),
        torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), (PROMISED, PROMISED)),
        torch.zeros(3, dtype=torch.int8),
    ],
    ids=["expanded", "expanded twice", "meta", "sparse", "whole numbers"],
)
def test_weights_that_are_larger_than_what_is_stored(
    checkpoint: Callable[[Change], Path], release: Callable[..., Path], tensor: torch.Tensor
) -> None:
    heads = "lm.heads"
    assert heads in refusal(checkpoint(lambda content: content["state_dict"].update({heads: tensor})))
    refusal(release(lambda package: package["best_state"].update({"linears.0.weight": tensor})))


@pytest.mark.case("B18")
@pytest.mark.parametrize(
    "change",
    [
        {"codebook_size": PROMISED},
        {"num_filters": 10**7},
        {"hidden_size": 10**8},
        {"num_residual_layers": PROMISED},
        {"num_lstm_layers": PROMISED},
        {"target_bandwidths": [1e12]},
        {"upsampling_ratios": [10**6] * 4},
        {"upsampling_ratios": [0]},
    ],
)
def test_settings_of_a_codec(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = _copy(packaged_codec(), tmp_path / "codec", change)
    with little_room(), pytest.raises(UserError, match="codec") as caught:
        load_codec(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.case("B18")
@pytest.mark.parametrize("change", [{"vocab_size": PROMISED}, {"num_layers": PROMISED}, {"d_ff": PROMISED}])
def test_settings_of_a_text_encoder_that_was_trained_along(
    tiny: ModelBundle, tmp_path: Path, change: dict[str, Any]
) -> None:
    source = _copy(folder_of("quickstart"), tmp_path / "text", change)
    text = {"kind": "t5", "name": "quickstart", "trainable": True, "max_length": 9}
    weights = tiny.weights | {"text.encoder.shared.weight": torch.ones(9, 8)}
    save_export(replace(tiny, text=text, text_folder=source, weights=weights), tmp_path / "export")
    assert "text" in refusal(tmp_path / "export")


def _copy(source: Path, target: Path, change: dict[str, Any]) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | change))
    return target


@pytest.mark.case("A16")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(
    tiny: ModelBundle,
    checkpoint: Callable[[Change], Path],
    release: Callable[..., Path],
    tmp_path: Path,
    value: float,
) -> None:
    broken = {**tiny.weights, "lm.out_norm.bias": torch.full((16,), value)}
    assert "lm.out_norm.bias" in refusal(checkpoint(lambda content: content.update(state_dict=broken)))
    assert "out_norm.bias" in refusal(
        release(lambda package: package["best_state"]["out_norm.bias"].fill_(value))
    )
    save_export(replace(tiny, weights=broken), tmp_path / "export")
    assert "lm.out_norm.bias" in refusal(tmp_path / "export")


@pytest.mark.case("A16")
def test_averaged_weights_that_are_no_numbers(
    tiny: ModelBundle, checkpoint: Callable[[Change], Path]
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["current_model_state"] = content["state_dict"]
        content["state_dict"] = {**tiny.weights, "lm.heads": torch.full((2, 8, 16), float("nan"))}

    path = checkpoint(change)
    assert "lm.heads" in refusal(path)
    assert read_model(path, raw=True).training["weights"] == "raw"


@pytest.mark.case("A16")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
        ({"alpha": "16"}, "alpha"),
        ({"rank": 0}, "rank"),
        ({"rank": PROMISED}, "rank"),
        ({"rank": 3}, "rank"),
        ({"weight": float("nan")}, "lora_A"),
    ],
)
def test_adapters(checkpoint: Callable[[Change], Path], change: dict[str, Any], message: str) -> None:
    path = "lm.layers.0.self_attention.q_proj.lora_{}.default.weight"

    def adapt(content: dict[str, Any]) -> None:
        content["magnet_train"]["adapter"] = {"kind": "lora", "rank": 2, "alpha": 4.0} | change
        content["state_dict"] = {
            path.format("A"): torch.full((2, 16), change.get("weight", 1.0)),
            path.format("B"): torch.ones(16, 2),
        }

    with little_room(), pytest.raises(UserError, match=message):
        read_bundle(checkpoint(adapt))


@pytest.mark.case("A16")
def test_a_codec_whose_weights_are_no_numbers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = _copy(packaged_codec(), tmp_path / "codec", {})
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("bias"))
    save_file(
        weights | {name: weights[name].fill_(float("nan"))}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match="NaN"):
        load_codec(str(folder))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(PROMISED),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@pytest.mark.case("B18")
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data())
def test_any_value_in_a_configuration_is_read_or_refused(
    tiny: ModelBundle, tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "export"
    if not folder.exists():
        save_export(tiny, folder)
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    section = data.draw(
        st.sampled_from(["lm", "text", "codec", "decoding", "training", "data", "base", None])
    )
    target = config if section is None else config[section]
    name = data.draw(st.sampled_from(sorted(target) or ["x"]) | st.text(max_size=4))
    target[name] = data.draw(ANYTHING)
    (folder / "config.json").write_text(json.dumps(config))
    with little_room(), suppress(UserError):  # any other error is the fault that this is about
        Magnet.from_pretrained(folder)

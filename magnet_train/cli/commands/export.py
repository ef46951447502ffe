"""Export a checkpoint or any other model as a folder: ours (safetensors, model card), or audiocraft's pair of files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from magnet_train.cli.console import ProgressBar, count
from magnet_train.cli.options import AdapterOptions, DeviceOptions, SamplerOptions, declare, flag, option
from magnet_train.errors import UserError

if TYPE_CHECKING:
    from magnet_train.pipeline.magnet import Magnet

MEASURED = 32  # clips of a step profile


@dataclass(frozen=True)
class ExportRequest(SamplerOptions, AdapterOptions):
    """The options of `export`."""

    checkpoint: str = option(
        "checkpoint of `fit` (runs/x/last.ckpt), or any model: a folder of `export`, a release of audiocraft (folder or "
        "state_dict.bin), a hub id",
        required=True,
        metavar="PATH",
    )
    out: Path = option("folder to write; must be empty or new", required=True, metavar="DIR")
    format: Literal["magnet", "audiocraft"] = option(
        "magnet: safetensors, config.json and a card; audiocraft: state_dict.bin and compression_state_dict.bin, which "
        "its MAGNeT.get_pretrained(DIR) reads",
        choices=["magnet", "audiocraft"],
        default="magnet",
    )
    raw: bool = flag("take the trained weights instead of their moving average")
    profile: Path | None = option(
        "measure how many decoding steps each codebook needs, on up to 32 clips of this folder of held-out shards, and "
        "store the result for generate --quality",
        metavar="VAL_SHARDS",
    )
    licence: str | None = option(
        "licence for the model card, an SPDX id such as CC-BY-4.0 (default: that of the base model)",
        metavar="ID",
    )


add_arguments = declare(ExportRequest)


def run(request: ExportRequest) -> None:
    """Write the folder; raises `UserError` if the model cannot be read, or not be stored in that format."""
    from magnet_train.checkpoints.audiocraft.names import CODEC_FILE
    from magnet_train.checkpoints.card import NO_CODEC, note_on
    from magnet_train.models.transformer import count_parameters
    from magnet_train.pipeline.magnet import Magnet

    device = "cpu" if request.profile is None else DeviceOptions(device=None).chosen_device()
    magnet = Magnet.from_pretrained(request.checkpoint, device, request.raw)
    request.add_adapter(magnet)
    if request.profile is not None:
        _measure_passes(magnet, request.profile)
    magnet.decoding = request.decoding(magnet)
    magnet.save_pretrained(request.out, licence=request.licence, format=request.format)
    kinds = {"ema": ", averaged weights", "raw": ", raw weights"}
    weights = kinds.get(str(magnet.training.get("weights")), "")
    size = f"a transformer of {count_parameters(magnet.lm):,} parameters"
    print(f"wrote {request.out}: {size}{weights}, licence {request.licence or magnet.licence}")
    if note_on(magnet.licence):  # the base's, whatever --licence is
        print(note_on(magnet.licence))
    if request.format == "audiocraft":
        if not (request.out / CODEC_FILE).exists():
            print(NO_CODEC)
        print(f"try it: audiocraft.models.MAGNeT.get_pretrained('{request.out}')")
    else:
        print(f"try it: magnet-train generate --model {request.out} --text '...' --out clips")


def _measure_passes(magnet: Magnet, shards: Path) -> None:
    """Measure the step profile on clips of a folder of shards, evenly spread, and print what it chooses.

    The weights stay in float32, since they are stored; what computes with them is as in `--precision auto`.
    """
    import numpy as np
    import torch

    from datamodules.shards.reading import ShardReader
    from magnet_train.decoding.step_profile import LOSS
    from magnet_train.models.precision import compute_dtype, dtype_name

    reader = ShardReader(shards)
    remedy = f"give shards of codec {magnet.codec_info.id}"
    magnet.codec_info.require_same_tokens(reader.manifest.codec, "the model", str(shards), remedy)
    numbers = np.linspace(0, len(reader) - 1, min(len(reader), MEASURED)).astype(np.int64)
    clips = []
    for sample in reader.read(numbers):
        if isinstance(sample, UserError):
            raise sample
        clips.append((sample.metadata.get("text"), torch.from_numpy(sample.tokens.astype(np.int64))))
    device, dtype = magnet.device, compute_dtype("auto", magnet.device, magnet.lm.dim)
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
    with ProgressBar("measuring passes", "passes") as bar, mixed:
        profile = magnet.measure_passes(clips, bar.update)
    print(f"measured on {count(len(clips), 'clip')} in {dtype_name(dtype)}")
    for quality in LOSS:
        print(f"--quality {quality}: {','.join(map(str, profile.choose(quality)))} passes")

"""Options of `fit`, `validate`, `test` and `predict` besides those of Lightning's trainer, the model and the data."""

from __future__ import annotations

from typing import Literal

from jsonargparse.typing import restricted_number_type
from lightning.pytorch.cli import LightningArgumentParser

from magnet_train.training.finetune import TrainableParameters

Resume = Literal["never", "auto", "required"]
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])
Minutes = restricted_number_type("Minutes", float, [(">", 0), ("<=", 1_000_000)])


def add_options(parser: LightningArgumentParser) -> None:
    """Add the options, and link what has one source: the run's folder, and the data's clip length, seed and codec."""
    parser.add_argument(
        "--seed_everything",
        type=bool | Seed,
        default=0,
        help="seed of the first weights, true for a random one; data.seed seeds the data",
    )
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="checkpoint that `fit` saved, to resume from or to evaluate",
    )
    parser.add_argument(
        "--run",
        type=str,
        default="runs/default",
        help="folder of this run: config.yaml, metrics, checkpoints, samples",
    )
    parser.add_argument(
        "--global_batch",
        type=int | None,
        default=None,
        help="clips of one optimizer step over all devices; sets trainer.accumulate_grad_batches",
    )
    parser.add_argument(
        "--resume",
        type=Resume,
        default="never",
        help="how `fit` treats checkpoints in the run's folder: never (refuse a folder that has some), auto (resume "
        "from the newest readable one, if any), required (fail without one)",
    )
    parser.add_argument(
        "--rank_timeout",
        type=Minutes,
        default=10.0,
        help="minutes without an answer after which a rank counts as dead and the run ends",
    )
    parser.add_argument(
        "--init_from",
        type=str | None,
        default=None,
        help="model whose weights to start from, in any format that `generate` reads; its sizes and text encoder "
        "replace those of the configuration. To continue an interrupted run, give --resume (as well)",
    )
    parser.add_subclass_arguments(
        TrainableParameters,
        "tuning",
        required=False,
        help="which parameters train, magnet_train.training.finetune.LoRA for example; all by default",
    )
    parser.link_arguments("run", "trainer.default_root_dir")
    parser.link_arguments("data.init_args.segment_duration", "model.init_args.segment_duration")
    parser.link_arguments("data.init_args.seed", "model.init_args.seed")
    parser.link_arguments("data.codec", "model.init_args.codec", apply_on="instantiate")

"""`fit`, `validate`, `test` and `predict`: LightningCLI with our module and data."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from datamodules import DataPosition
from magnet_train.callbacks import StepProgressBar
from magnet_train.checkpoints.load import read_model
from magnet_train.checkpoints.stored import StoredModel
from magnet_train.errors import UserError
from magnet_train.finetune import Tuning, average_what_trains, start, take_architecture
from magnet_train.models.transformer import count_parameters
from magnet_train.module import MagnetModule

CONFIG_OPTIONS = ("-c", "--config")


class MagnetCLI(LightningCLI):
    """Joins data and model; the data's codec decides n_q and card."""

    _base: StoredModel | None = None  # of --init_from

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--run` and link what has one source of truth."""
        parser.add_argument(
            "--run",
            type=str,
            default="runs/default",
            help="folder of this run: config.yaml, metrics, checkpoints, samples",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="model to begin with, weights alone, in any format that we read; sizes and text encoder become its "
            "own. To go on with an interrupted run give --ckpt_path (as well, if the run had an --init_from)",
        )
        parser.add_subclass_arguments(
            Tuning,
            "tuning",
            required=False,
            help="what of the model trains, magnet_train.finetune.LoRA say; else all",
        )
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments("data.init_args.segment_duration", "model.init_args.segment_duration")
        parser.link_arguments("data.init_args.seed", "model.init_args.seed")
        parser.link_arguments("data.codec", "model.init_args.codec", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Put what the run writes into its folder, and load checkpoints without running their code."""
        config = self.config[self.subcommand]
        config.weights_only = True
        if config.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(StepProgressBar())
        if config.init_from is not None:
            self._base = read_model(config.init_from)
            take_architecture(config.model.init_args, self._base)
        checkpoint = config.get("ckpt_path")
        if checkpoint and checkpoint not in ("best", "last", "hpc") and not Path(checkpoint).exists():
            raise UserError(f"--ckpt_path {checkpoint} does not exist; name a checkpoint that `fit` saved.")
        if self.subcommand == "fit":
            _move_aside(Path(config.run) / "metrics.csv")
        loggers = (
            config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
        )
        for component in [*loggers, *(config.trainer.callbacks or [])]:
            for option in ("save_dir", "dirpath"):
                if isinstance(component, Namespace) and component.init_args.get(option, "") in (None, "."):
                    component.init_args[option] = config.run

    def instantiate_classes(self) -> None:
        """Build everything, then begin with another model's weights if there is one."""
        super().instantiate_classes()
        tuning = self._get(self.config_init, "tuning")
        start(self.model, self._base, tuning, getattr(self.datamodule, "summary", dict)())
        if tuning is not None:
            average_what_trains(self.trainer.callbacks)  # type: ignore[attr-defined]
        self._base = None  # its weights are no longer needed

    def before_fit(self) -> None:
        """Say once what is about to be trained on what."""
        lm, text, data = self.model.lm, self.model.text, self.datamodule
        trainer = self.trainer
        batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        rank_zero_info(
            f"{count_parameters(lm):,} parameters, {count_parameters(text, trainable_only=True):,} more in the text "
            f"encoder train along; codec {data.codec.id}\n"
            f"{batch} clips of {data.segment_duration:g} s ({data.segment_frames} frames) a step, "
            f"{trainer.max_steps:,} steps; everything goes to {trainer.default_root_dir}"
        )


def packaged_config(name: str) -> str:
    """Find `configs/...yaml` in the working directory, else the copy in the package."""
    if Path(name).exists() or not name.startswith("configs/"):
        return name
    shipped = resources.files("magnet_train") / name
    return str(shipped) if shipped.is_file() else name


def _with_found_configs(arguments: Sequence[str]) -> list[str]:
    found = list(arguments)
    for index, word in enumerate(found):
        if word in CONFIG_OPTIONS and index + 1 < len(found):
            found[index + 1] = packaged_config(found[index + 1])
        elif word.startswith("--config="):
            found[index] = "--config=" + packaged_config(word.removeprefix("--config="))
        else:
            continue
        path = Path(found[index].removeprefix("--config=") if "=" in word else found[index + 1])
        if not path.is_file():
            raise UserError(
                f"{path} does not exist; the shipped ones are configs/base.yaml and those beside it."
            )
    return found


def run(arguments: Sequence[str]) -> None:
    """Run `fit`, `validate`, `test` or `predict` with LightningCLI's own options.

    Args:
        arguments: The subcommand and its options.
    """
    warnings.filterwarnings(
        "ignore", message="LightningCLI's args parameter"
    )  # argv was given to us as it is
    try:
        MagnetCLI(
            model_class=MagnetModule,
            datamodule_class=pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [DataPosition()]},
            args=_with_found_configs(arguments),
        )
    except ValueError as error:  # the parser wraps what a class says about its arguments
        raise _user_error_within(error) or error from None


def _move_aside(metrics: Path) -> None:
    """Keep the metrics of an earlier run in the same folder: Lightning's CSV logger empties the file."""
    if not metrics.exists() or "LOCAL_RANK" in os.environ:  # the other ranks are started by the first
        return
    number = 1 + len(list(metrics.parent.glob("metrics.*.csv")))
    kept = metrics.with_name(f"metrics.{number}.csv")
    metrics.rename(kept)
    print(f"kept the metrics of the run before as {kept}")


def _quieten() -> None:
    """Keep what nobody can act on out of the terminal."""
    for message in (
        "LightningCLI's args parameter",  # argv was given to us as it is
        "Checkpoint directory .* exists and is not empty",  # it is the run's own folder
        ".*isinstance.treespec, LeafSpec.. is deprecated",
        ".*does not have many workers",  # a choice of the configuration
        "The dirpath has changed from",
        "Experiment logs directory .* exists and is not empty",
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()  # an advertisement
    )


def _user_error_within(error: BaseException | None) -> UserError | None:
    """Return the UserError that `error` was raised from, if there is one."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error

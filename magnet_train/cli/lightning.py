"""`fit`, `validate`, `test` and `predict`: LightningCLI with our module and data."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from datamodules import DataPosition
from magnet_train.checkpoints.bundle import ModelBundle
from magnet_train.checkpoints.load import read_model
from magnet_train.cli.configs import with_found_configs
from magnet_train.cli.fit.callback_options import (
    check_callbacks,
    class_of,
    why_it_ended,
    without_logger_or_checkpoints,
)
from magnet_train.cli.fit.epochs import counts_epochs, set_epochs
from magnet_train.cli.fit.resume_checks import refuse_other_run
from magnet_train.cli.fit.run_folder import (
    Resume,
    check_checkpoint,
    check_folder,
    choose_checkpoint,
    explained,
    first_process,
    prepared,
    tell,
)
from magnet_train.cli.fit.run_lock import run_lock
from magnet_train.cli.fit.sharded_files import refuse_sharded_files
from magnet_train.cli.fit.start_summary import StartSummary
from magnet_train.cli.fit.trainer_options import check_trainer, complete_trainer, explain
from magnet_train.cli.main import FAILURE, INTERRUPTED
from magnet_train.cli.ranks import check_restarts, read_ranks, restarted
from magnet_train.cli.wrong_usage import OneSentenceParser, refusal, require_configuration
from magnet_train.errors import AgreedError, Preempted, UserError, require_extra
from magnet_train.training.callbacks import (
    DeterministicResume,
    LastRow,
    NonFiniteGuard,
    SaveOnStop,
    StepProgressBar,
    ThroughputMonitor,
    WritePredictions,
)
from magnet_train.training.callbacks.predictions import FOLDER
from magnet_train.training.checkpointing import AtomicCheckpointIO, checkpoints_of, step_of
from magnet_train.training.finetune import TrainableParameters, start, take_architecture
from magnet_train.training.lightning_internals import set_rank_timeout
from magnet_train.training.module import MagnetModule
from magnet_train.training.parallel import accumulate
from magnet_train.training.stop_request import PREEMPTED, START_LIMIT, stop_request

_NOISE = (
    "\nDetected KeyboardInterrupt",
    "💡",
    "TPU available",
    "`Trainer.fit` stopped",
    "Time limit reached",  # `why_it_ended` says so
    "Restor",
    "Found current_model_state",
)
_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer|timed out", re.IGNORECASE)
# Options of Lightning's that a config.yaml of before still holds, as null or true, and what there is instead.
_FORMER = {
    "optimizer": "use --model.optimizer",
    "lr_scheduler": "use --model.schedule",
    "weights_only": "checkpoints are always read as plain data",
}
_OUTPUT = {"predict": FOLDER}  # of the commands that do not train, where it is not named as they are
_LONGEST_WAIT = 1_000_000  # minutes, about two years
GRACE = 20.0  # seconds; every rank knows that the run is over and is on its way out


class ConfigKeeper(SaveConfigCallback):
    """Save the configuration in the run's folder, and hand it to the loggers that show it.

    Only once training begins: a resume that is refused leaves the record of what was trained.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save it: whatever could be refused has been looked at."""
        super().setup(trainer, pl_module, "fit")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look after the folder where the loggers do."""
        if not trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._require_folder(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look after it before samples are written."""
        self._require_folder(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look after it before a checkpoint is."""
        self._require_folder(trainer)

    def _require_folder(self, trainer: pl.Trainer) -> None:
        """Notice that the folder was taken away: whoever writes whole files would make another in its place.

        Raises:
            UserError: It was.
        """
        run = Path(trainer.default_root_dir)
        if self.already_saved and trainer.is_global_zero and not run.is_dir():
            raise UserError(
                f"the folder of this run, {run}, was taken away at step {trainer.global_step}, with the checkpoints in it; "
                "put it back, or start anew."
            )

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Log it once; the file is Lightning's work."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # config.yaml lies beside its metrics already
                logger.log_hyperparams(config)


class MagnetCLI(LightningCLI):
    """Joins data and model; the data's codec decides n_q and card."""

    _base: ModelBundle | None = None  # of --init_from

    def __init__(self, *arguments: Any, held: contextlib.ExitStack, **names: Any) -> None:
        self._held = held  # for the lock of the run's folder
        super().__init__(*arguments, **names)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--run` and link what has one source of truth."""
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
            help="what `fit` does with checkpoints in the run's folder: never (refuse a folder that has some), "
            "auto (go on from the newest readable one if there is one), required (fail without one)",
        )
        parser.add_argument(
            "--rank_timeout",
            type=PositiveFloat,
            default=10.0,
            help="minutes without an answer after which the other ranks take one for dead and the run ends",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="model to begin with, weights alone, in any format that we read; sizes and text encoder become its "
            "own. To go on with an interrupted run give --resume (as well, if the run had an --init_from)",
        )
        parser.add_subclass_arguments(
            TrainableParameters,
            "tuning",
            required=False,
            help="what of the model trains, magnet_train.training.finetune.LoRA say; else all",
        )
        for name in _FORMER:
            parser.add_argument(f"--{name}", type=Any, default=None, help=argparse.SUPPRESS)
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments("data.init_args.segment_duration", "model.init_args.segment_duration")
        parser.link_arguments("data.init_args.seed", "model.init_args.seed")
        parser.link_arguments("data.codec", "model.init_args.codec", apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Leave out what has one answer here."""
        return {name: skip | {"weights_only"} for name, skip in LightningCLI.subcommands().items()}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **names: Any
    ) -> LightningArgumentParser:
        """Describe --ckpt_path as it is: Lightning's keywords (last, best) are not among what it takes."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **names)
        for action in parser._actions:
            if action.dest == "ckpt_path":
                action.help = "checkpoint that `fit` saved; to train on from it, or to measure or use it"
        return parser

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Let checkpoints be read as plain data only."""
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Refuse what Lightning has an option for and we have another."""
        super().parse_arguments(parser, args)
        config = self.config[self.config["subcommand"]]
        seed = config.get("seed_everything")
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            parser.error(f"seed_everything is {seed}; give 0 to {2**32 - 1}.")
        if not config.get("rank_timeout", 1.0) <= _LONGEST_WAIT:
            parser.error(f"rank_timeout is {config.rank_timeout}; give minutes, at most {_LONGEST_WAIT:,}.")
        for name, instead in _FORMER.items():
            if config.pop(name, None) not in (None, True):
                parser.error(f"there is no option --{name}; {instead}.")

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: Lightning would put the checkpoint's hyper-parameters over it."""

    def before_instantiate_classes(self) -> None:
        """Put what the run writes into its folder, and decide what it goes on from."""
        config = self.config[self.subcommand]
        complete_trainer(config.trainer)
        check_trainer(config.trainer, str(self.subcommand))
        without_logger_or_checkpoints(config.trainer)
        self._choose_checkpoint(config)
        self._add_callbacks(config.trainer)
        if config.init_from is not None:
            self._base = read_model(config.init_from)
            take_architecture(config.model.init_args, self._base)
        loggers = (
            config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
        )
        command = str(self.subcommand)
        if any(issubclass(class_of(logger), TensorBoardLogger) for logger in loggers):
            require_extra("tensorboard", "tensorboard", "TensorBoardLogger")
        for component in [*loggers, *(config.trainer.callbacks or [])]:
            for option in ("save_dir", "dirpath"):
                settings = component.get("init_args") if isinstance(component, Namespace) else None
                if settings is not None and settings.get(option, "") in (None, "."):
                    settings[option] = config.run
                    if command != "fit" and component.class_path.endswith("CSVLogger"):
                        # It empties metrics.csv, which in the run's folder is that of the training.
                        settings[option] = str(Path(config.run) / _OUTPUT.get(command, command))

    def _choose_checkpoint(self, config: Namespace) -> None:
        run = check_folder(config.run)
        if self.subcommand == "fit":
            check_restarts()
            if first_process():
                self._held.enter_context(run_lock(run))
        if self.subcommand == "fit" and restarted() and checkpoints_of(run):
            config.resume, config.ckpt_path = "auto", None  # the same run goes on, not the same command again
        if config.get("ckpt_path") is not None:
            if not Path(config.ckpt_path).exists():
                raise UserError(
                    f"--ckpt_path {config.ckpt_path} does not exist; name a checkpoint that `fit` saved."
                )
            if config.resume != "never":
                raise UserError(
                    f"--ckpt_path names the checkpoint and --resume {config.resume} looks for one; give one of the two."
                )
            if self.subcommand == "fit":
                check_checkpoint(run, Path(config.ckpt_path))
            else:
                tell(f"reading {config.ckpt_path}")
        elif self.subcommand == "fit":
            chosen = choose_checkpoint(run, config.resume)
            config.ckpt_path = None if chosen is None else str(chosen)
        elif config.init_from is None:
            raise UserError(
                f"`{self.subcommand}` has no model but one with random weights; name a checkpoint by --ckpt_path or "
                "any model by --init_from."
            )

    def _add_callbacks(self, trainer: Namespace) -> None:
        """Add what every run needs, unless the configuration names it with settings of its own."""
        needed: list[type[pl.Callback]] = [DataPosition]
        if self.subcommand == "fit":
            needed += [DeterministicResume, NonFiniteGuard, LastRow, ThroughputMonitor, StartSummary]
            if trainer.enable_checkpointing is not False:
                needed.append(SaveOnStop)
        if self.subcommand == "predict":
            needed.append(WritePredictions)
        named = [class_of(callback) for callback in trainer.callbacks or []]
        if trainer.enable_progress_bar is not False and not any(issubclass(c, ProgressBar) for c in named):
            needed.append(StepProgressBar)
        self.trainer_defaults["callbacks"] += [
            kind() for kind in needed if not any(issubclass(c, kind) for c in named)
        ]

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer with our way of writing checkpoints and a time after which a silent rank is dead."""
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        try:
            trainer = super().instantiate_trainer(plugins=plugins, **kwargs)
        except (MisconfigurationException, ValueError, TypeError, ImportError, RuntimeError) as error:
            raise explain(error) from error
        if self.subcommand == "fit":
            refuse_sharded_files(trainer)
        minutes = self._get(self.config, "rank_timeout")
        set_rank_timeout(trainer, timedelta(minutes=minutes))
        return trainer

    def fit(self, **arguments: Any) -> None:
        """Train; when that fails, let no other process of this machine wait for this one."""
        checkpoint, end = arguments.get("ckpt_path"), self.trainer.max_steps
        if checkpoint is not None:
            step = step_of(Path(checkpoint))
            if step is not None and 0 < end <= step:
                tell(
                    f"{checkpoint} is at step {step} of {end} already; nothing to do (raise trainer.max_steps to go on)."
                )
                return
            refuse_other_run(Path(checkpoint), self.model, self.datamodule)
            tell(f"resuming from {checkpoint}")
        stop_request.limit = START_LIMIT  # the trainer may start ranks that wait for this one
        if not any(isinstance(callback, SaveOnStop) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            stop_request.release()  # no checkpoints are written, so a signal ends the process as it would any other
        try:
            run = Path(self._get(self.config, "run"))
            with explained(run), prepared(run, self._has_begun):
                self.trainer.fit(**arguments)
            if reason := why_it_ended(self.trainer):
                tell(reason)
        except BaseException as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                error.__context__.args = (self._describe_interrupt(),)
            _end_children(self.trainer, grace=GRACE if isinstance(error, (AgreedError, Preempted)) else 0.0)
            if self.trainer.world_size > 1 and isinstance(error, RuntimeError) and _LOST.search(str(error)):
                raise UserError(
                    f"rank {self.trainer.global_rank} lost contact with another ({str(error).splitlines()[0][:200]}); "
                    "see what that one said, and go on by --resume auto."
                ) from error
            raise

    def _has_begun(self) -> bool:
        keepers = [c for c in self.trainer.callbacks if isinstance(c, ConfigKeeper)]  # type: ignore[attr-defined]
        return any(keeper.already_saved for keeper in keepers)

    def validate(self, **arguments: Any) -> None:
        """Measure on validation data."""
        self._measure(self.trainer.validate, **arguments)

    def test(self, **arguments: Any) -> None:
        """Measure on test data."""
        self._measure(self.trainer.test, **arguments)

    def _measure(self, measure: Callable[..., Any], verbose: bool = True, **arguments: Any) -> None:
        """Print what was measured with whole names: Lightning's table cuts them where they differ."""
        with explained(Path(self._get(self.config, "run"))):
            results = measure(verbose=False, **arguments)
        measured = results[0] if verbose and results else {}
        for name, value in sorted(measured.items()):
            tell(f"{name:<{max(map(len, measured))}}  {value:.4g}")

    def _describe_interrupt(self) -> str:
        """Say how far training was and what is left of it."""
        if not self.trainer.global_step:
            return "interrupted before the first step; start it again as it was."
        text = f"interrupted after step {self.trainer.global_step}; "
        if found := checkpoints_of(Path(self._get(self.config, "run"))):
            return text + f"{found[0]} is the newest checkpoint and --resume auto goes on from it."
        return text + "nothing was saved yet; start it again as it was."

    def instantiate_classes(self) -> None:
        """Build everything, then begin with another model's weights if there is one."""
        super().instantiate_classes()
        if self.subcommand == "fit":
            check_callbacks(self.trainer.callbacks, self.model)  # type: ignore[attr-defined]
            accumulate(self.trainer, self.datamodule.batch_size, self._get(self.config, "global_batch"))
            fast = self.trainer.fast_dev_run  # type: ignore[attr-defined]  # has epochs of its own
            if counts_epochs(self._get(self.config, "trainer")) and not fast:
                set_epochs(self.trainer, self.datamodule)
        tuning = self._get(self.config_init, "tuning")
        start(self.model, self._base, tuning, getattr(self.datamodule, "summary", dict)())
        self._base = None  # its weights are no longer needed


def run(arguments: Sequence[str]) -> None:
    """Run `fit`, `validate`, `test` or `predict` with LightningCLI's own options.

    Args:
        arguments: The subcommand and its options.
    """
    _quieten()
    require_configuration(arguments)
    with contextlib.ExitStack() as held:
        _run(arguments, held)


def _run(arguments: Sequence[str], held: contextlib.ExitStack) -> None:
    try:
        MagnetCLI(
            held=held,
            model_class=MagnetModule,
            datamodule_class=pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=ConfigKeeper,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,  # model.optimizer and model.schedule are the only ones
            trainer_defaults={"callbacks": []},
            parser_class=OneSentenceParser,
            args=with_found_configs(arguments),
        )
    except (AgreedError, Preempted) as agreed:
        if first_process():
            raise
        _leave_quietly(PREEMPTED if isinstance(agreed, Preempted) else FAILURE)
    except SystemExit as leaving:  # how Lightning answers Ctrl-C
        if not isinstance(leaving.__context__, KeyboardInterrupt):
            raise
        if first_process():
            raise leaving.__context__ from None
        _leave_quietly(INTERRUPTED)
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        # The parser wraps what a class says about its arguments; Lightning finds some mistakes when it trains.
        told = _user_error_within(error) or refusal(error)
        if told is None:
            raise
        raise told from None


def _leave_quietly(code: int) -> None:
    """Leave with the exit code of rank 0, which says why."""
    if read_ranks().ranks > 1:  # Lightning's own launcher kills rank 0 where another one leaves with an error
        sys.exit(code)


def _end_children(trainer: pl.Trainer, grace: float) -> None:
    """Wait `grace` seconds for the ranks that Lightning started here, then end them."""
    deadline = time.monotonic() + grace
    for process in getattr(trainer.strategy.launcher, "procs", []):
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def _quieten() -> None:
    """Keep what nobody can act on out of the terminal."""
    for message in (
        "LightningCLI's args parameter",  # argv was given to us as it is
        "Checkpoint directory .* exists and is not empty",  # it is the run's own folder
        ".*isinstance.treespec, LeafSpec.. is deprecated",
        ".*does not have many workers",  # a choice of the configuration
        "The dirpath has changed from",
        "Couldn't infer the batch indices",  # a batch says its slots itself
        "You have overridden `transfer_batch_to_device`",  # ours, on purpose
        "It is recommended to use .self.log.*sync_dist=True",  # the metric is summed over ranks before
        "Experiment logs directory .* exists and is not empty",
        ".*using the WeightAveraging callback, but loading a checkpoint outside",  # the average is what is loaded
        ".*is smaller than the logging interval",  # steps are counted across epochs
        "You're resuming from a checkpoint that ended before the epoch ended",  # the position in the data is restored
        ".*callbacks used to create the checkpoint need to be provided",  # of `validate` and `predict`
    ):
        warnings.filterwarnings("ignore", message=message)
    if "SLURM_JOB_ID" not in os.environ:  # on a machine where SLURM is installed, but not in a job of it
        warnings.filterwarnings("ignore", message="The `srun` command is available")
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)  # config.yaml has it
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(_NOISE)
    )
    logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(
        lambda record: not record.getMessage().startswith("`weights_only` was not set")  # of saving
    )


def _user_error_within(error: BaseException | None) -> UserError | None:
    """Return the UserError that `error` was raised from, if there is one."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error

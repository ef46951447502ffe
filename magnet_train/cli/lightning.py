"""`fit`, `validate`, `test` and `predict`: LightningCLI with our module and data."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from magnet_train.checkpoints.bundle import ModelBundle
from magnet_train.checkpoints.load import read_model
from magnet_train.cli.configs import with_found_configs
from magnet_train.cli.fit import failures
from magnet_train.cli.fit.epochs import counts_epochs, set_epochs
from magnet_train.cli.fit.parser import OneSentenceParser, add_options
from magnet_train.cli.fit.resume import checkpoint_for_fit, checkpoint_to_evaluate, require_same_run
from magnet_train.cli.fit.run_folder import RunRecord, check_folder, direct_outputs, is_finished, prepared
from magnet_train.cli.fit.trainer_options import (
    check_callbacks,
    choose_precision,
    needed_callbacks,
    prepare_trainer,
)
from magnet_train.cli.fit.vocabulary import learn_vocabulary
from magnet_train.cli.folder_lock import folder_lock
from magnet_train.cli.main import COMMANDS, FAILURE, INTERRUPTED, LIGHTNING_COMMANDS
from magnet_train.cli.ranks import check_restarts, is_first_process, print_once, read_ranks
from magnet_train.errors import AgreedError, Preempted
from magnet_train.text import NoText
from magnet_train.training import lightning_internals as internals
from magnet_train.training.callbacks import SaveOnStop
from magnet_train.training.checkpointing import LAST, AtomicCheckpointIO, peek
from magnet_train.training.finetune import start, take_architecture
from magnet_train.training.module import MagnetModule
from magnet_train.training.parallel import accumulate
from magnet_train.training.stop_request import PREEMPTED, START_LIMIT, stop_request

_LOGGERS = ("utilities.rank_zero", "trainer.connectors.checkpoint_connector")
_LOG_NOISE = (
    *("\nDetected KeyboardInterrupt", "💡", "TPU available"),
    "`weights_only` was not set",  # when saving; loading sets it
)
_WARNING_NOISE = (
    "LightningCLI's args parameter",  # the arguments are those of the command line
    ".*directory .* exists and is not empty",  # the folder of the same run
    ".*isinstance.treespec, LeafSpec.. is deprecated",
    "The dirpath has changed from",
    r"\s*(By default only one Jsonargparse|\S+ (parameter )?was deprecated in v)",  # parts that Lightning uses
    "You have overridden `transfer_batch_to_device`",  # on purpose
    "Couldn't infer the batch indices",  # a batch carries its slots
    ".*using the WeightAveraging callback, but loading a checkpoint outside",  # the average is what is loaded
    ".*callbacks used to create the checkpoint need to be provided",  # by `validate` and `predict`
)


def _hide_advice() -> None:
    """Hide what no user can act on: Lightning's guesses, and reports of what is intended."""
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    for message in _WARNING_NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in _LOGGERS:
        logger = logging.getLogger(f"lightning.pytorch.{name}")
        logger.addFilter(lambda record: not record.getMessage().startswith(_LOG_NOISE))


def run(arguments: Sequence[str]) -> None:
    """Run a subcommand of LightningCLI with its options."""
    _hide_advice()
    texts = {
        name: {"description": f"{COMMANDS[name]}; start with -c configs/base.yaml"}
        for name in LIGHTNING_COMMANDS
    }
    try:
        with contextlib.ExitStack() as locks:
            MagnetCLI(
                locks,
                model_class=MagnetModule,
                datamodule_class=pl.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=RunRecord,
                save_config_kwargs={"save_to_log_dir": False},  # not into the folder of the first logger
                auto_configure_optimizers=False,  # model.optimizer and model.schedule are the only ones
                trainer_defaults={"callbacks": []},
                parser_class=OneSentenceParser,
                parser_kwargs={"prog": "magnet-train", **texts},
                args=with_found_configs(arguments),
            )
    except (AgreedError, Preempted) as agreed:
        if is_first_process():
            raise
        _leave_quietly(PREEMPTED if isinstance(agreed, Preempted) else FAILURE)
    except SystemExit as leaving:  # Lightning's answer to Ctrl-C
        if not isinstance(leaving.__context__, KeyboardInterrupt):
            raise
        if is_first_process():
            raise leaving.__context__ from None
        _leave_quietly(INTERRUPTED)
    except failures.LIBRARY_ERRORS as error:
        if (explained := failures.explain(error)) is None:
            raise
        raise explained from None


def _leave_quietly(code: int) -> None:
    """Exit with the code of rank 0, which prints the reason."""
    if read_ranks().ranks > 1:  # Lightning's own launcher kills rank 0 where another rank exits with an error
        sys.exit(code)


class MagnetCLI(LightningCLI):
    """LightningCLI that links data and model, and keeps a run in a folder of its own."""

    _base: ModelBundle | None = None  # of --init_from

    def __init__(self, locks: contextlib.ExitStack, **arguments: Any) -> None:
        self._locks = locks  # holds that of the run's folder
        super().__init__(**arguments)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Leave `--seed_everything` to our options, which check its range."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our options, and link what has one source."""
        add_options(parser)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Leave out what is an option of ours, or has only one value here."""
        ours = {"ckpt_path", "weights_only"}
        return {name: skipped | ours for name, skipped in LightningCLI.subcommands().items()}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        return {**arguments, "ckpt_path": self._get(self.config, "ckpt_path"), "weights_only": True}

    def _parse_ckpt_path(self) -> None:
        """Do not let the hyper-parameters in a checkpoint override the configuration, as Lightning does."""

    def before_instantiate_classes(self) -> None:
        """Check the options, lock the run's folder and choose the checkpoint."""
        command, config = str(self.subcommand), self.config[self.subcommand]
        prepare_trainer(config.trainer, command)
        folder = check_folder(config.run)
        if command == "fit":
            check_restarts()
            if is_first_process():
                self._locks.enter_context(folder_lock(folder, "fit", "--run"))
            chosen = checkpoint_for_fit(folder, config.resume, config.ckpt_path)
            config.ckpt_path = None if chosen is None else str(chosen)
        else:
            checkpoint_to_evaluate(command, config.resume, config.ckpt_path, config.init_from)
        self.trainer_defaults["callbacks"] += needed_callbacks(config.trainer, command)
        if config.init_from is not None:
            self._base = read_model(config.init_from)
            take_architecture(config.model.init_args, self._base)
        lm = config.model.init_args.get("lm") or {}
        choose_precision(config.trainer, int((lm.get("init_args") or {}).get("dim", 0)))
        direct_outputs(config, command)

    def instantiate_classes(self) -> None:
        """Build everything, then load the weights of `--init_from` and choose what trains."""
        super().instantiate_classes()
        learn_vocabulary(self.model, self.datamodule, self._get(self.config, "ckpt_path"))
        if self.subcommand == "fit":
            check_callbacks(self.trainer.callbacks, self.model)  # type: ignore[attr-defined]
            accumulate(self.trainer, self.datamodule.batch_size, self._get(self.config, "global_batch"))
            own_epochs = self.trainer.fast_dev_run  # type: ignore[attr-defined]
            if counts_epochs(self._get(self.config, "trainer")) and not own_epochs:
                set_epochs(self.trainer, self.datamodule)
        tuning = self._get(self.config_init, "tuning")
        start(self.model, self._base, tuning, getattr(self.datamodule, "summary", dict)())
        self._base = None  # frees its weights

    def instantiate_trainer(self, **settings: Any) -> pl.Trainer:
        """Build the trainer with atomic checkpoints and the rank timeout."""
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        trainer = super().instantiate_trainer(plugins=plugins, **settings)
        internals.set_rank_timeout(trainer, timedelta(minutes=self._get(self.config, "rank_timeout")))
        return trainer

    def fit(self, ckpt_path: str | None, **arguments: Any) -> None:
        """Train, from a checkpoint if there is one."""
        if ckpt_path is not None and not self._resumes(Path(ckpt_path)):
            return
        folder, trainer = Path(self._get(self.config, "run")), self.trainer
        stop_request.limit = START_LIMIT  # the trainer may start ranks that wait for this one
        if not any(isinstance(callback, SaveOnStop) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            stop_request.release()  # without checkpoints, a signal ends the process like any other
        with failures.training_failures(trainer, folder), prepared(folder, trainer):
            trainer.fit(ckpt_path=ckpt_path, **arguments)
        if reason := failures.early_stop(trainer):
            print_once(reason)
        # Without checkpoints an earlier one may lie there.
        if (peek(folder / LAST) or {}).get("global_step") == trainer.global_step:
            text = "--unconditional 4" if isinstance(self.model.text, NoText) else "--text '...'"
            print_once(
                f"try it: magnet-train generate --model {shlex.quote(str(folder / LAST))} {text} --out clips"
            )

    def _resumes(self, checkpoint: Path) -> bool:
        """Return whether anything is left to do after a checkpoint; if so, check that it is of this run."""
        content = peek(checkpoint) or {}  # an unreadable file is explained once all of it is loaded
        step, end = content.get("global_step"), self.trainer.max_steps
        if isinstance(step, int) and 0 < end <= step:
            finished = is_finished(Path(self._get(self.config, "run")), step)
            if step > end or finished or not internals.validation_is_pending(content):
                print_once(
                    f"{checkpoint} is at step {step} of {end} already; nothing to do (raise trainer.max_steps to continue)."
                )
                return False
            internals.allow_pending_validation(self.trainer)
        require_same_run(checkpoint, self.model, self.datamodule)
        print_once(f"resuming from {checkpoint}")
        return True

    def validate(self, **arguments: Any) -> None:
        self._measure(self.trainer.validate, **arguments)

    def test(self, **arguments: Any) -> None:
        self._measure(self.trainer.test, **arguments)

    def _measure(self, measure: Callable[..., Any], verbose: bool = True, **arguments: Any) -> None:
        """Print each metric with its whole name, which Lightning's table truncates."""
        with failures.disk_failures(Path(self._get(self.config, "run"))):
            results = measure(verbose=False, **arguments)
        metrics = results[0] if verbose and results else {}
        for name, value in sorted(metrics.items()):
            print_once(f"{name:<{max(map(len, metrics))}}  {value:.4g}")

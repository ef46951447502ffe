"""Hide log messages and warnings of Lightning that no user can act on."""

from __future__ import annotations

import logging
import warnings

from lightning.fabric.utilities.warnings import PossibleUserWarning

_LOG_NOISE = ("\nDetected KeyboardInterrupt", "💡", "TPU available")
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


def silence_advice() -> None:
    """Hide log messages and warnings that no user can act on: Lightning's guesses, and reports of what is intended."""
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    for message in _WARNING_NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(_LOG_NOISE)
    )
    logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(
        lambda record: (
            not record.getMessage().startswith("`weights_only` was not set")
        )  # when saving; loading sets it
    )

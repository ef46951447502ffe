"""Analyse files in several processes, for `describe`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from datamodules.tokenize.audio_files import AudioFile
from datamodules.tokenize.description import Description
from magnet_train.cli.console import on_signal
from magnet_train.cli.describing import analyse
from magnet_train.errors import UserError


def analyses(files: Collection[AudioFile], workers: int) -> Iterator[tuple[AudioFile, Description | str]]:
    """Yield the result of `analyse` for each file as it is finished; with one worker, in this process.

    Raises:
        UserError: A process died.
    """
    if min(workers, len(files)) <= 1:
        yield from ((file, analyse(file.path)) for file in files)
        return
    context = multiprocessing.get_context("spawn")  # not forked: the caller may have threads
    pool = ProcessPoolExecutor(min(workers, len(files)), context, _start)
    try:
        with on_signal(signal.SIGINT, signal.SIG_IGN):  # also in processes that are started meanwhile
            results = {pool.submit(analyse, file.path): file for file in files}
        for result in as_completed(results):
            yield results.pop(result), result.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process of describe died, perhaps for want of memory; run the same command again with --workers 1."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    """Prepare a process: Ctrl-C ends it without a traceback, and so does the end of its parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

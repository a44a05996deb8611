"""How the command ends if it is stopped from outside or the machine fails: an exit status and a one-line message."""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["Terminated", "machine_message", "notes", "refused_by_trainer", "say", "stop_signal", "terminable"]

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your share of the disk is full",
    errno.EFBIG: "the file is too large",
}
_LOST_PEER = (
    "connection reset by peer",
    "connection closed by peer",
    "broken pipe",
    "remote process exit",
    "remote server shutdown",
)
"""Parts of the messages of torch's backends when another process of a distributed run has ended."""
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class Terminated(KeyboardInterrupt):
    """SIGTERM was received; handled like Ctrl-C, so that files are closed and data-loading processes end."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block at once, with :class:`Terminated`.

    Nothing changes in threads, which get no signals, and in SLURM jobs, where Lightning saves and requeues.
    """
    if threading.current_thread() is not threading.main_thread() or "SLURM_JOB_ID" in os.environ:
        yield
        return

    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked process that loads data
            os._exit(128 + number)
        signal.signal(number, signal.SIG_IGN)  # a second signal would interrupt the closing of files
        raise Terminated

    before_interrupt = signal.getsignal(signal.SIGINT)
    before_terminate = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before_interrupt)  # Lightning ignores Ctrl-C while it ends a run
        signal.signal(signal.SIGTERM, before_terminate)


def stop_signal(error: BaseException) -> tuple[int, str] | None:
    """Return a shell's exit status for the signal that ended the command, and its name; None if there was no signal.

    Lightning itself would exit with status 1 after Ctrl-C, and with status 0 after SIGTERM in a SLURM job.
    """
    for cause in _chain(error):
        if isinstance(cause, Terminated) or type(cause).__name__ == "SIGTERMException":
            return 128 + signal.SIGTERM, "SIGTERM"
        if isinstance(cause, KeyboardInterrupt):
            return 128 + signal.SIGINT, "Ctrl-C"
    return None


def machine_message(error: BaseException) -> str | None:
    """Return a message about a full disk, a missing permission, or a process that died; None for other errors."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return (
                f"{_file_of(cause)} could not be written: {_FULL[cause.errno]} ({cause.strerror}). Existing files are "
                "unchanged. Make room"
            )
        if isinstance(cause, OSError) and cause.errno in _FORBIDDEN:
            return (
                f"{_file_of(cause)} may not be written or read: {cause.strerror}. Change its permissions, or choose "
                "another folder: --trainer.default_root_dir FOLDER for runs, --output FOLDER for exports and analyses"
            )
        if _lost_peer(cause):
            return (
                "another process of the run ended; its own message, if it had one, is above. If it was killed, memory "
                "was short: use a smaller --data.batch_size. Fit resumes with --ckpt_path last"
            )
        if str(cause).startswith("DataLoader worker") or _lost_worker(cause):
            return (
                f"a process that loads data died: {str(cause).partition('. ')[0]}. If it was killed, memory was short: "
                "use fewer such processes with --data.num_workers (0 loads in the training process and shows its "
                "error), or a smaller --data.batch_size"
            )
    return None


def refused_by_trainer(error: BaseException) -> bool:
    """Return whether the error is a setting that Lightning's trainer refuses, by itself or for these data."""
    if type(error).__name__ == "MisconfigurationException":
        return True
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False

    # A ValueError is the trainer's if a file of the trainer raised it.
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    file = frame.f_code.co_filename.replace("\\", "/")
    return "/lightning/pytorch/trainer/" in file or file.endswith("/lightning/pytorch/loops/fit_loop.py")


def notes(error: BaseException) -> str:
    """Return the notes that were added to the error for the user, such as how to resume the run."""
    found = [note for cause in _chain(error) for note in getattr(cause, "__notes__", [])]
    return " ".join(dict.fromkeys(found))


def say(text: str) -> None:
    """Print a line on the error stream, if it is still open."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _lost_peer(error: BaseException) -> bool:
    """Return whether another process of a distributed run ended while this one exchanged tensors with it."""
    text = str(error).lower()
    is_distributed = type(error).__name__.startswith("Dist") or "gloo/transport" in text
    return isinstance(error, RuntimeError) and is_distributed and any(part in text for part in _LOST_PEER)


def _lost_worker(error: BaseException) -> bool:
    """Return whether a data-loading process died while it sent a batch, so that torch's loader lost the connection."""
    if not isinstance(error, ConnectionError | FileNotFoundError | EOFError):
        return False

    files = [frame.f_code.co_filename.replace("\\", "/") for frame, _ in traceback.walk_tb(error.__traceback__)]
    in_loader = any(file.endswith("torch/utils/data/dataloader.py") for file in files)
    return in_loader and any("/multiprocessing/" in file for file in files)


def _file_of(error: OSError) -> str:
    """Return the name of the file that an error is about."""
    return str(error.filename2 or error.filename or "a file")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and, one after another, the errors that caused it or were being handled when it was raised."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__

"""What the command does when it is stopped from outside or the machine fails it: exit status, and what to type next."""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Terminated", "how_stopped", "let_go", "machine_message", "notes", "say", "terminable", "undisturbed"]

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your share of the disk is full", errno.EFBIG: "too large"}
_HANDING_OVER = ("torch/utils/data/dataloader.py", "multiprocessing/*.py")
_LOST = (ConnectionError, FileNotFoundError, EOFError)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class Terminated(KeyboardInterrupt):
    """SIGTERM came; handled everywhere as Ctrl-C is, so that files are closed and data-loading processes end."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end what runs inside at once, with :class:`Terminated`.

    Left alone are threads, which get no signals, and SLURM's jobs, where Lightning saves and requeues.
    """
    if threading.current_thread() is not threading.main_thread() or "SLURM_JOB_ID" in os.environ:
        yield
        return
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked process that loads data
            os._exit(128 + number)
        signal.signal(number, signal.SIG_IGN)  # once is enough: a second one would break off the tidying up
        raise Terminated

    def report(*error: Any) -> None:
        if os.getpid() == owner or not isinstance(error[1], _LOST):  # the command that a loading process serves is gone
            hook(*error)

    before = {signal.SIGINT: signal.getsignal(signal.SIGINT), signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    hook, sys.excepthook = sys.excepthook, report
    try:
        yield
    finally:
        sys.excepthook = hook
        for number, handler in before.items():  # Lightning switches Ctrl-C off while it ends a run
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until what runs inside is done; for what must not be left half done, and is short."""
    if threading.current_thread() is not threading.main_thread():  # signals come to the main one alone
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own = {number: handler for number, handler in before.items() if callable(handler)}
    for name in own:
        signal.signal(name, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for name, handler in own.items():
            signal.signal(name, handler)
        for number, frame in came[:1]:
            own[signal.Signals(number)](number, frame)


def how_stopped(error: BaseException) -> tuple[int, str] | None:
    """Status and name of the signal that ended the command, as a shell has them; None if it was none.

    Lightning turns Ctrl-C into an exit with status 1, and SIGTERM of a SLURM job into one with status 0.
    """
    for cause in _chain(error):
        if isinstance(cause, Terminated) or type(cause).__name__ == "SIGTERMException":
            return 128 + signal.SIGTERM, "SIGTERM"
        if isinstance(cause, KeyboardInterrupt):
            return 128 + signal.SIGINT, "Ctrl-C"
    return None


def machine_message(error: BaseException) -> str | None:
    """What to tell the user about a full disk, a folder that may not be written, or a process that died; else None."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return (
                f"{_where(cause)} could not be written: {_FULL[cause.errno]} ({cause.strerror}). Files that were there "
                "before are as they were. Make room"
            )
        if isinstance(cause, OSError) and cause.errno in _FORBIDDEN:
            return (
                f"{_where(cause)} may not be written or read: {cause.strerror}. Change its permissions, or choose "
                "another folder: runs go below --trainer.default_root_dir FOLDER, what an analysis or export writes "
                "to --output FOLDER"
            )
        if str(cause).startswith("DataLoader worker") or _cut_off(cause):
            return (
                f"a process that loads data died: {str(cause).partition('. ')[0]}. If it was killed, memory was short: "
                "give fewer with --data.num_workers (0 loads in the training process and shows its error), or a "
                "smaller --data.batch_size"
            )
    return None


def notes(error: BaseException) -> str:
    """What code on the way of the error has added for the user, such as how a run goes on."""
    return " ".join(dict.fromkeys(note for cause in _chain(error) for note in getattr(cause, "__notes__", [])))


def let_go(error: BaseException) -> None:
    """Drop what the calls held that failed, without the complaints of what was only half made.

    A data-loading process that dies while others are started leaves an iterator whose end fails, which Python prints.
    """
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        for cause in _chain(error):
            traceback.clear_frames(cause.__traceback__)
    finally:
        sys.unraisablehook = before


def _cut_off(error: BaseException) -> bool:
    """Whether a batch was being handed over by a data-loading process when that one died."""
    if not isinstance(error, _LOST):
        return False
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return all(any(Path(file).match(part) for file in files) for part in _HANDING_OVER)


def _where(error: OSError) -> str:
    return str(error.filename2 or error.filename or "a file")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and what was being handled when it came."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        seen.append(found)
        found = found.__cause__ or found.__context__
    return iter(seen)


def say(text: str) -> None:
    """A line on the error stream, as far as there is still one."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)

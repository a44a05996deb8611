"""Commands as processes that can be interrupted: each is forked from one that has imported the packages already."""

import contextlib
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import core.cli

LIMIT = 180.0
"""Seconds after which a command counts as hanging."""


class Command:
    """A command that runs.

    Args:
        words: its command line after ``lightning``.
        folder: where it runs; what it prints goes to a file beside the folder.
        first: what the process does before it begins.
    """

    def __init__(self, words: Sequence[str], folder: Path, first: Callable[[], None] = lambda: None) -> None:
        self.words, self.folder = list(words), folder
        self.log = folder.parent / f"{folder.name}.{time.monotonic_ns()}.log"
        self.begun = time.monotonic()
        self.status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(self.words, folder, self.log, first)

    def kill(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.ended() is None:
            os.kill(self.pid, number)

    def children(self) -> list[int]:
        """The processes that it has started."""
        try:
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except OSError:
            return []
        return [int(word) for word in text.split()]

    def ended(self) -> int | None:
        """Its status as a shell has it, 128 and the number of the signal that ended it; None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.status = 128 - code if code < 0 else code
        return self.status

    def wait(self) -> int:
        """Its status when it has ended; 999 if it hangs."""
        while time.monotonic() - self.begun < LIMIT:
            if (status := self.ended()) is not None:
                return status
            time.sleep(0.01)
        self.kill(signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return 999

    def printed(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_line(self) -> str:
        """The last line that it printed."""
        lines = [line for line in self.printed().splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


def run(words: Sequence[str], folder: Path, first: Callable[[], None] = lambda: None) -> tuple[int, Command, float]:
    """A command to its end: status, command, seconds."""
    command = Command(words, folder, first)
    status = command.wait()
    return status, command, time.monotonic() - command.begun


def interrupted(words: Sequence[str], folder: Path, number: int, seconds: float) -> tuple[int, Command]:
    """A command that gets a signal at a random moment of the seconds that it takes."""
    command = Command(words, folder)
    time.sleep(random.uniform(0.05, 1.0) * seconds)
    command.kill(number)
    return command.wait(), command


def interrupted_after(words: Sequence[str], folder: Path, number: int, seconds: float) -> tuple[int, Command]:
    """A run that gets a signal at a random moment after its first checkpoint, within the seconds given."""
    command = Command(words, folder)
    while command.ended() is None and not list(folder.glob("lightning_logs/*/*/checkpoints/last.ckpt")):
        time.sleep(0.002)
    time.sleep(random.uniform(0.0, 1.0) * seconds)
    command.kill(number)
    return command.wait(), command


def file_size_limit(size: int) -> Callable[[], None]:
    """For ``first``: files may not become larger, as on a disk that is full; Python turns the signal into an error."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def nobody() -> None:
    """For ``first``: a user without rights, if this is the superuser, whom permissions do not bind."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def _become(words: list[str], folder: Path, log: Path, first: Callable[[], None]) -> None:
    """The forked process: run the command and end as Python would."""
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        first()
        torch.set_num_threads(1)
        sys.argv = ["lightning", *words]
        status = _ended(words)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _ended(words: list[str]) -> int:
    try:
        core.cli.main()
    except SystemExit as end:
        if isinstance(end.code, int) or end.code is None:
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

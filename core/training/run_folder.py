"""The folder of a run, ``lightning_logs/<task>/version_<n>``: configuration, logs, pictures, checkpoints."""

import errno
import os
import platform
import re
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lightning import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch.distributed import TCPStore

from core.errors import InputError, MissingError
from core.io.checkpoint import checkpoint_file

__all__ = [
    "find_checkpoint",
    "from_here",
    "new_run",
    "only_writer",
    "resume_hint",
    "run_folder",
]

_CHOSEN_RUN = "LARKIT_RUN"
"""Environment variable with the name of the run folder, for the further processes that Lightning starts."""


def from_here(path: Path) -> str:
    """Return a path as a user in the current folder would type it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def run_folder(trainer: Trainer) -> Path | None:
    """Return the folder of the trainer's run, or None if no logger writes files.

    ``Trainer.log_dir`` gives the same folder, but all processes must ask for it together.
    """
    for logger in trainer.loggers:
        folder = getattr(logger, "log_dir", None)
        if folder:
            return Path(folder)
    return None


# The checkpoint that the user means


def find_checkpoint(given: str, runs: Path, *, resume: bool = False) -> Path:
    """Return the path of the checkpoint that ``--ckpt_path`` names.

    Args:
        given: a file, the folder of a run, or 'best' or 'last' for that checkpoint of the newest run.
        runs: folder below which the newest run is searched, at any depth.
        resume: prefer the last checkpoint of a run folder to its best one.

    Raises:
        MissingError: if there is no such checkpoint.
    """
    if given in ("best", "last"):
        return _newest_checkpoint(runs, given)

    path = Path(given)
    if not path.exists():
        raise MissingError(f"there is no checkpoint {given}; give a file, the folder of a run, 'best' or 'last'")
    return checkpoint_file(path, resume=resume)


def _newest_checkpoint(runs: Path, name: str) -> Path:
    """Return the path of a checkpoint by name, in the run that was the last to write a checkpoint."""
    written = {file: file.stat().st_mtime for file in runs.glob("**/checkpoints/*.ckpt")}
    if not written:
        raise MissingError(
            f"no {name}.ckpt below {runs}; train first (lightning fit -c ...), or give the path of a checkpoint"
        )

    newest = max(written, key=lambda file: written[file]).parent
    if newest / f"{name}.ckpt" not in written:
        names = ", ".join(sorted(file.name for file in written if file.parent == newest))
        raise MissingError(
            f"the newest run, {newest.parent}, has no {name}.ckpt, only {names}; give the path of a file"
        )
    return newest / f"{name}.ckpt"


# The folder of a new run


def new_run(runs: Path, resumed: Path | None = None) -> str:
    """Return the name of the run's folder in ``runs``: that of the resumed run, or a new one with the next number.

    Args:
        runs: folder of all runs of a task.
        resumed: checkpoint of the run to resume, if any.
    """
    if resumed is not None:
        folder = resumed.resolve().parent.parent
        if folder.parent == runs.resolve():
            return folder.name

    if SLURMEnvironment.detect():
        # All processes of a SLURM step derive this name, and a requeued job finds its folder again.
        return f"job_{os.environ.get('SLURM_JOB_ID')}_step_{os.environ.get('SLURM_STEP_ID', 0)}"

    started_by_lightning = "LOCAL_RANK" in os.environ and _CHOSEN_RUN in os.environ
    if not started_by_lightning:
        by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        os.environ[_CHOSEN_RUN] = _shared_folder(runs) if by_torchrun else _new_folder(runs).name
    return os.environ[_CHOSEN_RUN]


def _shared_folder(runs: Path) -> str:
    """Return the name of a folder for all processes that ``torchrun`` started; the first one creates it.

    The first process publishes the name in torch's store, where the others read it.
    """
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_first = os.environ["RANK"] == "0"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=is_first and not has_store,
        wait_for_workers=False,
    )
    key = f"larkit/run/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if is_first:
        store.set(key, _new_folder(runs).name)
    return str(store.get(key).decode())


def _new_folder(runs: Path) -> Path:
    """Create the folder with the next free number; two runs that start at once get different folders."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        from_root = (*reversed(runs.parents), runs)
        in_the_way = next((path for path in from_root if os.path.lexists(path) and not path.is_dir()), runs)
        raise InputError(
            f"{in_the_way} is not a folder, and runs are written below {runs}; move it away, or choose another place "
            "with --trainer.default_root_dir FOLDER"
        ) from error
    except (OSError, ValueError) as error:
        invalid_path = (errno.ENAMETOOLONG, errno.ENOENT, errno.EINVAL, errno.ELOOP)
        if isinstance(error, OSError) and error.errno not in invalid_path:
            raise
        raise InputError(
            f"the folder {str(runs)[:200]!r}, below which runs are written, cannot be created ({error}); choose "
            "another place with --trainer.default_root_dir FOLDER"
        ) from error

    while True:
        numbers = [path.name.removeprefix("version_") for path in runs.glob("version_*")]
        taken = [int(number) for number in numbers if number.isdigit()]
        folder = runs / f"version_{max(taken, default=-1) + 1}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Lock a run folder, so that no other process trains in it; the lock ends with this process.

    Raises:
        InputError: if another process trains in the folder.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with _open_lock(folder / ".lock") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise InputError(
                f"{folder} is in use: process {owner} trains in it. Wait for its end or stop it; without --ckpt_path a "
                "new run starts in a folder of its own"
            ) from error
        except OSError:  # the file system has no locks
            pass

        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _open_lock(path: Path) -> TextIO:
    """Open the lock of a run folder for reading and writing, or create it.

    A run folder may come from anybody. Its lock could be a link to one of the user's files, which would be overwritten.

    Raises:
        InputError: if the file is not the lock of a run.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    refusal = InputError(f"{path} is not the lock of a run, which holds a process and a machine; look at it, remove it")
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise refusal from error
        raise

    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(handle)
        raise refusal

    file = os.fdopen(handle, "r+", encoding="utf-8", errors="replace")
    if not re.fullmatch(r"(\d+ on \S*)?", file.read(300)):
        file.close()
        raise refusal
    return file


def resume_hint(last: Path | None, words: Sequence[str], since: float = 0.0) -> str:
    """Return a sentence on what a run saved that ended early, and the command that resumes it.

    Args:
        last: path of the run's last checkpoint, which may not exist; None if the run saves none.
        words: words of the command line, without the name of the command.
        since: start of the command, in seconds since the epoch; an older checkpoint belongs to another run, unless the
            command resumed from one.
    """
    words = list(words)
    resumed = any(word.partition("=")[0] == "--ckpt_path" for word in words)
    if last is None or not last.is_file() or (last.stat().st_mtime < since and not resumed):
        return "No epoch was complete, so nothing was saved; to start again, repeat the command."

    # Replace the option --ckpt_path, in either form, by the new checkpoint.
    words = [word for word in words if not word.startswith("--ckpt_path=")]
    if "--ckpt_path" in words[:-1]:
        place = words.index("--ckpt_path")
        del words[place : place + 2]
    return f"Saved {last}. To resume, run: {shlex.join(['lightning', *words, '--ckpt_path', str(last)])}"

"""Where a run writes: ``lightning_logs/<task>/version_<n>``, with config, logs, pictures and checkpoints together."""

import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch.distributed import TCPStore

from core.errors import InputError, MissingError

__all__ = [
    "how_to_go_on",
    "newest_checkpoint",
    "only_writer",
    "run_folder",
    "run_version",
]

_SHARED = "LARKIT_RUN"  # tells the processes that Lightning starts for a run which folder the first one chose


def newest_checkpoint(runs: Path, name: str) -> Path:
    """The ``best`` or ``last`` checkpoint of the run that has written a checkpoint last.

    Folders without any are of evaluations, or of runs that have not come so far.

    Raises:
        MissingError: if there is none, or not of this name in that run; an older run's is not meant.
    """
    written = {file: file.stat().st_mtime for file in runs.glob("*/checkpoints/*.ckpt")}
    if not written:
        raise MissingError(
            f"no {name}.ckpt below {runs}; train first (lightning fit -c ...), or give the path of a checkpoint"
        )
    newest = max(written, key=lambda file: written[file]).parent
    if newest / f"{name}.ckpt" not in written:
        there = ", ".join(sorted(file.name for file in written if file.parent == newest))
        raise MissingError(f"the newest run, {newest.parent}, has no {name}.ckpt but {there}; give the path of a file")
    return newest / f"{name}.ckpt"


def run_version(runs: Path, resumed: Path | None = None) -> str:
    """Name of the run's folder in ``runs``: that of the run it continues, else a new one, made, with the next number.

    Args:
        runs: folder of all runs of a task.
        resumed: checkpoint that the run continues, if any.
    """
    if resumed is not None and resumed.resolve().parent.parent.parent == runs.resolve():
        return resumed.resolve().parent.parent.name
    if SLURMEnvironment.detect():  # all tasks of a step agree on this name, and a requeued job finds its folder again
        return f"job_{os.environ.get('SLURM_JOB_ID')}_step_{os.environ.get('SLURM_STEP_ID', 0)}"
    if "LOCAL_RANK" not in os.environ or _SHARED not in os.environ:
        elastic = "TORCHELASTIC_RUN_ID" in os.environ
        os.environ[_SHARED] = _agreed_folder(runs) if elastic else _new_folder(runs).name
    return os.environ[_SHARED]


def _agreed_folder(runs: Path) -> str:
    """The same for processes that ``torchrun`` starts: the first one chooses, and tells the others by its store."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # else the first process has to serve it
    store = TCPStore(host, port, is_master=not shared and os.environ["RANK"] == "0", wait_for_workers=False)
    key = f"larkit/run/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if os.environ["RANK"] == "0":
        store.set(key, _new_folder(runs).name)
    return str(store.get(key).decode())


def _new_folder(runs: Path) -> Path:
    """Make the folder with the next free number; making it is what keeps a run that starts at the same moment out.

    Raises:
        InputError: if there can be no folder of this name.
    """
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        place = next((p for p in (*reversed(runs.parents), runs) if os.path.lexists(p) and not p.is_dir()), runs)
        raise InputError(
            f"{place} is no folder, and runs go below {runs}; move it away, or choose another place with "
            "--trainer.default_root_dir FOLDER"
        ) from error
    while True:
        taken = [int(path.name[8:]) for path in runs.glob("version_*") if path.name[8:].isdigit()]
        folder = runs / f"version_{max(taken, default=-1) + 1}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the same run folder; the system forgets it when this process ends.

    Raises:
        InputError: if one does.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"{folder} is in use: process {file.read().strip() or 'unknown'} trains in it. Wait for its end or "
                "stop it; a run of its own starts without --ckpt_path"
            ) from error
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def how_to_go_on(last: Path | None, words: Sequence[str], since: float = 0.0) -> str:
    """A sentence for a run that has ended early: what it saved, and the command that continues it.

    Args:
        last: where the run keeps its last checkpoint, if there is such a place.
        words: of the command, without its name.
        since: when it began, in seconds since the epoch; what was saved before is not of this command, unless it went
            on from a checkpoint.
    """
    resumed = any(word.partition("=")[0] == "--ckpt_path" for word in words)
    words = [word for word in words if not word.startswith("--ckpt_path=")]
    if last is None or not last.is_file() or (last.stat().st_mtime < since and not resumed):
        return "No epoch was complete, so nothing has been saved; to start again, repeat the command."
    if "--ckpt_path" in words[:-1]:
        place = words.index("--ckpt_path")
        del words[place : place + 2]
    return f"Saved is {last}. To go on from it, type: {shlex.join(['lightning', *words, '--ckpt_path', str(last)])}"


def run_folder(trainer: Trainer) -> Path | None:
    """Folder of the trainer's run, or None without a logger that writes files.

    ``Trainer.log_dir`` says the same but talks to all processes, so that one of them alone must not ask.
    """
    folders = [getattr(logger, "log_dir", None) for logger in trainer.loggers]
    return next((Path(folder) for folder in folders if folder), None)

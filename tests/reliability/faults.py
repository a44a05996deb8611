"""What can go wrong while the command runs, and what has to be true afterwards.

Each fault gets a folder to run in, the words of a small configuration and the seconds that an undisturbed run takes. It
gives back in a few words what happened, or raises AssertionError.
"""

import os
import pickle
import random
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from reliability.commands import Command, file_size_limit, interrupted, interrupted_after, nobody, run
from reliability.whole import checkpoints, damaged_files, last_epochs

EPOCHS = 2
SHORT = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1", "--trainer.log_every_n_steps", "1"]
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: 137}
DISK = "size=1g"
"""How large the disk is that is filled up, or read-only."""
Fault = Callable[[list[str], Path, float], str]


def fit(words: Sequence[str], *more: str, epochs: int = EPOCHS) -> list[str]:
    """The command line of a short run."""
    return ["fit", *words, *SHORT, "--trainer.max_epochs", str(epochs), *more]


def well(status: int, command: Command) -> None:
    """The command did what it should."""
    assert status == 0, f"status {status}: {command.last_line()}"


def refused(status: int, command: Command, *texts: str) -> str:
    """The command ended with a message of one line, which is given back."""
    printed, line = command.printed(), command.last_line()
    assert status == 1, f"status {status} instead of 1: {line}"
    assert "Traceback" not in printed, f"a traceback{printed.partition('Traceback')[2][:1500]}"
    assert "lightning: error: " in printed, f"no message: {line}"
    for text in texts:
        assert text in printed, f"the message does not say {text!r}: {line}"
    return printed[printed.rindex("lightning: error: ") + 18 :].strip()


def stopped(number: int) -> Fault:
    """A signal at a random moment; what was saved is whole, and the run is finished afterwards."""

    def fault(words: list[str], folder: Path, seconds: float) -> str:
        stop = random.choice((interrupted, interrupted_after, interrupted_after))  # most of a short run is its start
        seconds = seconds / 3 if stop is interrupted_after else seconds
        status, command = stop(fit(words), folder, number, seconds)
        for _ in range(6):
            if status:
                break
            shutil.rmtree(folder / "lightning_logs")  # it was faster than the undisturbed run
            seconds *= 0.6
            status, command = stop(fit(words), folder, number, seconds)
        assert status == STATUS[number], f"status {status} instead of {STATUS[number]}: {command.last_line()}"
        if number != signal.SIGKILL:
            assert "Traceback" not in command.printed(), command.printed().partition("Traceback")[2][-1500:]
            assert "lightning: stopped by " in command.printed(), command.last_line()
        wrong = damaged_files(folder, logs=number != signal.SIGKILL)
        assert not wrong, f"half-written: {wrong}"
        kept = last_epochs(folder)
        said = f"--ckpt_path {'/'.join(('checkpoints', 'last.ckpt'))}"
        if kept and number != signal.SIGKILL:
            assert "last.ckpt" in command.printed().rsplit("To resume, run:", 1)[-1], (
                f"does not say how to resume, {said}"
            )
        return f"{status}, {_finish(words, folder, kept)}"

    return fault


def _finish(words: list[str], folder: Path, kept: dict[str, int]) -> str:
    """Resume the newest run, or start again, and compare."""
    status, command, _ = run(fit(words, *(["--ckpt_path", "last"] if kept else [])), folder)
    well(status, command)
    wrong = damaged_files(folder)
    assert not wrong, f"after resuming: {wrong}"
    epochs = last_epochs(folder)
    assert max(epochs.values()) == EPOCHS - 1, f"ended at epoch {epochs}"
    if not kept:
        return "nothing saved yet, started again"
    assert set(epochs) == set(kept), f"resumed in another folder: {sorted(epochs)}"
    return f"resumed after epoch {max(kept.values())}"


def _begun(words: list[str], folder: Path) -> dict[Path, bytes]:
    """The checkpoints of a run of one epoch."""
    status, command, _ = run(fit(words, epochs=1), folder)
    well(status, command)
    return {path: path.read_bytes() for path in checkpoints(folder)}


def _unchanged(before: dict[Path, bytes]) -> None:
    changed = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert not changed, f"changed: {changed}"


def disk_full(words: list[str], folder: Path, seconds: float) -> str:
    """No room for a second checkpoint; as root on a real disk of its own, else by the limit on the size of a file."""
    mounted = _mount(folder, DISK)
    try:
        before = _begun(words, folder)
        size = min(len(content) for content in before.values())
        if mounted:
            room = shutil.disk_usage(folder).free
            with (folder / "filler").open("wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, max(1, room - size // 2))
            status, command, _ = run(fit(words, "--ckpt_path", "last"), folder)
            (folder / "filler").unlink()
        else:
            status, command, _ = run(fit(words, "--ckpt_path", "last"), folder, file_size_limit(size // 2))
        refused(status, command, "could not be written", "Make room")
        kept = {path: content for path, content in before.items() if path.name == "last.ckpt"}
        _unchanged(kept)
        wrong = damaged_files(folder)
        assert not wrong, f"half-written: {wrong}"
        return f"{'full disk' if mounted else 'limited files'}: 1, {_finish(words, folder, last_epochs(folder))}"
    finally:
        _unmount(folder, mounted)


def read_only(words: list[str], folder: Path, seconds: float) -> str:
    """A folder that may not be written: as root mounted read-only, else by its permissions."""
    mounted = _mount(folder, DISK)
    try:
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        else:
            folder.chmod(0o555)
        status, command, _ = run(fit(words), folder, (lambda: None) if mounted else nobody)
        refused(status, command, "may not be written")
        return "1, refused"
    finally:
        folder.chmod(0o755) if not mounted else None
        _unmount(folder, mounted)


def two_at_once(words: list[str], folder: Path, seconds: float) -> str:
    """Two runs begin in one folder at the same moment; then both resume the newest."""
    pair = [Command(fit(words), folder) for _ in range(2)]
    for command in pair:
        well(command.wait(), command)
    assert last_epochs(folder) == {"version_0": EPOCHS - 1, "version_1": EPOCHS - 1}, last_epochs(folder)
    pair = [Command(fit(words, "--ckpt_path", "last", epochs=EPOCHS + 2), folder) for _ in range(2)]
    ends = [(command.wait(), command) for command in pair]
    done = [command for status, command in ends if status == 0]
    assert done, f"both failed: {ends[0][1].last_line()}"
    for status, command in ends:
        if status:
            refused(status, command, "is in use: process")
    wrong = damaged_files(folder)
    assert not wrong, f"damaged: {wrong}"
    return f"a folder for each; of two that resume {'one is refused' if len(done) == 1 else 'one came after the other'}"


def dead_worker(words: list[str], folder: Path, seconds: float) -> str:
    """A data-loading process is killed, as the system does when memory is short."""
    _begun(words, folder)
    command = Command(fit(words, "--ckpt_path", "last", "--data.num_workers", "2", epochs=50), folder)
    while command.begun + 60 > time.monotonic() and not (children := command.children()):
        time.sleep(0.002)
    for child in children[:1]:
        os.kill(child, signal.SIGKILL)
    status = command.wait()
    message = refused(status, command, "a process that loads data died", "--data.num_workers")
    assert "To resume, run:" in message, message
    return f"1, {_finish(words, folder, last_epochs(folder))}"


def no_gpu(words: list[str], folder: Path, seconds: float) -> str:
    """A GPU is asked for where there is none."""
    status, command, _ = run(fit(words, "--trainer.accelerator", "gpu"), folder)
    refused(status, command, "gpu")
    assert not list(folder.glob("lightning_logs/*/*")), "left a run folder"
    return "1, refused"


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def damage(path: Path, kind: str, marker: Path) -> None:
    """Spoil a checkpoint.

    Args:
        path: the file.
        kind: 'cut' at a random place, 'flipped' bit in its largest part, 'empty', 'text', or a 'pickle' that makes a
            folder when it is read.
        marker: that folder.
    """
    content = bytearray(path.read_bytes())
    if kind == "cut":
        path.write_bytes(content[: random.randrange(1, len(content))])
    elif kind == "flipped":
        with zipfile.ZipFile(path) as archive:
            part = max(archive.infolist(), key=lambda info: info.file_size)
        content[part.header_offset + 200 + random.randrange(part.file_size // 2)] ^= 1 << random.randrange(8)
        path.write_bytes(content)
    elif kind in ("empty", "text"):
        path.write_bytes(b"" if kind == "empty" else b"<html>404</html>\n")
    else:
        path.write_bytes(pickle.dumps({"state_dict": {}, "hyper_parameters": {}, "callbacks": _Payload(marker)}, 2))


DAMAGES = ("cut", "flipped", "empty", "text", "pickle")


def damaged_checkpoint(words: list[str], folder: Path, seconds: float) -> str:
    """A checkpoint that is not what was written; each kind of damage once."""
    _begun(words, folder)
    (last,) = folder.glob("lightning_logs/*/*/checkpoints/last.ckpt")
    content, marker = last.read_bytes(), folder / "ran"
    for kind in DAMAGES:
        damage(last, kind, marker)
        status, command, _ = run(fit(words, "--ckpt_path", "last"), folder)
        last.write_bytes(content)
        refused(status, command, "last.ckpt")
        assert not marker.exists(), f"{kind}: the file ran code"
    return f"1, refused: {', '.join(DAMAGES)}"


def _mount(folder: Path, options: str) -> bool:
    """A small disk at the folder, where that is allowed."""
    if os.getuid() != 0 or shutil.which("mount") is None:
        return False
    return (
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "sweep", str(folder)], capture_output=True).returncode
        == 0
    )


def _unmount(folder: Path, mounted: bool) -> None:
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


FAULTS: dict[str, Fault] = {
    "SIGINT": stopped(signal.SIGINT),
    "SIGTERM": stopped(signal.SIGTERM),
    "kill -9": stopped(signal.SIGKILL),
    "disk full": disk_full,
    "read-only": read_only,
    "two at once": two_at_once,
    "damaged checkpoint": damaged_checkpoint,
    "no GPU": no_gpu,
    "dead worker": dead_worker,
}
"""What is done to ``lightning fit``, for every configuration."""

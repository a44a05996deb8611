"""A command that is stopped or fails by the machine: exit status, message, and the way on that the message names."""

import errno
import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import _AsyncWriter
from torch.utils.data import get_worker_info
from training.small_runs import Interrupt, add_callbacks, command, metric, runs, saved, write_config

import core.cli
from core.cli import main
from core.stopping import Terminated, let_go, terminable, undisturbed
from core.training.loggers import WholeTensorBoardLogger
from core.training.run_folder import how_to_go_on
from core.training.signals import EndedAtOnce


SWEEP = Path(__file__).with_name("sweep.py")


def _ends(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Exit code of the command if this happens in it."""

    def fail(words: Any) -> None:
        raise error

    monkeypatch.setattr(core.cli, "_run", fail)
    with pytest.raises(SystemExit) as stopped:
        main(["cost", "resnet50"])
    return stopped.value.code


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (Terminated(), 143)])
def test_status_after_a_signal(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _ends(error, monkeypatch) == status
    assert re.fullmatch(r"\nlightning: stopped by (Ctrl-C|SIGTERM)\.\n", capsys.readouterr().err)


def test_sigterm_reaches_the_command_and_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(core.cli, "_run", lambda words: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        main(["cost", "resnet50"])
    assert stopped.value.code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_signal_waits_for_what_must_not_be_left_half_done(number: int, error: type[BaseException]) -> None:
    done = []

    def work() -> None:
        with terminable():
            with undisturbed():
                os.kill(os.getpid(), number)
                done.append("what is protected")
            done.append("what comes after it")

    before = signal.getsignal(number)
    with pytest.raises(error):
        work()
    assert done == ["what is protected"]
    assert signal.getsignal(number) == before


def test_metrics_are_handed_over_before_a_signal_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = _AsyncWriter.write

    def stopped(self: Any, event: bytes) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write(self, event)

    logger = WholeTensorBoardLogger(tmp_path, "a", "b")
    _ = logger.experiment
    with monkeypatch.context() as patch, terminable():
        patch.setattr(_AsyncWriter, "write", stopped)
        with pytest.raises(Terminated):
            logger.log_metrics({"loss": 0.5}, step=3)
    logger.finalize("failed")
    events = EventAccumulator(logger.log_dir).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]


@pytest.mark.parametrize(
    ("number", "texts"),
    [
        (errno.ENOSPC, ["out/a.png could not be written: the disk is full", "Make room"]),
        (errno.EROFS, ["out/a.png may not be written or read", "--trainer.default_root_dir FOLDER"]),
        (errno.EACCES, ["out/a.png may not be written or read", "Change its permissions"]),
    ],
)
def test_message_about_the_disk(number: int, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    message = _ends(OSError(number, os.strerror(number), "out/a.png"), monkeypatch)
    assert message.startswith("lightning: error: ")
    for text in texts:
        assert text in message


@pytest.mark.parametrize("error", [RuntimeError("a defect"), OSError(errno.EIO, "broken"), KeyError("x")])
def test_defect_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.cli, "_run", lambda words: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        main(["cost", "resnet50"])


@pytest.mark.parametrize(
    ("error", "files", "died"),
    [
        (
            "ConnectionResetError(104, 'reset')",
            ["torch/utils/data/dataloader.py", "multiprocessing/connection.py"],
            True,
        ),
        ("EOFError()", ["torch/utils/data/dataloader.py", "multiprocessing/reduction.py"], True),
        ("FileNotFoundError(2, 'none')", ["torch/utils/data/dataloader.py", "multiprocessing/connection.py"], True),
        ("OSError(24, 'too many files')", ["torch/utils/data/dataloader.py", "multiprocessing/connection.py"], False),
        ("ConnectionResetError(104, 'reset')", ["hub.py"], False),
    ],
)
def test_connection_to_a_data_loading_process_that_died(
    error: str, files: list[str], died: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system says when the process dies while it hands a batch over; elsewhere it is another matter."""
    source, last = (f"def outer(inner):\n    {line}\n" for line in ("inner()", f"raise {error}"))
    calls: list[Any] = []
    for file in files:
        made: dict[str, Any] = {}
        exec(compile(last if file == files[-1] else source, f"/lib/{file}", "exec"), made)
        calls.append(made["outer"])
    monkeypatch.setattr(core.cli, "_run", lambda words: calls[0](lambda: calls[-1](None)))
    with pytest.raises(SystemExit if died else OSError) as stopped:
        main(["cost", "resnet50"])
    assert ("a process that loads data died" in str(stopped.value)) == died


@pytest.mark.parametrize(("error", "said"), [(EOFError, False), (BrokenPipeError, False), (ValueError, True)])
def test_loading_process_does_not_complain_that_the_command_ended(error: type[Exception], said: bool) -> None:
    program = f"""
import multiprocessing, os, sys
from core.stopping import terminable

def serve():  # as the thread that hands tensors over
    sys.excepthook({error.__name__}, {error.__name__}(), None)

with terminable():
    process = multiprocessing.get_context("fork").Process(target=serve)
    process.start()
    process.join()
assert sys.excepthook is sys.__excepthook__
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (error.__name__ in ended.stderr) == said


def test_what_was_half_made_ends_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, said = [], []

    class HalfMade:
        def __init__(self) -> None:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

        def __del__(self) -> None:
            ended.append(self)
            raise AttributeError("no attribute '_workers_status'")

    monkeypatch.setattr(sys, "unraisablehook", said.append)
    try:
        HalfMade()
    except RuntimeError as error:
        let_go(error)
    assert len(ended) == 1
    assert not said
    assert sys.unraisablehook == said.append


class _Stop(Callback):
    """A signal to this process in an epoch."""

    def __init__(self, number: int, epoch: int) -> None:
        self.number, self.epoch = number, epoch

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_goes_on_by_the_command_it_names(
    number: int, status: int, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "photos.yaml", photos)
    with pytest.MonkeyPatch.context() as patch:
        add_callbacks(patch, _Stop(number, epoch=1))
        patch.setattr(sys, "argv", ["lightning"])
        with pytest.raises(SystemExit) as stopped:
            command("fit", config, tmp_path)
    assert stopped.value.code == status
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (run,) = runs(tmp_path)
    assert f"Saved is {run}/checkpoints/last.ckpt. To go on from it, type: lightning fit " in printed
    main(shlex.split(printed.rpartition("type: lightning ")[2]))
    assert runs(tmp_path) == [run]
    assert saved(run)["epoch"] == 1
    assert len(metric(run, "val_acc")) == 2


def test_stopped_before_anything_was_saved(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_callbacks(monkeypatch, _Stop(signal.SIGTERM, epoch=0))
    with pytest.raises(SystemExit) as stopped:
        command("fit", write_config(tmp_path / "photos.yaml", photos), tmp_path)
    assert stopped.value.code == 143
    assert "nothing has been saved; to start again, repeat the command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "names_it"),
    [([], False), (["--ckpt_path", "last"], True), (["--ckpt_path=last"], True)],
    ids=["new run", "resumed", "resumed, with ="],
)
def test_what_was_saved_before_belongs_to_a_resumed_run(words: list[str], names_it: bool, tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    text = how_to_go_on(last, ["fit", "-c", "a.yaml", *words], since=last.stat().st_mtime + 1)
    if names_it:
        assert text.endswith(f"type: lightning fit -c a.yaml --ckpt_path {last}")
    else:
        assert "nothing has been saved" in text


def test_checkpoint_of_a_run_without_the_own_logger_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_callbacks(monkeypatch, Interrupt(1))
    config = write_config(tmp_path / "photos.yaml", photos, auto_augment=None)
    words = ["fit", "-c", str(config), "--trainer.logger", "false", "--trainer.default_root_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["lightning", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert stopped.value.code == 130
    assert f"stopped by Ctrl-C. Saved is {last}. To go on from it, type: lightning fit" in capsys.readouterr().err
    assert last.is_file()


def test_what_ends_each_process_can_be_handed_to_spawned_ones() -> None:
    with terminable():  # whose handler is a function that cannot be pickled
        callback = EndedAtOnce()
        copy = pickle.loads(pickle.dumps(callback))
    assert callable(callback.handler)
    assert copy.handler is None


def test_test_is_stopped_by_sigterm(trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Callback):
        def on_test_batch_end(self, *args: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    add_callbacks(monkeypatch, Stop())
    last = str(trained["folder"] / "checkpoints" / "last.ckpt")
    with pytest.raises(SystemExit) as stopped:
        command("test", trained["config"], tmp_path, "--ckpt_path", last)
    assert stopped.value.code == 143


def test_data_loading_process_that_dies(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(*args: Any) -> Any:
        assert get_worker_info() is not None
        os._exit(3)

    monkeypatch.setattr("vision.files.read_image", dies)
    config = write_config(tmp_path / "photos.yaml", photos, num_workers=1)
    with pytest.raises(SystemExit) as stopped:
        command("fit", config, tmp_path)
    message = str(stopped.value.code)
    assert message.startswith("lightning: error: a process that loads data died: DataLoader worker")
    assert "--data.num_workers" in message
    assert message.endswith("to start again, repeat the command.")
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_sweep_of_a_few_faults(tmp_path: Path) -> None:
    """The script itself, on real processes; the whole of it is in tests/README.md."""
    words = [
        "--config",
        "timeseries/configs/csv.yaml",
        "--fault",
        "SIGTERM",
        "kill -9",
        "disk full",
        "--verb",
        "--seed",
    ]
    results = tmp_path / "results.json"
    ended = subprocess.run(
        [sys.executable, str(SWEEP), *words, "1", "--results", str(results)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    happened = json.loads(results.read_text())["fit with"]["timeseries/configs/csv.yaml"]
    assert happened["SIGTERM"].startswith("143, ")
    assert happened["kill -9"].startswith("137, ")
    assert "1, went on after epoch 0" in happened["disk full"]

"""Fixtures that every test may use, and global state put back after each."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start; one test runs on each core

import hypothesis
import numpy as np
import pytest
import torch
from huggingface_hub import constants

hypothesis.settings.register_profile("untimed", deadline=None)  # a machine that is busy for a moment is no failure
hypothesis.settings.load_profile("untimed")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job, where what is stopped here would go on
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _restored_state() -> Iterator[None]:
    """Same random numbers for every test, and dtype, threads and seed variables as they were.

    One thread: the nets here are so small that threads cost more than they save.
    """
    dtype, seed, threads = torch.get_default_dtype(), os.environ.pop("PL_GLOBAL_SEED", None), torch.get_num_threads()
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.environ.pop("LARKIT_RUN", None)
    if seed is not None:
        os.environ["PL_GLOBAL_SEED"] = seed


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders that are only read: 6 training and 3 validation images of each class."""
    from training.small_runs import write_photos  # imports the whole command, which few tests need

    return write_photos(tmp_path_factory.mktemp("photos"), train=6, val=3)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that is only read and has learned its pictures: ``folder``, ``config``, ``photos``, and ``out`` above."""
    from training.small_runs import PLAIN, command, runs, write_config, write_photos

    base = tmp_path_factory.mktemp("trained")
    environment = os.environ.copy()
    root = write_photos(base / "photos", train=8, val=3, test=2)
    config = write_config(base / "photos.yaml", root, **PLAIN)
    command("fit", config, base / "out", "--trainer.max_epochs", "6")
    os.environ.clear()
    os.environ.update(environment)
    return {"folder": runs(base / "out")[0], "config": config, "photos": root, "out": base / "out"}


@pytest.fixture(scope="module")
def no_pictures(trained: dict[str, Path]) -> Iterator[None]:
    """Runs draw nothing; the shared run has its own pictures."""
    from training.small_runs import nothing_drawn

    with nothing_drawn():
        yield


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of the Hub repository ``org/name`` in an offline cache with its real layout."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "models--org--name"
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot

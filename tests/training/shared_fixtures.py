"""Fixtures of several folders of tests; a module takes them by ``pytest_plugins``.

They are no ``conftest.py``, since doctests are collected from modules by their base name, which must be unique.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from training.small_runs import PLAIN, command, nothing_drawn, runs, write_config, write_photos


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders that are only read: of each class 6 training and 3 validation images."""
    return write_photos(tmp_path_factory.mktemp("photos"), train=6, val=3)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that is only read and has learned its pictures: ``folder``, ``config``, ``photos``, and ``out`` above."""
    base, environment = tmp_path_factory.mktemp("trained"), os.environ.copy()
    root = write_photos(base / "photos", train=8, val=3, test=2)
    config = write_config(base / "photos.yaml", root, **PLAIN)
    command("fit", config, base / "out", "--trainer.max_epochs", "6")
    os.environ.clear()
    os.environ.update(environment)
    return {"folder": runs(base / "out")[0], "config": config, "photos": root, "out": base / "out"}


@pytest.fixture(scope="module")
def no_pictures(trained: dict[str, Path]) -> Iterator[None]:
    """Runs draw nothing; the shared run has its own pictures."""
    with nothing_drawn():
        yield

"""Fixtures of the audio tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_sounds import UNCHANGED, sound_runs, write_sound_config, write_tones


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders, which tests only read, with 6 training and 3 validation recordings of each class."""
    return write_tones(tmp_path_factory.mktemp("tones"), train=6, val=3)


@pytest.fixture(scope="session")
def trained_sounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run on tones, which tests only read: its ``folder``, ``config``, ``tones``, and ``out``."""
    from training.small_runs import command  # imports the whole command, which few tests need

    base = tmp_path_factory.mktemp("trained_sounds")
    environment = os.environ.copy()
    root = write_tones(base / "tones", train=8, val=3, test=2)
    config = write_sound_config(base / "tones.yaml", root, model=UNCHANGED)
    command("fit", config, base / "out", "--trainer.max_epochs", "4")
    os.environ.clear()
    os.environ.update(environment)
    return {"folder": sound_runs(base / "out")[0], "config": config, "tones": root, "out": base / "out"}


@pytest.fixture(scope="module")
def no_sound_pictures(trained_sounds: dict[str, Path]) -> Iterator[None]:
    """Runs draw no pictures; those of the shared run are tested."""
    from training.small_runs import nothing_drawn

    with nothing_drawn():
        yield

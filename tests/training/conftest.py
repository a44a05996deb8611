"""The image set and the short run that these tests share."""

from pathlib import Path

import pytest
from training.small_runs import trained_run, write_photos


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run that is only read; see :func:`training.small_runs.trained_run`."""
    return trained_run(tmp_path_factory.getbasetemp() / "trained")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders that are only read: of each class 6 training and 3 validation images."""
    return write_photos(tmp_path_factory.mktemp("photos"), train=6, val=3)

"""Fixtures of the tests of several modalities: a joint run that is only read."""

import os
from pathlib import Path

import pytest
from small_members import joint_runs, write_joint_config


@pytest.fixture(scope="session")
def trained_joint(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on photos and a series: ``folder``, ``config``, ``photos``, and ``out`` above."""
    from training.small_runs import command  # imports the whole command, which few tests need

    base = tmp_path_factory.mktemp("trained_joint")
    environment = os.environ.copy()
    config = write_joint_config(base / "joint.yaml", photos)
    command("fit", config, base / "out")
    os.environ.clear()
    os.environ.update(environment)
    return {"folder": joint_runs(base / "out")[0], "config": config, "photos": photos, "out": base / "out"}

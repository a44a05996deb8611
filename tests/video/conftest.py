"""Fixtures of the video tests."""

import os
from pathlib import Path

import pytest
from small_clips import video_runs, write_colors, write_video_config


@pytest.fixture(scope="session")
def trained_videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run on colors, which tests only read: its ``folder``, ``config``, ``videos``, and ``out``."""
    from training.small_runs import command  # imports the whole command, which few tests need

    base = tmp_path_factory.mktemp("trained_videos")
    environment = os.environ.copy()
    root = write_colors(base / "videos", train=6, val=3, test=2)
    config = write_video_config(base / "videos.yaml", root)
    command("fit", config, base / "out", "--trainer.max_epochs", "12", "--seed_everything", "0")
    os.environ.clear()
    os.environ.update(environment)
    return {"folder": video_runs(base / "out")[0], "config": config, "videos": root, "out": base / "out"}

"""What the tests of detection and segmentation share."""

from pathlib import Path

import pytest
from mm_files import write_scenes


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A folder with four small scenes: images, label maps, COCO annotations."""
    return write_scenes(tmp_path / "scenes")

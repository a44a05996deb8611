"""The public surface: what may be imported from the packages, held against a list.

After a wanted change: ``python tests/core/test_public_names.py`` writes the list anew. A name that disappears belongs
into CHANGELOG.md.
"""

import importlib
import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest

import core

LIST = Path(__file__).with_name("public_names.json")
PACKAGES = (
    "audio",
    "core",
    "core.analysis",
    "core.backbones",
    "core.layers",
    "core.ops",
    "core.reparam",
    "core.training",
    "multimodal",
    "pointcloud",
    "timeseries",
    "video",
    "vision",
    "vision.openmmlab",
)


def _names(package: str) -> list[str]:
    return sorted(importlib.import_module(package).__all__)


def test_the_list_has_each_package() -> None:
    assert tuple(json.loads(LIST.read_text(encoding="utf-8"))) == PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_those_of_the_list(package: str) -> None:
    listed = json.loads(LIST.read_text(encoding="utf-8"))[package]
    assert _names(package) == listed, "see the head of this file"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_can_be_imported_and_say_what_they_are(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__
    for name in module.__all__:
        thing = getattr(module, name)
        if name != "VARIANTS" and (callable(thing) or hasattr(thing, "__path__")):
            assert thing.__doc__, name


def test_the_version_is_that_of_the_installed_package() -> None:
    assert core.__version__ == version("larkit")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", core.__version__)


if __name__ == "__main__":
    LIST.write_text(json.dumps({p: _names(p) for p in PACKAGES}, indent=2) + "\n", encoding="utf-8")

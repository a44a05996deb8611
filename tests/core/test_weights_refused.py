"""Weights that are refused: what does not fit by its names, what is not there, damaged or dangerous."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_weights import STEM, check_same, fresh, saved

import core
from core.errors import InputError
from core.io.weights import read_state_dict


@pytest.mark.parametrize("in_chans", [1, 3, 5])
def test_stem_of_four_channels_does_not_adapt(in_chans: int, tmp_path: Path) -> None:
    torch.save(saved(in_chans=4), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=re.escape(STEM)):
        core.load_weights(fresh(in_chans=in_chans), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (8, 16, 24, 40)}, r"Other shape: downsample_layers\.3\.0\.weight \(32, 24, 3, 3\) where .* \(40, 24"),
        ({"depths": (1, 1, 3, 2), "kernel_sizes": (3, 7, (9, 0, 3), 13)}, r"Missing: stages\.3\.1\."),
        ({"kernel_sizes": (3, 7, (9, 0, 0), 13)}, r"Unexpected: stages\.2\.2\.dwconv\.weight"),
        ({"layer_scale_init_value": 0}, r"Unexpected: stages\.0\.0\.gamma, stages\.1\.0\.gamma"),
    ],
)
def test_another_variant_is_refused_by_name(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save(saved(), tmp_path / "weights.pth")
    model = fresh(**options)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(InputError, match=message) as error:
        core.load_weights(model, tmp_path / "weights.pth")
    assert str(error.value).startswith(f"{tmp_path / 'weights.pth'} does not fit the model.")
    assert "Build the variant that the file was saved from" in str(error.value)
    check_same(model, before)


@pytest.mark.parametrize("name", ["none.pth", "folder", "org/name/file.pth", "org/name.pth"])
def test_nothing_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        FileNotFoundError, match=f"no weights at '{name}' .it is {'a folder' if name == 'folder' else 'not'}"
    ):
        core.load_weights(fresh(), name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.pth", None),
        ("text.pth", b"<html>not found</html>"),
        ("empty.pth", b""),
        ("noise.safetensors", b"\x08" * 40),
    ],
)
def test_damaged_files(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is None:
        torch.save(saved(), tmp_path / name)
        content = (tmp_path / name).read_bytes()[:-5000]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is not a checkpoint that torch or safetensors can read"):
        core.load_weights(fresh(), tmp_path / name)


class _Dangerous:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(legacy: bool, tmp_path: Path) -> None:
    content = {"state_dict": saved(), "hook": _Dangerous(tmp_path / "ran")}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="holds Python objects beside tensors") as error:
        core.load_weights(fresh(), tmp_path / "weights.pth")
    assert legacy or "io.open" in str(error.value)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(content["hook"])).close()
    assert (tmp_path / "ran").exists()  # it would have run


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"model": {"lr": 1.0}}, torch.ones(3)])
def test_files_without_named_tensors(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="holds no tensors by name"):
        read_state_dict(tmp_path / "weights.pth")

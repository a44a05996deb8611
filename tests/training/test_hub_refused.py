"""What cannot be shared or loaded is refused by name, and no file chooses what code runs."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from core.cli import main
from core.errors import InputError, MissingError
from core.training.hub import from_pretrained, push_to_hub, save_pretrained
from vision import ImageClassifier

TINY = "test_unireplknet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_pretrained(ImageClassifier(TINY, 3), tmp_path / "shared")


def _edit(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_no_folder_and_no_file(folder: Path) -> None:
    with pytest.raises(MissingError, match=r"no folder .*nowhere; give one, or a Hub repository"):
        from_pretrained(folder / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingError, match=r"has no model\.safetensors"):
        from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(MissingError, match=r"has no config\.json; give a folder that save_pretrained wrote"):
        from_pretrained(str(folder))


@pytest.mark.usefixtures("repository")
def test_not_in_the_cache() -> None:
    with pytest.raises(MissingError, match=r"config\.json could not be downloaded from the Hugging Face Hub"):
        from_pretrained("org/name")


@pytest.mark.parametrize("content", ["{}", "[]", '{"class_path": 3, "hyperparameters": {}}', '{"class_path": "a.B"}'])
def test_config_of_something_else(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match="no class_path and hyperparameters of a LarKit task; save it with"):
        from_pretrained(folder)


def test_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("class_path: vision.ImageClassifier")
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        from_pretrained(folder)


def test_a_backbone_is_timms(tmp_path: Path) -> None:
    save_for_hf(timm.create_model(TINY), str(tmp_path), safe_serialization=True)
    with pytest.raises(InputError, match=r"it is a backbone: timm\.create_model"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("class_path", ["strange.Task", "os.system", "visions.ImageClassifier", "strange", "vision"])
def test_classes_outside_are_not_imported(
    class_path: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strange.py").write_text("from core.training.task import Task")
    monkeypatch.syspath_prepend(tmp_path)
    _edit(folder, class_path=class_path)
    with pytest.raises(InputError, match=r"only classes of audio, .*, vision are built, since a file must not choose"):
        from_pretrained(folder)
    assert "strange" not in sys.modules


@pytest.mark.parametrize("name", ["vision.Digits", "vision.Nothing", "vision.os.system", "vision.task.Task"])
def test_no_task_of_a_modality(name: str, folder: Path) -> None:
    _edit(folder, class_path=name)
    with pytest.raises(InputError, match="vision exports no such class"):
        from_pretrained(folder)


def test_hyperparameters_that_do_not_build(folder: Path) -> None:
    _edit(folder, hyperparameters={"backbone": TINY, "num_classes": 3, "depth": 4})
    with pytest.raises(InputError, match=r"does not take the hyperparameters of .*depth"):
        from_pretrained(folder)
    _edit(folder, hyperparameters={"backbone": "unireplknet_q", "num_classes": 3})
    with pytest.raises(InputError, match="cannot be built: unknown model 'unireplknet_q'; did you mean"):
        from_pretrained(folder)
    _edit(folder, hyperparameters={"backbone": "hf-hub:org/name", "num_classes": 3})
    with pytest.raises(InputError, match="unknown model 'hf-hub:org/name'"):
        from_pretrained(folder)


def test_no_other_weights_are_opened(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())["hyperparameters"]
    _edit(folder, hyperparameters=config | {"weights": "/nowhere.pth", "pretrained": True})
    assert from_pretrained(folder).hparams["weights"] is None
    _edit(folder, hyperparameters=config | {"backbone_args": {"checkpoint_path": "/nowhere.pth"}})
    with pytest.raises(InputError, match=r"name other weights \(checkpoint_path\)"):
        from_pretrained(folder)


def test_weights_that_do_not_fit(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({name: t for name, t in state.items() if name != "backbone.head.bias"}, path)
    with pytest.raises(InputError, match=r"does not fit its config\.json: .*backbone\.head\.bias"):
        from_pretrained(folder)
    save_file(state | {"backbone.head.bias": torch.zeros(4)}, path)
    with pytest.raises(InputError, match=r"size mismatch for backbone\.head\.bias"):
        from_pretrained(folder)
    path.write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"model\.safetensors of .* does not fit"):
        from_pretrained(folder)


def test_folders_that_are_taken(folder: Path, tmp_path: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"shared exists and is not empty; give a new folder"):
        save_pretrained(ImageClassifier(TINY, 4), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file exists and is not empty"):
        save_pretrained(ImageClassifier(TINY, 4), tmp_path / "file")


def test_checkpoints_that_are_none(trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no checkpoint .*nothing\.ckpt"):
        save_pretrained(tmp_path / "nothing.ckpt", tmp_path / "shared")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(InputError, match=r"text\.ckpt is not a checkpoint that torch or safetensors can read"):
        save_pretrained(tmp_path / "text.ckpt", tmp_path / "shared")
    torch.save(ImageClassifier(TINY, 3).state_dict(), tmp_path / "weights.ckpt")
    with pytest.raises(InputError, match="is not a checkpoint that lightning fit wrote"):
        save_pretrained(tmp_path / "weights.ckpt", tmp_path / "shared")
    content = torch.load(trained["folder"] / "checkpoints" / "best.ckpt", weights_only=True)
    content["hyper_parameters"].pop("_class_path")
    torch.save(content, tmp_path / "python.ckpt")
    with pytest.raises(InputError, match="does not say which task it holds"):
        save_pretrained(tmp_path / "python.ckpt", tmp_path / "shared")
    content["hyper_parameters"]["_class_path"] = "vision.ImageClassifier"
    content["hyper_parameters"] |= {"num_classes": None, "spec": {"classes": ["a", "b", "c", "d", "e"]}}
    torch.save(content, tmp_path / "edited.ckpt")
    with pytest.raises(InputError, match=r"does not fit its own hyperparameters: .*size mismatch"):
        save_pretrained(tmp_path / "edited.ckpt", tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


class _Own(ImageClassifier):
    pass


def test_tasks_that_no_file_describes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was not built from the name of a backbone"):
        save_pretrained(ImageClassifier(timm.create_model(TINY), 1000), tmp_path / "a")
    with pytest.raises(InputError, match=r"no modality exports .*_Own"):
        save_pretrained(_Own(TINY, 3), tmp_path / "b")
    changed = ImageClassifier(TINY, 3)
    changed.backbone.reset_classifier(5)  # type: ignore[operator]
    with pytest.raises(InputError, match=r"changed after it was built: backbone\.head\.bias, backbone\.head\.weight"):
        save_pretrained(changed, tmp_path / "c")
    with pytest.raises(InputError, match=r"cannot be written as JSON: .*dtype"):
        save_pretrained(ImageClassifier(TINY, 3, backbone_args={"dtype": torch.float64}), tmp_path / "d")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["name", "owner/name/file", "owner/na me", ""])
def test_names_that_are_no_repository(name: str) -> None:
    with pytest.raises(InputError, match="is not the name of a repository; give OWNER/NAME"):
        push_to_hub(ImageClassifier(TINY, 3), name)


def test_a_hub_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("401 Unauthorized")

    monkeypatch.setattr("core.training.hub.HfApi.file_exists", refuse)
    with pytest.raises(InputError, match=r"could not push to 'org/name': 401 Unauthorized; .* hf auth login"):
        push_to_hub(ImageClassifier(TINY, 3), "org/name")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.ckpt"], "give either OWNER/NAME, a repository of the Hugging Face Hub, or --folder FOLDER"),
        (["x.ckpt", "a/b", "--folder", "c"], "give either OWNER/NAME"),
        (["x.ckpt", "a/b"], "there is no checkpoint x.ckpt"),
        ([], "Type: lightning push --help"),
        (["x.ckpt", "a/b", "--public"], "Type: lightning push --help"),
    ],
)
def test_the_verb(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["push", *words])
    assert message in str(stopped.value.code)
    assert not list(tmp_path.iterdir())


def test_a_copied_folder_needs_nothing_else(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    assert from_pretrained(tmp_path / "copy").num_classes == 3


def test_a_shared_detector_runs_no_file_of_others(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    marker, evil = tmp_path / "ran", tmp_path / "evil.py"
    evil.write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    hyperparameters = {"backbone": TINY, "config": str(evil)}
    _edit(folder, class_path="vision.openmmlab.detector.Detector", hyperparameters=hyperparameters)
    with pytest.raises(InputError, match=r"names config=.*, which can run code; look into it"):
        from_pretrained(folder)
    assert not marker.exists()

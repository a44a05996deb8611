"""Files of others: whatever kind the project reads, nothing in it runs, and a message says what is wrong."""

import hashlib
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import timm
import torch
import yaml
from training.small_runs import command, runs, table, write_config, write_photos

from core.cli import main
from core.data.images import read_image
from core.errors import InputError, MissingError
from core.io.checkpoint import AtomicCheckpointIO
from core.io.downloads import hub_file, web_file
from core.io.untrusted import parse_yaml, read_arrays, restricted_pickles
from core.io.weights import read_state_dict
from pointcloud.files import read_cloud
from pointcloud.sets import read_h5
from vision import ImageClassifier


class _Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a file makes if it runs."""
    return tmp_path / "ran"


def _attack(path: Path, marker: Path, **content: Any) -> Path:
    torch.save({"state_dict": {"w": torch.ones(1)}, "hyper_parameters": {}, "x": _Attack(marker), **content}, path)
    return path


def _message(*words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert isinstance(stopped.value.code, str), stopped.value.code
    return stopped.value.code


def test_the_attack_works_where_nothing_stops_it(marker: Path, tmp_path: Path) -> None:
    torch.load(_attack(tmp_path / "a.ckpt", marker), weights_only=False)
    assert marker.is_dir()


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict", "export"])
def test_checkpoint_of_a_verb(verb: str, photos: Path, marker: Path, tmp_path: Path) -> None:
    config, file = write_config(tmp_path / "c.yaml", photos), _attack(tmp_path / "a.ckpt", marker)
    message = _message(verb, "-c", str(config), "--ckpt_path", str(file))
    assert "a.ckpt holds Python objects beside tensors (posix.mkdir)" in message
    assert not marker.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["push", "a.ckpt", "--folder", "shared"],
        ["erf", "a.ckpt", "--images", "a.png"],
        ["erf", "test_unireplknet=a.ckpt", "--images", "a.png"],
        ["erf", "test_unireplknet=a.pth", "--images", "a.png"],
        ["cost", "a.ckpt"],
        ["shape-bias", "a.ckpt", "--images", "a.png"],
    ],
)
def test_checkpoint_of_an_analysis(
    words: list[str], marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.ckpt", "a.pth"):
        _attack(tmp_path / name, marker)
    from PIL import Image

    Image.new("RGB", (8, 8)).save("a.png")
    assert "posix.mkdir" in _message(*words)
    assert not marker.exists()
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("kind", ["--model.weights", "--model.backbone_args"])
def test_weights_of_a_model(kind: str, photos: Path, marker: Path, tmp_path: Path) -> None:
    config, file = write_config(tmp_path / "c.yaml", photos), _attack(tmp_path / "a.pth", marker)
    value = str(file) if kind == "--model.weights" else f"{{checkpoint_path: {file}}}"
    try:
        message = _message("fit", "-c", str(config), kind, value)
    except pickle.UnpicklingError as error:
        message = str(error)
    assert "mkdir" in message
    assert not marker.exists()


def test_lightning_reads_nothing_that_runs_whatever_it_asks_for(marker: Path, tmp_path: Path) -> None:
    file = _attack(tmp_path / "a.ckpt", marker)
    with pytest.raises(InputError, match="holds Python objects beside tensors"):
        AtomicCheckpointIO().load_checkpoint(file, weights_only=False)
    assert not marker.exists()


def test_libraries_that_would_run_it_are_kept_from_it(marker: Path, tmp_path: Path) -> None:
    checkpoint = pytest.importorskip("mmengine.runner.checkpoint")
    file = _attack(tmp_path / "a.pth", marker)
    before = dict(os.environ)
    with restricted_pickles(), pytest.raises(pickle.UnpicklingError):
        checkpoint.load_from_local(str(file), "cpu")
    assert dict(os.environ) == before
    assert not marker.exists()
    checkpoint.load_from_local(str(file), "cpu")
    assert marker.exists()  # MMEngine alone


@pytest.mark.parametrize("asked", [False, None])
@pytest.mark.parametrize("forced", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"])
def test_restriction_holds_whatever_the_environment_asks_for(
    forced: str, asked: bool | None, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(forced, "1")
    file, before = _attack(tmp_path / "a.pth", marker), dict(os.environ)
    with restricted_pickles(), pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=asked)
    assert dict(os.environ) == before
    assert not marker.exists()


def test_openmmlab_model_is_built_with_the_restriction(marker: Path, tmp_path: Path) -> None:
    config_files = pytest.importorskip("vision.openmmlab.config_files")
    file = _attack(tmp_path / "a.pth", marker)
    init = {"model.neck.init_cfg": {"type": "Pretrained", "checkpoint": str(file)}}
    config = config_files.read_config("mask_rcnn_unireplknet_a_digit_scenes.py", init)
    with pytest.raises((pickle.UnpicklingError, InputError)):
        config_files.build_model(config)
    assert not marker.exists()


def _rewritten(path: Path, out: Path, **hyperparameters: Any) -> str:
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] |= hyperparameters
    torch.save(content, out)
    return str(out)


@pytest.mark.parametrize("class_path", ["evil.ImageClassifier", "vision.Other", "os.system"])
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_checkpoint_chooses_no_class(
    class_path: str, verb: str, trained: dict[str, Path], marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = _rewritten(trained["folder"] / "checkpoints/last.ckpt", tmp_path / "a.ckpt", _class_path=class_path)
    with pytest.raises(SystemExit) as stopped:
        command(verb, trained["config"], tmp_path, "--ckpt_path", file)
    assert f"holds {class_path}, but the configuration names vision.ImageClassifier" in str(stopped.value.code)
    assert not marker.exists()


def test_checkpoint_chooses_no_python_file(marker: Path, tmp_path: Path) -> None:
    pytest.importorskip("vision.openmmlab.detector")
    evil = tmp_path / "evil.py"
    evil.write_text(f"import os\nos.mkdir({str(marker)!r})\ndefault_scope = 'mmdet'\n")
    stored = {"_class_path": "vision.openmmlab.detector.Detector", "config": str(evil)}
    torch.save({"hyper_parameters": stored, "state_dict": {}}, tmp_path / "a.ckpt")
    config = Path(__file__).parents[2] / "vision" / "configs" / "det.yaml"
    message = _message("test", "-c", str(config), "--ckpt_path", str(tmp_path / "a.ckpt"))
    assert f"names the Python file {str(evil)!r}, which would be run" in message
    assert f"--model.config {evil}" in message
    assert not marker.exists()


@pytest.mark.parametrize("flag", ["-c", "--config"])
@pytest.mark.parametrize("place", ["model", "trainer: {callbacks", "x"])
def test_yaml_tags_run_nothing(flag: str, place: str, marker: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"{place}: !!python/object/apply:os.mkdir [{marker}]{'}' * place.count('{')}\n")
    assert "a.yaml is not YAML" in _message("fit", flag, str(file))
    assert not marker.exists()
    assert "python/object/apply" in _message("fit", f"--config={file}")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("model", {"class_path": "os.mkdir", "init_args": {"path": "MARKER"}}),
        ("model", "os.mkdir"),
        ("data", {"class_path": "os.mkdir", "init_args": {"path": "MARKER"}}),
        ("trainer", {"callbacks": [{"class_path": "os.mkdir", "init_args": {"path": "MARKER"}}]}),
        ("trainer", {"logger": {"class_path": "os.mkdir", "init_args": {"path": "MARKER"}}}),
        ("trainer", {"strategy": {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "MARKER"]}}}),
    ],
)
def test_class_path_of_what_is_no_such_class(
    section: str, value: Any, photos: Path, marker: Path, tmp_path: Path
) -> None:
    config, second = write_config(tmp_path / "c.yaml", photos), tmp_path / "second.yaml"
    second.write_text(yaml.safe_dump({section: value}).replace("MARKER", str(marker)))
    message = _message("fit", "-c", str(config), "-c", str(second))
    assert re.search(rf"os\.mkdir|subprocess\.Popen|{section}", message)
    assert not marker.exists()


def _numpy_objects(path: Path, marker: Path) -> None:
    np.save(path, np.array([_Attack(marker)], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "write", "read", "text"),
    [
        ("a.npy", _numpy_objects, lambda path: read_cloud(path, 8), "a.npy"),
        ("a.dat", lambda path, marker: path.write_bytes(pickle.dumps(_Attack(marker))), read_arrays, "asks for posix"),
        ("a.pkl", lambda path, marker: path.write_bytes(pickle.dumps([_Attack(marker)], 0)), read_arrays, "asks for"),
    ],
)
def test_clouds_that_are_pickles(
    name: str, write: Callable[..., Any], read: Callable[[Path], Any], text: str, marker: Path, tmp_path: Path
) -> None:
    write(tmp_path / name, marker)
    with pytest.raises(InputError, match=text):
        read(tmp_path / name)
    assert not marker.exists()


def test_hdf5_with_objects(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.array([pickle.dumps(1), b"x"], dtype=h5py.special_dtype(vlen=bytes))
        file["label"] = [0, 1]
    with pytest.raises(InputError, match=r"a\.h5 holds data as object; expected numbers"):
        read_h5(tmp_path / "a.h5")


def test_world_of_objects(marker: Path, tmp_path: Path) -> None:
    from timeseries.sets import GlobalWeather

    _numpy_objects(tmp_path / "stations_sorted.npy", marker)
    for split in ("train", "val", "test"):
        _numpy_objects(tmp_path / f"temp_global_hourly_{split}.npy", marker)
        _numpy_objects(tmp_path / f"data_time_{split}.npy", marker)
    with pytest.raises(InputError, match="Arrays of Python objects are not opened"):
        GlobalWeather(root=str(tmp_path)).setup("fit")
    assert not marker.exists()


def test_image_that_is_a_program(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nquit\n")
    with pytest.raises(InputError, match=r"a\.png cannot be decoded as an image: cannot identify image file"):
        read_image(tmp_path / "a.png")


def test_download_is_compared_with_the_hash_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    begin = hashlib.sha256(b"weights").hexdigest()[:8]
    names = {f"right-{begin}.pth": True, "wrong-0123abcd.pth": False, "efficientnet-b0.pth": True, "plain.pth": True}
    for name, well in names.items():
        (tmp_path / name).write_bytes(b"weights")
        if well:
            assert web_file((tmp_path / name).as_uri()).read_bytes() == b"weights"
        else:
            with pytest.raises(MissingError, match="invalid hash value"):
                web_file((tmp_path / name).as_uri())
            assert not (tmp_path / "cache" / "hub" / "checkpoints" / name).exists()


def test_published_weights_are_compared_with_the_hash_in_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before timm finds them in torch's cache; nothing is left there otherwise."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = []

    def download(url: str, path: str, hash_prefix: str | None, progress: bool) -> None:
        asked.append((url, path, hash_prefix))
        raise RuntimeError(f'invalid hash value (expected "{hash_prefix}")')

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    with pytest.raises((InputError, RuntimeError), match="invalid hash value"):
        timm.create_model("replknet_31b.in1k", pretrained=True, depths=(1, 1, 1, 1))
    ((url, path, hash_prefix),) = asked
    assert re.search(rf"-{hash_prefix}\.pth$", url)
    assert hash_prefix is not None
    assert Path(path).parent == tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("large", [True, False])
def test_hub_file_is_compared_with_the_hubs_name_for_it(large: bool, repository: Path) -> None:
    content = b"weights"
    git = hashlib.sha1(b"blob 7\0" + content).hexdigest()
    blob = repository.parents[1] / "blobs" / (hashlib.sha256(content).hexdigest() if large else git)
    blob.parent.mkdir()
    blob.write_bytes(content)
    (repository / "model.bin").symlink_to(blob)
    assert hub_file("org/name", "model.bin").read_bytes() == content
    blob.write_bytes(b"other")
    with pytest.raises(InputError, match=f"is not what the Hugging Face Hub has: its hash is not {blob.name}. Delete"):
        hub_file("org/name", "model.bin")
    (repository / "pytorch_model.bin").symlink_to(blob)
    with pytest.raises(InputError, match="is not what the Hugging Face Hub has"):
        read_state_dict("org/name")


# Names


def test_names_of_files_and_classes_that_are_not_utf8(tmp_path: Path) -> None:
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    root = write_photos(tmp_path / "photos", [odd, "$x^$"], train=4, val=2)
    source = next((root / "val" / odd).iterdir())
    (tmp_path / "new").mkdir()
    for name in (f"{odd}.png", "a.png"):
        shutil.copy(source, tmp_path / "new" / name)

    config = write_config(tmp_path / "a.yaml", root)
    command("fit", config, tmp_path, "--trainer.max_epochs", "1")
    words = ["--ckpt_path", "best", "--data.predict_path", str(tmp_path / "new")]
    command("predict", config, tmp_path, *words)
    rows = table(runs(tmp_path)[1] / "predictions.csv")
    assert [Path(row["file"]).name for row in rows] == ["a.png", r"caf\xe9.png"]
    assert {row["class"] for row in rows} <= {r"caf\xe9", "$x^$"}


# YAML

_LETTERS = "abcdefghij"
_ENDLESS = {
    "refers to itself": "model: &a\n  class_path: vision.ImageClassifier\n  init_args: *a\n",
    "grows beyond": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(_LETTERS)),
    "nested more than": "model: " + 100_000 * "[",
    "is nested more": "\n".join(f"{' ' * i}a:" for i in range(2000)),
}


@pytest.mark.parametrize("message", _ENDLESS)
def test_yaml_without_end_is_refused_at_once(message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(_ENDLESS[message])
    started = time.monotonic()
    with pytest.raises(SystemExit, match=rf"^lightning: error: .*a\.yaml .*{message[:12]}") as refused:
        main(["fit", "-c", str(file)])
    assert time.monotonic() - started < 3  # a second, on a machine that does nothing else
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("words", [["--model", "FILE"], ["--model.backbone_args", "&a {b: *a}"]])
def test_yaml_without_end_in_an_option(words: list[str], photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "b.yaml"
    file.write_text(_ENDLESS["refers to itself"])
    words = [str(file) if word == "FILE" else word for word in words]
    with pytest.raises(SystemExit, match=r"^lightning: error: .*refers to itself"):
        main(["fit", "-c", str(write_config(tmp_path / "a.yaml", photos)), *words])


def test_yaml_without_end_in_a_checkpoint(trained: dict[str, Path], tmp_path: Path) -> None:
    content = torch.load(trained["folder"] / "checkpoints" / "best.ckpt", weights_only=True)
    for message, text in _ENDLESS.items():
        content["config"] = text
        torch.save(content, tmp_path / "a.ckpt")
        with pytest.raises(SystemExit, match=rf"configuration of the run of .*a\.ckpt .*{message[:12]}"):
            main(["test", "--ckpt_path", str(tmp_path / "a.ckpt")])


def test_anchors_of_common_use_are_read() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: *a\nc: {<<: *a, x: 2}\n"
    assert parse_yaml(text, "a.yaml") == {
        "a": {"x": 1, "y": [1, 2]},
        "b": {"x": 1, "y": [1, 2]},
        "c": {"x": 2, "y": [1, 2]},
    }
    for text in ("a: *unknown\n", "a: 2001-99-99\n", "a: [1\n", "a: !!python/none x\n"):
        with pytest.raises(InputError, match="is not YAML") as refused:
            parse_yaml(text, "a.yaml")
        assert "\n" not in str(refused.value)


def test_json_without_end_in_a_shared_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(100_000 * "[")
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        ImageClassifier.from_pretrained(str(tmp_path))

"""Data sets in their published layouts: splits, labels, few shots, the built-in clouds, and what is refused."""

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import trimesh

from core.errors import InputError, MissingError
from pointcloud import DigitClouds, ModelNet40, PointFolder, PointSpec, ScanObjectNN
from pointcloud.demo import digit_cloud
from pointcloud.sets import MODELNET40, SCANOBJECTNN

SMALL: dict[str, Any] = {"load_points": 30, "num_points": 20, "num_workers": 0, "batch_size": 2}


def _clouds(count: int, width: int = 3) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 30, width)).astype(np.float32)


def _set_up(data: Any, stage: str = "fit") -> Any:
    data.prepare_data()
    data.setup(stage)
    return data


def _labels(part: Any) -> list[int]:
    return [int(label) for _, label in part.samples]


def _write_pickles(root: Path, labels: dict[str, list[int]]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for split, values in labels.items():
        content = (list(_clouds(len(values), 6)), [np.array([label]) for label in values])
        (root / f"modelnet40_{split}_8192pts_fps.dat").write_bytes(pickle.dumps(content))
    return root


def _write_h5(file: Path, labels: list[int], column: bool = False) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as content:
        content["data"], content["label"] = _clouds(len(labels)), np.array(labels).reshape((-1, 1) if column else -1)
    return file


TRAIN = [0, 7, 39] * 10


def test_modelnet40_as_pickles(tmp_path: Path) -> None:
    root = _write_pickles(tmp_path, {"train": TRAIN, "test": [39, 0]})
    data = _set_up(ModelNet40(str(root), **SMALL))
    assert (len(data.classes), data.classes[7], data.classes[39]) == (40, "car", "xbox")
    assert sorted(_labels(data.val_set)) == [0, 7, 39]  # a tenth of each class
    assert len(data.train_set) == 27
    held = {name for (name, _), _ in data.val_set.samples}
    assert not held & {name for (name, _), _ in data.train_set.samples}
    assert _labels(data.test_set) == [39, 0]
    points, label = next(iter(data.val_dataloader()))
    assert (points.shape, label.tolist()) == ((2, 30, 3), _labels(data.val_set)[:2])
    chosen = _set_up(ModelNet40(str(root), val_split="test", **SMALL))
    assert (_labels(chosen.val_set), len(chosen.train_set)) == ([39, 0], 30)


def test_modelnet40_as_h5(tmp_path: Path) -> None:
    for split, files in (("train", 2), ("test", 1)):
        names = [f"ply_data_{split}{i}.h5" for i in range(files)]
        for name in names:
            _write_h5(tmp_path / name, [1, 2] * 5, column=True)
        lines = [f"data/modelnet40_ply_hdf5_2048/{name}" for name in names]
        (tmp_path / f"{split}_files.txt").write_text("\n".join(lines) + "\n")
    data = _set_up(ModelNet40(str(tmp_path), **SMALL))
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (18, 2, 10)
    (tmp_path / "ply_data_train1.h5").unlink()
    with pytest.raises(MissingError, match=r"there is no .*ply_data_train1\.h5; unpack the whole archive"):
        data.splits()
    (tmp_path / "test_files.txt").unlink()
    _write_h5(tmp_path / "ply_data_train1.h5", [1, 2])
    with pytest.raises(MissingError, match=r"there is no .*test_files\.txt"):
        data.splits()


def test_modelnet40_as_meshes(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for name in ("bed", "xbox"):
            (tmp_path / name / split).mkdir(parents=True)
            for i in range(count):
                trimesh.creation.box((1, 2, 3 + i)).export(tmp_path / name / split / f"{name}_{i:04d}.off")
    data = _set_up(ModelNet40(str(tmp_path), **SMALL))
    assert (_labels(data.train_set), _labels(data.val_set), _labels(data.test_set)) == (
        *([2] * 3 + [39] * 3, [2, 39]),
        [2, 2, 39, 39],
    )
    assert data.test_set[0][0].shape == (30, 3)


def test_modelnet40_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"has neither modelnet40_train_8192pts_fps.dat, nor train_files.txt, nor"):
        ModelNet40(str(tmp_path), **SMALL).prepare_data()


@pytest.mark.parametrize("label", [40, -1])
def test_label_out_of_range(label: int, tmp_path: Path) -> None:
    root = _write_pickles(tmp_path, {"train": [0, label], "test": [0]})
    with pytest.raises(InputError, match=rf"train_8192pts_fps.dat/1 has label {label}; expected 0 to 39"):
        ModelNet40(str(root), **SMALL).setup("fit")


@pytest.mark.parametrize("content", [7, ([1],), ([1], [[]])])
def test_pickle_that_is_another(content: Any, tmp_path: Path) -> None:
    root = _write_pickles(tmp_path, {"test": [0]})
    (root / "modelnet40_train_8192pts_fps.dat").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="is not a pair of a list of arrays and a list of labels"):
        ModelNet40(str(root), **SMALL).setup("fit")


def test_scanobjectnn(tmp_path: Path) -> None:
    _write_h5(tmp_path / "training_objectdataset_augmentedrot_scale75.h5", [0, 14] * 10)
    with pytest.raises(MissingError, match=r"there is no .*/test_objectdataset_augmentedrot_scale75\.h5"):
        ScanObjectNN(str(tmp_path), **SMALL).prepare_data()
    _write_h5(tmp_path / "test_objectdataset_augmentedrot_scale75.h5", [3])
    data = _set_up(ScanObjectNN(str(tmp_path), **SMALL))
    assert data.classes == list(SCANOBJECTNN)
    assert (len(data.train_set), sorted(_labels(data.val_set)), _labels(data.test_set)) == (18, [0, 14], [3])
    points, stored = data.test_set[0][0], _clouds(1)[0]
    assert np.array_equal(points.numpy(), stored)
    assert data.spec() == PointSpec(SCANOBJECTNN, load_points=30, num_points=20, normalize=False, y_up=True)
    (tmp_path / "test_objectdataset_augmentedrot_scale75.h5").write_bytes(b"no h5 at all")
    with pytest.raises(InputError, match=r"cannot be read: .*; download it again"):
        data.splits()


def test_h5_with_other_content(tmp_path: Path) -> None:
    for name in ("training", "test"):
        with h5py.File(tmp_path / f"{name}_objectdataset.h5", "w") as file:
            file["data"] = _clouds(2)
    data = ScanObjectNN(str(tmp_path), variant="", **SMALL)
    with pytest.raises(InputError, match=r"cannot be read: .*label"):
        data.setup("fit")
    with h5py.File(tmp_path / "training_objectdataset.h5", "a") as file:
        file["label"] = np.zeros(3)
    with pytest.raises(InputError, match="has 2 clouds and 3 labels"):
        data.setup("fit")


def test_few_shots(tmp_path: Path) -> None:
    root = _write_pickles(tmp_path, {"train": [*TRAIN, 5, 5], "test": [0]})
    data = _set_up(ModelNet40(str(root), shots=4, **SMALL))
    assert _labels(data.train_set) == [0] * 4 + [5] * 4 + [7] * 4 + [39] * 4
    names = [name for (name, _), _ in data.train_set.samples]
    assert len(set(names)) == 13  # of class 5 one cloud is held out and the other repeated
    whole = _set_up(ModelNet40(str(root), **SMALL)).train_set.samples
    for i, label in enumerate((0, 5, 7, 39)):
        members = [name for (name, _), y in whole if y == label]
        assert set(names[4 * i : 4 * i + 4]) <= set(members)
        assert label == 5 or set(names[4 * i : 4 * i + 4]) != set(members[:4])  # drawn, not the first ones
    again = _set_up(ModelNet40(str(root), shots=4, **SMALL))
    assert names == [name for (name, _), _ in again.train_set.samples]
    assert len(data.val_set) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_points": 31}, "expected num_points from 1 to load_points"),
        ({"num_points": 0}, "expected num_points from 1 to load_points"),
        ({"shots": 0}, "shots of at least 1 or null"),
        ({"val_split": "train"}, "'held_out' or 'test'"),
        ({"val_share": 1.0}, r"a share in \(0, 1\)"),
    ],
)
def test_options_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelNet40("anywhere", **(SMALL | wrong))


def test_folder_of_several_formats(tmp_path: Path) -> None:
    for i, name in enumerate(("a", "b")):
        (tmp_path / "train" / name).mkdir(parents=True)
        np.save(tmp_path / "train" / name / "0.npy", _clouds(1)[0] + i)
        np.savetxt(tmp_path / "train" / name / "1.txt", _clouds(2)[1])
        trimesh.creation.icosphere().export(tmp_path / "train" / name / "2.stl")
    data = _set_up(PointFolder(str(tmp_path), **SMALL))
    assert (len(data.train_set), len(data.val_set), data.classes) == (4, 2, ["a", "b"])
    points, y = next(iter(data.train_dataloader()))
    assert (points.shape, points.dtype, y.dtype) == ((2, 30, 3), torch.float32, torch.int64)
    assert data.spec() == PointSpec(("a", "b"), load_points=30, num_points=20)
    with pytest.raises(MissingError, match=r"there is no folder .*gone/train; expected .*\*\.off"):
        PointFolder(str(tmp_path / "gone"), **SMALL).prepare_data()


def test_digit_clouds_are_balanced_and_always_the_same() -> None:
    data, again = (_set_up(DigitClouds(num_workers=0)) for _ in range(2))
    sizes = [
        (len(part), sorted(set(np.bincount(_labels(part))))) for part in (data.train_set, data.val_set, data.test_set)
    ]
    assert sizes == [(3_500, [350]), (500, [50]), (1_000, [100])]
    names = [{name for (name, _), _ in part.samples} for part in (data.train_set, data.val_set, data.test_set)]
    assert len(set.union(*names)) == 5_000
    assert torch.equal(data.val_set[0][0], again.val_set[0][0])
    assert data.val_set[0][0].shape == (512, 3)


def test_points_of_a_digit_follow_its_ink() -> None:
    image = np.zeros((28, 28))
    image[3, 5], image[20, 9] = 255, 85
    points = digit_cloud(image, 4_000, np.random.default_rng(0))
    upper = points[:, 1] > 14
    assert upper.mean() == pytest.approx(0.75, abs=0.03)
    for part, x, y, height in ((upper, 5, 24, 4.0), (~upper, 9, 7, 4 / 3)):
        assert (x <= points[part, 0]).all()
        assert (points[part, 0] <= x + 1).all()
        assert (y <= points[part, 1]).all()
        assert (points[part, 1] <= y + 1).all()
        assert points[part, 2].mean() == pytest.approx(height, abs=0.15)


def test_published_class_names() -> None:
    assert (len(MODELNET40), len(SCANOBJECTNN)) == (40, 15)
    assert [sorted(names) == list(names) for names in (MODELNET40, SCANOBJECTNN)] == [True, True]

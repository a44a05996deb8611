"""Clouds and meshes in their formats, and broken ones with their messages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from core.errors import InputError, MissingError
from pointcloud import PointViews
from pointcloud.data import Clouds
from pointcloud.feature_map import drop_needless_digits, unit_sphere
from pointcloud.files import cloud_files, read_cloud

POINTS = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)


def _pcd(kind: str, points: np.ndarray, count: int | None = None) -> bytes:
    """A file whose first field has two numbers."""
    header = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS normal x y z rgb\nSIZE 4 4 4 4 4\nTYPE F F F F U\nCOUNT 2 1 1 1 1\n"
        f"WIDTH {len(points)}\nHEIGHT 1\nPOINTS {count or len(points)}\nDATA {kind}\n"
    )
    dtype = [("normal", "<f4", 2), ("p", "<f4", 3), ("rgb", "<u4")]
    rows = np.array([((0, 1), tuple(p), 7) for p in points], dtype)
    text = "\n".join(f"0 1 {x} {y} {z} 7" for x, y, z in points.tolist())
    return header.encode() + (text.encode() if kind == "ascii" else rows.tobytes())


def _write(path: Path, points: np.ndarray) -> Path:
    kind, _, how = path.stem.partition("_")
    if path.suffix == ".npy":
        np.save(path, points)
    elif path.suffix == ".txt":
        np.savetxt(path, np.hstack([points, points]), delimiter="," if how else " ", fmt="%.8f")
    elif path.suffix == ".pcd":
        path.write_bytes(_pcd(how, points))
    else:
        trimesh.PointCloud(points).export(path)
    assert kind == "cloud"
    return path


@pytest.mark.parametrize(
    "name", ["cloud.npy", "cloud.txt", "cloud_commas.txt", "cloud_ascii.pcd", "cloud_binary.pcd", "cloud.ply"]
)
def test_clouds_are_read_as_they_are_stored(name: str, tmp_path: Path) -> None:
    read = read_cloud(_write(tmp_path / name, POINTS), 20)
    assert read.dtype == (np.float32 if name in ("cloud.npy", "cloud_binary.pcd") else np.float64)
    assert np.allclose(read, POINTS, atol=1e-6)


@pytest.mark.parametrize("suffix", [".off", ".obj", ".ply", ".stl"])
def test_points_of_a_mesh_are_uniform_by_area(suffix: str, tmp_path: Path) -> None:
    mesh = trimesh.creation.box((4.0, 1.0, 1.0))
    mesh.export(tmp_path / f"box{suffix}")
    points = read_cloud(tmp_path / f"box{suffix}", 8_000)
    assert points.shape == (8_000, 3)
    on_surface = np.isclose(np.abs(points), [2, 0.5, 0.5], atol=1e-5)
    assert on_surface.any(axis=1).all()
    assert on_surface[:, 0].mean() == pytest.approx(2 / 18, abs=0.02)  # both ends have 2 of 18 units of area
    assert np.array_equal(points, read_cloud(tmp_path / f"box{suffix}", 8_000))
    assert not np.array_equal(points, read_cloud(tmp_path / f"box{suffix}", 8_000, seed=1))


def test_off_files_with_the_counts_behind_the_word(tmp_path: Path) -> None:
    text = trimesh.creation.box().export(file_type="off")
    (tmp_path / "glued.off").write_text(text.replace("OFF\n", "OFF", 1))
    assert read_cloud(tmp_path / "glued.off", 50).shape == (50, 3)
    (tmp_path / "cut.off").write_text(text.replace("OFF\n", "OFF", 1).strip().rpartition("\n")[0])
    with pytest.raises(InputError, match=r"cut\.off is cut off: 19 lines for 8 vertices and 12 faces"):
        read_cloud(tmp_path / "cut.off", 50)


@pytest.mark.parametrize("word", ["COFF", "NOFF", "STOFF", "COFF 8 12 0"])
def test_off_files_whose_points_have_more_than_a_place(word: str, tmp_path: Path) -> None:
    """A color or a normal behind each point, as the word in the first line says."""
    box = trimesh.creation.box((4.0, 1.0, 1.0))
    points = [f"{x} {y} {z} 255 0 0 255" for x, y, z in box.vertices.tolist()]
    faces = [f"3 {a} {b} {c}" for a, b, c in box.faces.tolist()]
    head = [word] if " " in word else [word, "8 12 0"]
    file = tmp_path / "box.off"
    file.write_text("\n".join([*head, *points, *faces]) + "\n")
    read = read_cloud(file, 50)
    assert np.isclose(np.abs(read), [2, 0.5, 0.5], atol=1e-5).any(axis=1).all()
    file.write_text("\n".join([*head, *points, *faces[:-1]]) + "\n")
    with pytest.raises(InputError, match=r"is cut off: 19 lines for 8 vertices and 12 faces"):
        read_cloud(file, 50)


OFF = "OFF\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n"
BROKEN: dict[str, tuple[str, str]] = {
    "empty.off": ("", "cannot be read as a cloud or mesh"),
    "empty.obj": ("", "is empty or its header is broken"),
    "empty.txt": ("", "is empty; replace it"),
    "header.off": ("OFF\n8 12\n0 0", "cannot be read as a cloud or mesh"),
    "header.ply": ("ply\nformat ascii 1.0\nelement vertex 5\nproperty float x\n", "cannot be read as a cloud or mesh"),
    "header.pcd": ("FIELDS x y z\n", "has no line DATA in its header"),
    "fields.pcd": ("FIELDS x y b\nPOINTS 1\nDATA ascii\n1 2 3\n", "has the fields x, y, b; expected x, y and z among"),
    "none.pcd": ("POINTS 1\nDATA ascii\n1 2 3\n", "has no line FIELDS in its header"),
    "empty.pcd": ("FIELDS x y z\nPOINTS\nDATA ascii\n1 2 3\n", "has no line POINTS in its header"),
    "type.pcd": ("FIELDS x y z\nPOINTS 1\nDATA binary\n", "has no line TYPE and no line SIZE in its header"),
    "packed.pcd": ("FIELDS x y z\nPOINTS 1\nDATA zipped\n", "has no line TYPE and no line SIZE"),
    "header.stl": ("solid foo", "is cut off or damaged: 1 lines 'solid', 0 'endsolid'"),
    "header.npy": ("NUMPY", "cannot be read as a cloud or mesh"),
    "words.txt": ("a b c\n", "cannot be read as a cloud or mesh"),
    "flat.txt": ("1 2\n3 4\n", r"holds float64 of shape \(2, 2\); expected numbers, \(points, 3 or more\)"),
    "cut.off": (OFF + "3 0 1 2\n", "is cut off: 5 lines for 4 vertices and 2 faces"),
    # trimesh refuses it itself from some version on
    "index.off": (OFF + "3 0 1 2\n3 0 1 9\n", "(cannot be read as a cloud or mesh|has faces that refer to missing)"),
    "area.off": (OFF + "3 0 0 0\n3 1 1 1\n", "has 2 faces without area"),
    "nan.off": (OFF.replace("1 1 0", "1 nan 0") + "3 0 1 2\n3 0 1 2\n", "holds NaN or infinite coordinates"),
    "nan.txt": ("1 2 nan\n" * 20, "holds NaN or infinite coordinates"),
    "inf.txt": ("1 2 inf\n" * 20, "holds NaN or infinite coordinates"),
    "huge.txt": ("1 2 1e200\n3 4 5\n" * 10, "holds NaN or infinite coordinates, or some above 3.4e38"),
    "huge.off": (OFF.replace("1 1 0", "1 1e200 0") + "3 0 1 2\n3 0 1 2\n", "holds NaN or infinite coordinates, or"),
    "equal.txt": ("1 2 3\n" * 20, "has all its points in one place"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(name: str, tmp_path: Path) -> None:
    text, message = BROKEN[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name} {message}"):
        read_cloud(tmp_path / name, 20)


def test_more_broken_files(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    (tmp_path / "cut.pcd").write_bytes(_pcd("binary", POINTS)[:-40])
    (tmp_path / "bytes.obj").write_bytes(bytes(range(256)))
    for name, message in {
        "objects.npy": "cannot be read as a cloud or mesh",
        "none.npy": "has no points; replace it, or leave it out",
        "cut.pcd": "is cut off after 18 of 20 points",
        "bytes.obj": "is neither text nor a binary file of its format",
    }.items():
        with pytest.raises(InputError, match=message):
            read_cloud(tmp_path / name, 20)
    with pytest.raises(MissingError, match="there is no cloud"):
        read_cloud(tmp_path / "gone.off", 20)
    with pytest.raises(MissingError, match=r"holds no clouds or meshes; expected files ending in .npy, .obj"):
        cloud_files(_empty(tmp_path))


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_points_that_were_not_measured_are_left_out(tmp_path: Path) -> None:
    points = np.vstack([POINTS, np.full((3, 3), np.nan, np.float32)])
    (tmp_path / "cloud.pcd").write_bytes(_pcd("binary", points))
    assert np.array_equal(read_cloud(tmp_path / "cloud.pcd", 20), POINTS)


def _read(source: Any, load_points: int = 20, **options: Any) -> Tensor:
    """Return the raw points of one cloud."""
    sample = Clouds([(source, 3)], load_points, **options)[0]
    assert sample is not None
    points, target = sample
    assert target == 3
    return points


def _prepare(points: Tensor, **options: Any) -> Tensor:
    return PointViews(obj_size=28, fusion=False, **options).prepare(points[None])[0]


def test_clouds_are_turned_scaled_and_stay_as_stored() -> None:
    stored = np.hstack([POINTS, POINTS])
    before = stored.copy()
    raw = _read(("a", stored))
    assert torch.equal(raw, torch.from_numpy(POINTS))
    sphere = unit_sphere(torch.from_numpy(POINTS))
    assert torch.equal(_prepare(raw), torch.stack([-sphere[:, 2], -sphere[:, 0], sphere[:, 1]], dim=1))
    assert torch.equal(_prepare(raw, normalize=False, y_up=False), torch.from_numpy(POINTS))
    train = _read(("a", stored), train=True)
    assert not torch.equal(train, raw)
    assert torch.equal(train.sort(dim=0).values, raw.sort(dim=0).values)
    assert np.array_equal(stored, before)


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".ply"])
def test_coordinates_of_a_map_keep_the_shape_of_a_cloud(suffix: str, tmp_path: Path) -> None:
    """float32 rounds a northing of 4,500,000 m to half a meter, the radius of this sphere."""
    directions = np.random.default_rng(1).standard_normal((50, 3))
    sphere = 0.5 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    for name, points in (("near", sphere), ("far", sphere + np.array([500_000, 4_500_000, 120]))):
        if suffix == ".npy":
            np.save(tmp_path / f"{name}.npy", points)
        elif suffix == ".txt":
            np.savetxt(tmp_path / f"{name}.txt", points, fmt="%.9f")
        else:
            header = f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n"
            axes = "".join(f"property double {axis}\n" for axis in "xyz")
            rows = "\n".join(" ".join(f"{value:.9f}" for value in point) for point in points)
            (tmp_path / f"{name}.ply").write_text(f"{header}{axes}end_header\n{rows}\n")
    raw = [_read(tmp_path / f"{name}{suffix}", 50) for name in ("near", "far")]
    assert [points.dtype for points in raw] == [torch.float32, torch.float64]
    near, far = (_prepare(points) for points in raw)
    assert near.dtype == far.dtype == torch.float32
    assert torch.allclose(near, far, rtol=0, atol=1e-5)
    assert near.norm(dim=1).amax() == pytest.approx(1)


def test_clouds_beside_others_that_need_more_digits_stay_the_same() -> None:
    near, far = torch.randn(2, 50, 3).double()
    far += torch.tensor([500_000.0, 4_500_000.0, 120.0], dtype=torch.float64)
    alone = drop_needless_digits(near)
    assert alone.dtype == torch.float32
    both = drop_needless_digits(torch.stack([near, far]))
    assert both.dtype == torch.float64
    assert torch.equal(both[0], alone.double())
    assert torch.equal(both[1], far)
    assert torch.equal(_prepare(near), _prepare(alone))
    views = PointViews(obj_size=28, fusion=False)
    assert torch.equal(views.prepare(torch.stack([near, far]))[0], _prepare(alone))


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", "f8", "i4", "u1"])
def test_clouds_of_any_numbers_become_single_precision(dtype: str) -> None:
    stored = (40 * np.abs(POINTS)).astype(dtype)
    single = torch.from_numpy(stored.astype(np.float32))
    raw = _read(("a", stored))
    assert torch.equal(raw, single)
    assert torch.equal(_prepare(raw, normalize=False, y_up=False), single)
    assert torch.equal(_prepare(raw, y_up=False), unit_sphere(single))
    if dtype in ("f8", "i4", "u1"):
        assert torch.equal(_prepare(torch.from_numpy(stored), y_up=False), unit_sphere(single))


def test_of_a_larger_cloud_evaluation_always_takes_the_same_points() -> None:
    first, second = Clouds([(("a", POINTS), 0), (("b", POINTS), 0)], 8)
    assert first is not None
    assert second is not None
    assert torch.equal(first[0], second[0])  # wherever the cloud stands in the list
    assert len(first[0].unique(dim=0)) == 8
    views = PointViews(load_points=8, normalize=False, y_up=False, obj_size=28, fusion=False)
    assert torch.equal(views.prepare(torch.from_numpy(POINTS)[None])[0], first[0])  # and so does the model
    train = [_read(("a", POINTS), 8, train=True) for _ in range(5)]
    assert len({tuple(points.flatten().tolist()) for points in train}) == 5


def test_training_draws_other_points_of_a_mesh_each_time(tmp_path: Path) -> None:
    trimesh.creation.box().export(tmp_path / "box.stl")
    first, second = (_read(tmp_path / "box.stl", train=True) for _ in range(2))
    assert not torch.equal(first.sort(dim=0).values, second.sort(dim=0).values)
    assert torch.equal(_read(tmp_path / "box.stl"), _read(tmp_path / "box.stl"))


def test_broken_clouds_may_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("1 2 3\n")
    with pytest.raises(InputError, match=r"or type --data.skip_broken true"):
        Clouds([(tmp_path / "few.txt", 0)], 20)[0]
    with pytest.warns(UserWarning, match=r"skipped: .*few.txt has all its points in one place"):
        assert Clouds([(tmp_path / "few.txt", 0)], 20, skip_broken=True)[0] is None
    with pytest.raises(MissingError):
        Clouds([(tmp_path / "gone.txt", 0)], 20, skip_broken=True)[0]

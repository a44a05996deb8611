"""Clouds and meshes on disk: found, read, checked, and named when they are broken."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import InputError, MissingError
from core.files import find_files
from core.samples import Samples, read_or_skip
from pointcloud.feature_map import unit_sphere

__all__ = ["SUFFIXES", "Clouds", "cloud_files", "read_cloud"]

SUFFIXES = (".npy", ".obj", ".off", ".pcd", ".ply", ".stl", ".txt")
_OFF = re.compile("^[A-Z0-9]*OFF")


def cloud_files(path: Path) -> list[Path]:
    """The cloud or mesh itself, or all of them below a folder, sorted.

    Raises:
        MissingError: if there is none.
        InputError: if a folder may not be read.
    """
    return find_files(path, SUFFIXES, "clouds or meshes")


def read_cloud(path: Path, count: int, *, seed: int = 0) -> np.ndarray:
    """The points of a cloud as they are stored, or points of a mesh's surface, uniform by area.

    Args:
        path: .off, .obj, .ply, .stl (meshes, or vertices alone), .npy, .txt, .pcd (the first three columns).
        count: points to draw from a mesh.
        seed: of that draw.

    Returns:
        (N, 3), finite: float64 if the file holds numbers wider than float32, or a mesh, else float32.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file is broken or has fewer than ``count`` points, if a point is NaN, infinite or too large
            for float32, or if all are the same.
    """
    if not path.is_file():
        raise MissingError(f"there is no cloud {path}; correct the list that names it")
    readers = {".npy": _read_npy, ".txt": _read_text, ".pcd": _read_pcd}
    try:
        read = readers.get(path.suffix.lower())
        points = read(path) if read else _read_mesh(path, count, seed)
    except InputError:
        raise
    except ImportError as error:  # trimesh guesses the encoding of what is no text with a package of its own
        raise InputError(f"{path} is neither text nor a binary file of its format; replace it") from error
    except Exception as error:  # what the readers raise for damaged files
        raise InputError(f"{path} cannot be read as a cloud or mesh: {error}; replace it") from error
    return checked(points, str(path), count)


def checked(points: np.ndarray, name: str, count: int) -> np.ndarray:
    """The first three columns as (N, 3) float32, or float64 where float32 would round them.

    Coordinates of a map have seven digits before the point, of which float32 keeps no fraction: they are centred first.

    Raises:
        InputError: if they cannot be a cloud of at least ``count`` points.
    """
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise InputError(f"{name} holds {points.dtype} of shape {points.shape}; expected numbers, (points, 3 or more)")
    narrow = points.dtype.kind == "f" and points.dtype.itemsize <= 4
    points = points[:, :3].astype(np.float32 if narrow else np.float64)
    if len(points) < count:
        raise InputError(
            f"{name} has {len(points)} points, {count} are needed; type --data.load_points {max(len(points), 1)} with "
            "a --data.num_points that is not larger, or leave the file out"
        )
    _check_range(points, name)
    if (points == points[0]).all():
        raise InputError(f"{name} has all its points in one place; replace it")
    return points


def _check_range(points: np.ndarray, name: str) -> None:
    if not (np.abs(points) <= np.finfo(np.float32).max).all():
        raise InputError(f"{name} holds NaN or infinite coordinates, or some above 3.4e38; replace it")


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _read_text(path: Path) -> np.ndarray:
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise InputError(f"{path} is empty; replace it")
    return np.loadtxt(io.StringIO(text.replace(",", " ")), dtype=np.float64, ndmin=2)


def _read_mesh(path: Path, count: int, seed: int) -> np.ndarray:
    import trimesh  # a second to import, and only meshes need it

    mesh: Any = trimesh.load(path, process=False)
    if isinstance(mesh, trimesh.Scene):
        if not mesh.geometry:
            raise InputError(f"{path} is empty or its header is broken; replace it")
        mesh = mesh.to_geometry()
    if path.suffix.lower() == ".off":
        _check_off(path)
    vertices = np.asarray(mesh.vertices)
    _check_range(vertices, str(path))
    if not len(getattr(mesh, "faces", ())):
        if len(vertices) < count:
            raise InputError(
                f"{path} has no faces to draw points from, and {len(vertices)} vertices where {count} points are "
                "needed; give a mesh with faces, or larger clouds"
            )
        return vertices
    if not mesh.area > 0:
        raise InputError(f"{path} has {len(mesh.faces)} faces without area; replace it")
    return np.asarray(trimesh.sample.sample_surface(mesh, count, seed=seed)[0])


def _check_off(path: Path) -> None:
    """Whether the file has the lines that its header counts; the counts may follow OFF on its line, as in ModelNet.

    Letters before OFF announce what stands behind the place of a point: C a colour, N a normal, ST a texture.
    """
    lines = [line.partition("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines()]
    words = [line for line in lines if line]
    counts = _OFF.sub("", words[0][0]).split() + words[0][1:] or words.pop(1)
    if len(words) - 1 < int(counts[0]) + int(counts[1]):
        raise InputError(
            f"{path} is cut off: {len(words) - 1} lines for {counts[0]} vertices and {counts[1]} faces; replace it"
        )


def _read_pcd(path: Path) -> np.ndarray:
    """The fields x, y and z of a file of the Point Cloud Library, as text or as plain binary."""
    content = path.read_bytes()
    header, start = _pcd_header(path, content)
    readers, kind = {"ascii": _pcd_ascii, "binary": _pcd_binary}, " ".join(header["DATA"])
    if kind not in readers:
        raise InputError(f"{path} is {kind}; convert it to ascii or binary")
    points = int(header["POINTS"][0])
    table = readers[kind](memoryview(content)[start:], header, [header["FIELDS"].index(axis) for axis in "xyz"])
    if len(table) < points:
        raise InputError(f"{path} is cut off after {len(table)} of {points} points; replace it")
    return table[np.isfinite(table).all(axis=1)]  # the library marks points that were not measured by NaN


def _pcd_header(path: Path, content: bytes) -> tuple[dict[str, list[str]], int]:
    """First word and other words of each line, and where the points begin; without COUNT each field is one number."""
    header: dict[str, list[str]] = {}
    start = 0
    while "DATA" not in header:
        end = content.find(b"\n", start)
        if end < 0:
            raise InputError(f"{path} has no line DATA in its header; expected a .pcd file. Replace it")
        words = content[start:end].decode("ascii", "replace").split()
        header |= {words[0]: words[1:]} if words else {}
        start = end + 1
    needed = ("FIELDS", "POINTS", *(("TYPE", "SIZE") if header["DATA"] == ["binary"] else ()))
    if lacking := [name for name in needed if not header.get(name)]:
        raise InputError(f"{path} has no line {' and no line '.join(lacking)} in its header; replace it")
    if not {"x", "y", "z"} <= set(header["FIELDS"]):
        raise InputError(f"{path} has the fields {', '.join(header['FIELDS'])}; expected x, y and z among them")
    return {"COUNT": ["1"] * len(header["FIELDS"]), **header}, start


def _pcd_ascii(body: memoryview, header: dict[str, list[str]], places: list[int]) -> np.ndarray:
    columns = np.cumsum([0, *map(int, header["COUNT"])])[places]
    return np.loadtxt(io.BytesIO(body), dtype=np.float64, ndmin=2)[:, columns]


def _pcd_binary(body: memoryview, header: dict[str, list[str]], places: list[int]) -> np.ndarray:
    fields = zip(header["TYPE"], header["SIZE"], header["COUNT"], strict=True)
    dtype = np.dtype([(str(i), f"<{kind.lower()}{size}", (int(n),)) for i, (kind, size, n) in enumerate(fields)])
    rows = np.frombuffer(body, dtype, min(int(header["POINTS"][0]), len(body) // dtype.itemsize))
    return np.stack([rows[str(place)][:, 0] for place in places], axis=1)


class Clouds(Dataset[tuple[Tensor, Any] | None]):
    """Clouds, each with a target. What is stored stays as it is.

    A training cloud has its points in random order. Of a larger cloud than asked, a random choice of points is taken,
    always the same one in evaluation.

    Args:
        clouds: (cloud, target) pairs; a cloud is a file, or an array (N, 3 or more) with a name for messages.
        load_points: points of each.
        normalise: centre each cloud and scale it into the unit sphere.
        y_up: the second coordinate points up; it becomes the third, as the published poses want it.
        train: random order and choice.
        skip_broken: leave out clouds that cannot be used, with a warning, instead of stopping.
    """

    def __init__(
        self,
        clouds: Samples,
        load_points: int,
        *,
        normalise: bool = True,
        y_up: bool = True,
        train: bool = False,
        skip_broken: bool = False,
    ) -> None:
        self.clouds, self.load_points = clouds, load_points
        self.normalise, self.y_up, self.train, self.skip_broken = normalise, y_up, train, skip_broken

    def __len__(self) -> int:
        """Number of clouds."""
        return len(self.clouds)

    def __getitem__(self, index: int) -> tuple[Tensor, Any] | None:
        """The points (load_points, 3) float32 and the target, or None if the cloud is broken and may be skipped.

        Raises:
            InputError: naming the cloud that cannot be used.
        """
        cloud, target = self.clouds[index]
        points = read_or_skip(lambda: self._read(cloud, index), skip_broken=self.skip_broken)
        if points is None:
            return None
        if self.train or len(points) > self.load_points:
            generator = None if self.train else torch.Generator().manual_seed(index)
            points = points[torch.randperm(len(points), generator=generator)[: self.load_points]]
        points = (unit_sphere(points) if self.normalise else points).float()
        return torch.stack([-points[:, 2], -points[:, 0], points[:, 1]], dim=1) if self.y_up else points, target

    def _read(self, cloud: Any, seed: int) -> Tensor:
        if isinstance(cloud, Path):
            return torch.from_numpy(read_cloud(cloud, self.load_points, seed=seed))
        return torch.from_numpy(checked(cloud[1], cloud[0], self.load_points))

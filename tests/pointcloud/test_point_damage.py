"""Unusual and damaged clouds: they are read correctly, or an error names the file."""

import sys
import types
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import trimesh

from core.errors import InputError
from pointcloud.files import read_cloud
from pointcloud.sets import ModelNet40, read_h5

POINTS = np.random.default_rng(0).standard_normal((20, 3))
PLY = "ply\nformat ascii 1.0\nelement vertex 20\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
PCD = "VERSION .7\nFIELDS x y z\nSIZE 8 8 8\nTYPE F F F\nCOUNT 1 1 1\nPOINTS 20\nDATA ascii\n"
BOX = trimesh.creation.box((4.0, 1.0, 1.0))
BOX_FACES = [[3, *face] for face in BOX.faces.tolist()]


def _rows(points: np.ndarray, first: str = "") -> str:
    return "".join(first + " ".join(f"{value:.6f}" for value in point) + "\n" for point in points)


def _pcd_binary(points: np.ndarray) -> bytes:
    return PCD.replace("ascii", "binary").encode() + points.astype("<f8").tobytes()


def _pcd_compressed(points: np.ndarray, padding: str = "") -> bytes:
    """Compress points with the LibLZF in h5py; all x come before all y, and padding is only in the header."""
    columns = points.astype("<f8").T.tobytes()
    with h5py.File("packed.h5", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("a", data=np.frombuffer(columns, "u1"), chunks=(len(columns),), compression="lzf")
        packed = dataset.id.read_direct_chunk((0,))[1]
    assert len(packed) < len(columns)
    header = PCD.replace("ascii", "binary_compressed").replace("POINTS 20", f"POINTS {len(points)}")
    if padding:
        header = header.replace("x y z", f"x {padding} y z").replace("8 8 8", "8 1 8 8").replace("F F F", "F U F F")
        header = header.replace("1 1 1", "1 4 1 1")
    return header.encode() + np.array([len(packed), len(columns)], "<u4").tobytes() + packed


def _ply_binary(faces: list[list[int]], order: str = "<", vertices: np.ndarray = BOX.vertices) -> bytes:
    kind = "little" if order == "<" else "big"
    head = f"ply\nformat binary_{kind}_endian 1.0\nelement vertex {len(vertices)}\n"
    head += "property double x\nproperty double y\nproperty double z\nproperty uchar red\n"
    head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\nproperty short flag\nend_header\n"
    table = np.array([(*point, 7) for point in vertices], [(name, f"{order}f8") for name in "xyz"] + [("red", "u1")])
    rows = [bytes([len(f)]) + np.array(f, f"{order}i4").tobytes() + np.array(1, f"{order}i2").tobytes() for f in faces]
    return head.encode() + table.tobytes() + b"".join(rows)


def _ply_text(rows: list[str], vertices: int, faces: int) -> str:
    head = PLY.replace("20", str(vertices))
    lists = f"element face {faces}\nproperty list uchar int vertex_indices\nend_header\n"
    return head.replace("end_header\n", lists) + "\n".join(rows) + "\n"


WRITERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "a.txt": lambda points: _rows(points).encode(),
    "commas.txt": lambda points: _rows(points).replace(" ", ",").encode(),
    "text.pcd": lambda points: (PCD + _rows(points)).encode(),
    "binary.pcd": _pcd_binary,
    "text.ply": lambda points: (PLY + _rows(points)).encode(),
    "binary.ply": lambda points: _ply_binary([], vertices=points),
    "big.ply": lambda points: _ply_binary([], ">", vertices=points),
    "a.obj": lambda points: _rows(points, "v ").encode(),
}
MESHES: dict[str, Callable[[np.ndarray], bytes]] = {
    "a.off": lambda v: ("OFF\n8 12 0\n" + _rows(v) + "\n".join(" ".join(map(str, f)) for f in BOX_FACES)).encode(),
    "mesh.obj": lambda v: (
        _rows(v, "v ") + "".join(f"f {a + 1} {b + 1} {c + 1}\n" for _, a, b, c in BOX_FACES)
    ).encode(),
    "text.stl": lambda v: trimesh.Trimesh(v, BOX.faces, process=False).export(file_type="stl_ascii").encode(),
    "mesh.ply": lambda v: _ply_binary([face[1:] for face in BOX_FACES], vertices=v),
}


def _read(file: Path, content: bytes, count: int = 20) -> np.ndarray:
    file.write_bytes(content)
    return read_cloud(file, count)


@pytest.mark.parametrize("name", [*WRITERS, *MESHES])
def test_coordinates_of_a_map_keep_their_centimeters(name: str, tmp_path: Path) -> None:
    place = np.array([500_000, 4_500_000, 120])
    shape = 0.05 * (POINTS if name in WRITERS else BOX.vertices)
    write = (WRITERS | MESHES)[name]
    near = _read(tmp_path / name, write(shape))
    far = _read(tmp_path / name, write(shape + place))
    assert far.dtype == np.float64
    assert np.allclose(far - place, near, rtol=0, atol=1e-5)


def test_compressed_clouds_of_the_point_cloud_library(tmp_path: Path) -> None:
    points = np.repeat(np.round(POINTS * 8) / 8, 30, axis=0) + np.array([500_000, 4_500_000, 120])
    for padding in ("", "_"):
        assert np.array_equal(_read(tmp_path / "a.pcd", _pcd_compressed(points, padding)), points)
    content = _pcd_compressed(points)
    start = content.index(b"compressed\n") + len(b"compressed\n")
    shorter = (int.from_bytes(content[start : start + 4], "little") - 9).to_bytes(4, "little")
    for name, wrong, message in (
        ("cut", content[:-9], "is cut off: .* compressed bytes"),
        ("head", content[: start + 5], "is cut off after its header"),
        (
            "size",
            content.replace(b"POINTS 600", b"POINTS 601"),
            "holds 14400 bytes of points, but its header says 14424",
        ),
        ("less", content[:start] + shorter + content[start + 4 :], "its compressed bytes are"),
        ("back", content[: start + 8] + b"\xff" * (len(content) - start - 8), "its compressed bytes are damaged"),
    ):
        with pytest.raises(InputError, match=rf"{name}\.pcd .*{message}"):
            _read(tmp_path / f"{name}.pcd", wrong)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", [name for name in [*WRITERS, *MESHES] if "bi" not in name and name != "mesh.ply"])
def test_byte_order_marks(name: str, encoding: str, tmp_path: Path) -> None:
    content = WRITERS[name](POINTS) if name in WRITERS else MESHES[name](BOX.vertices)
    marked = content.decode().encode(encoding)
    assert np.array_equal(_read(tmp_path / name, marked), _read(tmp_path / name, content))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_mark_of_a_list(encoding: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        with h5py.File(tmp_path / f"{split}0.h5", "w") as file:
            file["data"], file["label"] = np.zeros((20, 30, 3)), np.zeros(20, int)
        (tmp_path / f"{split}_files.txt").write_text(f"{split}0.h5\n", encoding=encoding)
    assert len(ModelNet40(str(tmp_path), load_points=30, num_points=20).splits().test) == 20


def test_decimal_commas_are_refused(tmp_path: Path) -> None:
    text = _rows(POINTS).replace(".", ",")
    for name, wrong in {
        "spaces.txt": text,
        "tabs.txt": text.replace(" ", "\t"),
        "semicolons.txt": text.replace(" ", ";"),
        "both.txt": text.replace(" ", ", "),
        "alone.txt": text.replace(" ", ","),
    }.items():
        with pytest.raises(InputError, match=rf"{name} has commas within its numbers"):
            _read(tmp_path / name, wrong.encode())
    for name, content in {
        name: write(POINTS) for name, write in WRITERS.items() if "text" in name or "obj" in name
    }.items():
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            _read(tmp_path / name, content.replace(b"-", b"").replace(b"0.", b"0,"))
    for name in ("a.off", "mesh.obj", "text.stl"):
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            _read(tmp_path / name, MESHES[name](BOX.vertices).replace(b".5", b",5"))
    for name, right in {
        "a.txt": _rows(POINTS).replace(" ", ", "),
        "b.txt": "# 1, 2,3 4\n" + _rows(POINTS).replace(" ", ",").replace("\n", ",\n"),
    }.items():
        assert np.allclose(_read(tmp_path / name, right.encode()), POINTS, atol=1e-6)
    with pytest.raises(InputError, match=r"gap\.txt cannot be read"):
        _read(tmp_path / "gap.txt", b"1,,3,4\n2,,5,6\n" * 10)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("line.ply", PLY + _rows(POINTS[:8])),
        ("number.ply", (PLY + _rows(POINTS))[:-12]),
        ("more.ply", PLY.replace("20", "12") + _rows(POINTS)),
        ("faces.ply", _ply_text([*_rows(BOX.vertices).split("\n")[:-1], "3 0 1 2"], 8, 2)),
        ("face.ply", _ply_text([*_rows(BOX.vertices).split("\n")[:-1], "3 0 1 2", "3 0 1"], 8, 2)),
        ("index.ply", _ply_text([*_rows(BOX.vertices).split("\n")[:-1], "3 0 1 2", "3 0 1 8"], 8, 2)),
        ("vertices.ply", _ply_binary([])[:-5]),
        ("binary.ply", _ply_binary([[0, 1, 2], [0, 1, 2, 3]])[:-1]),
        ("longer.ply", _ply_binary([[0, 1, 2], [0, 1, 2, 3]]) + b"\0"),
        ("negative.ply", _ply_binary([[0, 1, 2], [0, 1, -2]])),
        ("a.off", MESHES["a.off"](BOX.vertices)[:-2]),
        ("b.obj", MESHES["mesh.obj"](BOX.vertices)[:-4]),
        ("c.obj", _rows(POINTS, "v ")[:-12]),
        ("d.stl", MESHES["text.stl"](BOX.vertices) + MESHES["text.stl"](BOX.vertices)[:600]),
        ("e.stl", BOX.export(file_type="stl")[:-30]),
    ],
)
def test_a_part_of_a_file_is_not_taken_for_the_whole(name: str, content: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=name):
        _read(tmp_path / name, content.encode() if isinstance(content, str) else content, count=5)


@pytest.mark.parametrize("order", ["<", ">"])
def test_triangles_quads_and_polygons_together(order: str, tmp_path: Path) -> None:
    """Quads and a triangle as Blender writes them; the area of a unit square with a roof of 1/2 on it is 3/2."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 2, 0.0]])
    for faces in ([[0, 1, 2, 3], [3, 2, 4]], [[3, 2, 4], [0, 1, 2, 3]], [[0, 1, 2, 4, 3]]):
        text = _ply_text(
            [*_rows(corners).split("\n")[:-1], *(" ".join(map(str, [len(f), *f])) for f in faces)], 5, len(faces)
        )
        for content in (_ply_binary(faces, order, corners), text.encode()):
            points = _read(tmp_path / "a.ply", content, 4_000)
            assert (points[:, 1] > 1).mean() == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("guess", [None, "latin-1", "utf-16"])
def test_what_is_installed_changes_nothing(guess: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guesser = types.ModuleType("charset_normalizer")
    monkeypatch.setattr(guesser, "detect", lambda _: {"encoding": guess, "confidence": 1.0}, raising=False)
    monkeypatch.setitem(sys.modules, "charset_normalizer", guesser if guess else None)
    for name in ("a.off", "mesh.obj", "text.stl", "a.obj"):
        with pytest.raises(InputError, match="is neither text nor a binary file of its format"):
            _read(tmp_path / name, bytes(range(256)))
    comment = "# Größe\n".encode("latin-1")
    for name in ("a.off", "mesh.obj"):
        content = MESHES[name](BOX.vertices)
        assert np.array_equal(_read(tmp_path / name, comment + content), _read(tmp_path / name, content))


def test_files_that_are_no_clouds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", POINTS)
    with pytest.raises(InputError, match=r"b\.npy is an archive of arrays"):
        _read(tmp_path / "b.npy", (tmp_path / "a.npz").read_bytes())
    with pytest.raises(InputError, match=r"a\.npz is not a cloud or mesh; expected a file ending in \.npy"):
        read_cloud(tmp_path / "a.npz", 20)


def test_h5_files_that_name_other_files_or_declare_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["data"], file["label"] = np.ones((2, 30, 3), "f4"), np.zeros(2, int)
    assert len(read_h5(secret)) == 2
    layout = h5py.VirtualLayout((2, 30, 3), "f4")
    layout[:] = h5py.VirtualSource(secret, "data", (2, 30, 3))
    fill: dict[str, Callable[[h5py.File], object]] = {
        "keeps data in other files": lambda f: f.create_dataset(
            "data", (2, 30, 3), "f4", external=[(str(secret), 0, 720)]
        ),
        "keeps data in other files, and": lambda f: f.create_virtual_dataset("data", layout),
        "has data as a link": lambda f: f.__setitem__("data", h5py.ExternalLink(str(secret), "data")),
        "has data as a link, maybe": lambda f: f.__setitem__("data", h5py.SoftLink("/other")),
        "declares data of shape": lambda f: f.create_dataset("data", (10**9, 2048, 3), "f4", chunks=(1, 2048, 3)),
        "but holds only a part": lambda f: f.create_dataset("data", (10**9, 2048, 3), "f4"),
        "holds data as a group": lambda f: f.create_group("data"),
        "holds data as object": lambda f: f.create_dataset("data", data=["a", "b"]),
    }
    for i, (message, write) in enumerate(fill.items()):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file["other"] = h5py.ExternalLink(str(secret), "data")
            file["label"] = np.zeros(2, int)
            write(file)
        with pytest.raises(InputError, match=rf"{i}\.h5 .*{message}"):
            read_h5(tmp_path / f"{i}.h5")
    monkeypatch.setattr("pointcloud.sets.machine_memory", lambda: 700)
    with pytest.raises(InputError, match="and this machine has 0 GiB of memory"):
        read_h5(secret)

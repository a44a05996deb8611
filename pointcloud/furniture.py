"""Furniture and solids of random proportions as meshes: built-in data for the way from a mesh to a class."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.writing import whole_folder
from pointcloud.sets import PointFolder

__all__ = ["SHAPES", "Furniture", "write_furniture"]

Parts = list[Any]
"""trimesh's meshes."""


class Furniture(PointFolder):
    """Meshes of eight classes, made of boxes, cylinders and cones of random sizes, and written as .off files.

    At the first use they are made (a second) and written as ``root/{train,val,test}/<class>/*.off``: 60, 15 and 30 of
    each class, always the same. y points up.

    Args:
        root: folder that they are written to.
        kwargs: arguments of :class:`PointFolder`.
    """

    def __init__(self, root: str = "data/furniture", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)

    def check_data(self) -> None:
        """Make the meshes unless they are there."""
        if (root := self.folders.root) and not root.exists():
            write_furniture(root)
        super().check_data()


def write_furniture(root: Path, counts: Sequence[tuple[str, int]] = (("train", 60), ("val", 15), ("test", 30))) -> None:
    """Write ``root/<split>/<class>/<n>.off``; the folder appears when it is complete.

    Args:
        root: a folder that is not there yet.
        counts: splits, and the meshes of each class in them.
    """
    import trimesh  # a second to import, and only meshes need it

    generator = np.random.default_rng(0)
    with whole_folder(root) as unfinished:
        for split, count in counts:
            for name, make in SHAPES.items():
                folder = unfinished / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    mesh = trimesh.util.concatenate(make(generator.uniform))
                    mesh.export(folder / f"{i:03d}.off")


Draw = Callable[[float, float], float]
"""A number between two others."""


def _box(size: tuple[float, float, float], at: tuple[float, float, float]) -> Any:
    """A box of (width, height, depth) whose lower side has its middle at a point."""
    import trimesh

    place = np.eye(4)
    place[:3, 3] = (at[0], at[1] + size[1] / 2, at[2])
    return trimesh.creation.box(size, place)


def _round(radius: float, height: float, at: tuple[float, float, float], *, pointed: bool = False) -> Any:
    """A cylinder or a cone that stands at a point."""
    import trimesh

    make = trimesh.creation.cone if pointed else trimesh.creation.cylinder
    mesh = make(radius=radius, height=height, sections=24)
    mesh.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, (1, 0, 0)))
    mesh.apply_translation((at[0], at[1] - mesh.bounds[0, 1], at[2]))
    return mesh


def _legs(width: float, depth: float, height: float, thick: float) -> Parts:
    x, z = (width - thick) / 2, (depth - thick) / 2
    return [_box((thick, height, thick), (i * x, 0, k * z)) for i in (-1, 1) for k in (-1, 1)]


def _bed(draw: Draw) -> Parts:
    width, length, height = draw(0.9, 1.8), draw(1.9, 2.2), draw(0.3, 0.5)
    head = _box((width, draw(0.7, 1.1), 0.08), (0, 0, -length / 2))
    return [_box((width, 0.25, length), (0, height - 0.25, 0)), head, *_legs(width, length, height - 0.25, 0.08)]


def _chair(draw: Draw) -> Parts:
    width, depth, seat = draw(0.38, 0.6), draw(0.38, 0.6), draw(0.4, 0.55)
    back = _box((width, draw(0.35, 0.7), 0.04), (0, seat, -depth / 2))
    return [_box((width, 0.05, depth), (0, seat - 0.05, 0)), back, *_legs(width, depth, seat - 0.05, 0.05)]


def _table(draw: Draw) -> Parts:
    width, depth, height = draw(0.8, 2.0), draw(0.6, 1.1), draw(0.6, 0.85)
    return [_box((width, 0.05, depth), (0, height, 0)), *_legs(width, depth, height, draw(0.05, 0.1))]


def _stool(draw: Draw) -> Parts:
    radius, height = draw(0.15, 0.25), draw(0.4, 0.8)
    return [_round(radius, 0.05, (0, height, 0)), *_legs(1.3 * radius, 1.3 * radius, height, 0.04)]


def _shelf(draw: Draw) -> Parts:
    width, height, depth, boards = draw(0.6, 1.2), draw(1.2, 2.0), draw(0.25, 0.4), int(draw(3, 7))
    sides = [_box((0.03, height, depth), (side * width / 2, 0, 0)) for side in (-1, 1)]
    return sides + [_box((width, 0.03, depth), (0, i * (height - 0.03) / boards, 0)) for i in range(boards + 1)]


def _sofa(draw: Draw) -> Parts:
    width, depth, seat = draw(1.4, 2.4), draw(0.8, 1.0), draw(0.35, 0.5)
    arms = [_box((0.18, seat + draw(0.1, 0.25), depth), (side * width / 2, 0, 0)) for side in (-1, 1)]
    return [_box((width, seat, depth), (0, 0, 0)), _box((width, seat + draw(0.3, 0.5), 0.2), (0, 0, -depth / 2)), *arms]


def _lamp(draw: Draw) -> Parts:
    height, shade = draw(0.5, 1.6), draw(0.12, 0.3)
    foot = _round(draw(0.1, 0.2), 0.03, (0, 0, 0))
    return [foot, _round(0.015, height, (0, 0, 0)), _round(shade, draw(0.2, 0.4), (0, height - 0.1, 0), pointed=True)]


def _bin(draw: Draw) -> Parts:
    return [_round(draw(0.12, 0.25), draw(0.3, 0.7), (0, 0, 0))]


SHAPES: dict[str, Callable[[Draw], Parts]] = {
    **{"bed": _bed, "bin": _bin, "chair": _chair, "lamp": _lamp, "shelf": _shelf, "sofa": _sofa, "stool": _stool},
    "table": _table,
}
"""Class and what makes one of it."""

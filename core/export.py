"""Export a model in inference form, and check on real input that the file computes what the model does."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from core.errors import InputError
from core.io.atomic import atomic_write
from core.reparam import reparameterize

__all__ = ["Exported", "Format", "Source", "export_model", "exported"]

Format = Literal["onnx", "torch_export"]

Source = Literal["raw", "map"]
"""Input of an exported file: raw samples, or the maps that the feature map makes of them."""

TOLERANCE = 1e-4
"""Largest difference that is allowed between exported file and trained model, divided by the largest output."""

_SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}


class Exported(NamedTuple):
    """A module to export, with real input.

    Attributes:
        name: name of the file, without a suffix.
        module: module in eval mode, which takes ``inputs``.
        inputs: real input, (B, ...) each, on which file and module are compared.
        fixed_size: whether the module takes maps of a single height and width.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    fixed_size: bool = False


def exported(task: Any, raw: tuple[Any, ...], source: Source) -> Exported:
    """Return what most tasks export: the whole task, or the part after the feature map.

    Args:
        task: task in eval mode.
        raw: a few samples, as ``task(*raw)`` takes them. uint8 pixels become floats in [0, 1], so the file takes
            floats.
        source: 'raw' for the whole task, 'map' for the part after the feature map.
    """
    name = str(task.hparams.get("backbone", type(task.backbone).__name__))
    if source == "map":
        return Exported(name, _FromMap(task).eval(), (task.to_maps(raw),))

    inputs = tuple(value / 255 if value.dtype == torch.uint8 else value for value in raw)
    return Exported(name, _FromRaw(task).eval(), inputs)


class _FromRaw(nn.Module):
    """A task, from raw samples to its output."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task

    def forward(self, *raw: Tensor) -> Any:
        return self.task(*raw)


class _FromMap(nn.Module):
    """The part of a task from maps (B, C, H, W) to its output."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task: Any = task

    def forward(self, maps: Tensor) -> Any:
        return self.task.read(maps)


def export_model(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    path: Path,
    *,
    format: Format = "onnx",
    fixed_size: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Fold a model, export it with dynamic sizes, and check the file before it gets its name.

    The batch size is dynamic. So are height and width of maps and images (B, C, H, W), except for those of up to 32
    pixels in a .pt2 file, and, if the model allows it, the length of waveforms (B, T).

    Args:
        model: model in eval mode, whose output is a tensor, or a nested structure of tuples, lists or dictionaries of
            tensors.
        inputs: real input for the comparison, (B, ...) each.
        path: file to write; its suffix becomes that of the format.
        format: 'onnx', which needs the ``export`` extra, or 'torch_export' for a .pt2 file of ``torch.export``.
        fixed_size: fix height and width to those of ``inputs``, for models whose layers depend on them.
        metadata: JSON values by name that are saved in the file: in ONNX as ``metadata_props``, as JSON text each; in
            a .pt2 file as the extra file ``larkit.json``.

    Returns:
        The path of the file.

    Raises:
        InputError: if the format is unknown, packages for ONNX are missing, or the model does not take other heights
            and widths than those of ``inputs``.
        RuntimeError: if the exported file differs from the model by more than :data:`TOLERANCE`.
    """
    if format not in get_args(Format):
        raise InputError(f"format={format!r}; expected {' or '.join(map(repr, get_args(Format)))}")
    if format == "onnx":
        _require("onnx", "onnxscript", "onnxruntime")

    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    folded = reparameterize(model)
    with torch.no_grad():
        expected = model(*inputs)
        after_folding = folded(*inputs)

    stem = path.stem if path.suffix in _SUFFIXES.values() else path.name  # the name of a model may contain a dot
    path = path.with_name(stem + _SUFFIXES[format])
    verb = "replaced" if path.exists() else "wrote"
    write = _write_onnx if format == "onnx" else _write_pt2
    any_size = not fixed_size and _may_have_any_size(inputs[0], format)

    with atomic_write(path, keep_suffix=True) as unfinished:
        outputs, any_size = _write_with_sizes(write, folded, inputs, unfinished, metadata or {}, any_size=any_size)

        of_folded = _relative_difference(after_folding, expected)
        of_file = _relative_difference(outputs, expected)
        print(f"folded against trained form: max relative difference {of_folded:.1e}")
        print(f"exported file against trained form: max relative difference {of_file:.1e}")
        if not of_file < TOLERANCE:  # also if it is not a number
            raise RuntimeError(f"the exported file differs from the model by {of_file:.1e}, more than {TOLERANCE:.0e}")

    sizes = ", ".join(_sizes(value, any_size=any_size and i == 0) for i, value in enumerate(inputs))
    print(f"{verb} {path} ({path.stat().st_size / 1e6:.1f} MB), input {sizes}")
    return path


Write = Callable[..., list[Tensor]]


def _write_with_sizes(
    write: Write,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    metadata: Mapping[str, Any],
    *,
    any_size: bool,
) -> tuple[list[Tensor], bool]:
    """Write the file with dynamic sizes if possible.

    Returns:
        The outputs of the file, and whether sizes of the first input besides the batch are dynamic.

    Raises:
        InputError: if the model does not take other heights and widths.
    """
    try:
        return write(model, inputs, path, metadata, any_size=any_size), any_size
    except (AssertionError, RuntimeError, ValueError) as error:
        has_images = inputs[0].ndim == 4
        if any_size and has_images and not _takes_another_size(model, inputs):
            height, width = inputs[0].shape[2:]
            raise InputError(
                f"the model takes images of {height} x {width} and not every other size; add --fixed_size true "
                "(in Python: fixed_size=True)"
            ) from error
        if has_images or not any_size:
            raise

    # Waveforms, whose length the exporter could not make dynamic.
    return write(model, inputs, path, metadata, any_size=False), False


def _may_have_any_size(example: Tensor, format: Format) -> bool:
    """Return whether to make sizes besides the batch dynamic: those of maps and images, and the length of waveforms.

    Small maps in a .pt2 file are excluded, since ``torch.export`` makes a special case of a last map of one pixel.
    """
    if example.ndim == 2:
        return example.is_floating_point()
    return example.ndim == 4 and (format == "onnx" or min(example.shape[2:]) > 32)


def _takes_another_size(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Return whether a model takes images of another height and width than its real input."""
    traced, _ = _trace_with(inputs, any_size=True)
    try:
        with torch.no_grad():
            model(*traced)
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True


def _trace_with(inputs: tuple[Tensor, ...], *, any_size: bool) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Make inputs of two samples for the tracer, and their dynamic sizes; a batch of one would become a constant."""
    auto = torch.export.Dim.AUTO
    traced = [torch.cat([value, value])[:2] for value in inputs]
    shapes: list[dict[int, Any]] = [{0: auto} for _ in inputs]

    if any_size and traced[0].ndim == 4:
        # Height and width differ, or the tracer would assume that they are equal.
        traced[0] = traced[0].new_zeros(2, traced[0].shape[1], 96, 128)
        shapes[0] |= {2: auto, 3: auto}
    elif any_size:
        shapes[0] |= {1: auto}

    return tuple(traced), tuple(shapes)


def _nested(model: nn.Module, shapes: tuple[dict[int, Any], ...]) -> Any:
    """Return the dynamic sizes in the structure of the model's arguments, of which ``*raw`` is one tuple."""
    return (shapes,) if isinstance(model, _FromRaw) else shapes


def _write_pt2(
    model: nn.Module, inputs: tuple[Tensor, ...], path: Path, metadata: Mapping[str, Any], *, any_size: bool
) -> list[Tensor]:
    """Write a .pt2 file, and return the outputs of that file for the inputs."""
    traced, shapes = _trace_with(inputs, any_size=any_size)
    program = torch.export.export(model, traced, dynamic_shapes=_nested(model, shapes))
    torch.export.save(program, path, extra_files={"larkit.json": json.dumps(dict(metadata))})

    with torch.no_grad():
        return tree_leaves(torch.export.load(path).module()(*inputs))


def _write_onnx(
    model: nn.Module, inputs: tuple[Tensor, ...], path: Path, metadata: Mapping[str, Any], *, any_size: bool
) -> list[Tensor]:
    """Write an ONNX file, and return the outputs of that file for the inputs."""
    import onnxruntime

    traced, shapes = _trace_with(inputs, any_size=any_size)
    program = torch.onnx.export(
        model,
        traced,
        dynamo=True,
        dynamic_shapes=_nested(model, shapes),
        input_names=["input", *(f"input_{i}" for i in range(1, len(inputs)))],
        output_names=["output"],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    program.save(path)

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, given)]


def _relative_difference(got: Any, expected: Any) -> float:
    """Return the largest difference between two outputs, divided by the largest expected value."""
    pairs = list(zip(tree_leaves(got), tree_leaves(expected), strict=True))
    largest = max(float(wanted.abs().max()) for _, wanted in pairs)
    return max(float((output - wanted).abs().max()) for output, wanted in pairs) / largest


def _sizes(example: Tensor, *, any_size: bool) -> str:
    """Describe the sizes of an input, such as '(batch, 3, height, width)'."""
    sizes = list(map(str, example.shape[1:]))
    if any_size:
        sizes = [sizes[0], "height", "width"] if example.ndim == 4 else ["length"]
    return f"({', '.join(['batch', *sizes])})"


def _require(*packages: str) -> None:
    """Check that packages are installed, without importing them."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"exporting to ONNX needs {', '.join(missing)}; type in LarKit's folder: pip install -e '.[export]'"
        )

"""Export a model in inference form, and compare the exported file with the model on real input."""

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
"""What an exported file takes: raw samples, or the maps that the feature map makes of them."""

TOLERANCE = 1e-4
"""Largest difference allowed between the exported file and the trained model, relative to the largest output."""

_SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}


class Exported(NamedTuple):
    """What the verb ``export`` writes.

    Attributes:
        name: of the file, without a suffix.
        module: in eval mode; its inputs are those in ``inputs``.
        inputs: real input, each (B, ...), to compare the file with the module.
        fixed_size: the module takes maps of one height and width only.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    fixed_size: bool = False


def exported(task: Any, raw: tuple[Any, ...], source: Source) -> Exported:
    """The usual answer of ``Task.to_export``: the whole task, or what it does with a map.

    Args:
        task: a task in eval mode.
        raw: some samples, as ``task(*raw)`` takes them. Pixels in uint8 become floats in [0, 1], so that this is what
            the file takes.
        source: where the exported file begins.
    """
    name = str(task.hparams.get("backbone", type(task.backbone).__name__))
    if source == "map":
        return Exported(name, _FromMap(task).eval(), (task.to_maps(raw),))

    inputs = tuple(value / 255 if value.dtype == torch.uint8 else value for value in raw)
    return Exported(name, _FromRaw(task).eval(), inputs)


class _FromRaw(nn.Module):
    """Raw samples to the answer of a task."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task

    def forward(self, *raw: Tensor) -> Any:
        return self.task(*raw)


class _FromMap(nn.Module):
    """Maps (B, C, H, W) to the answer of a task."""

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

    The batch is dynamic, and so are height and width of maps and images (B, C, H, W) and, if the model allows it, the
    length of waveforms (B, T). A .pt2 for maps of up to 32 pixels has their height and width fixed.

    Args:
        model: in eval mode; takes the inputs and gives a tensor, or tensors in tuples, lists or dictionaries.
        inputs: real input for the comparison, (B, ...) each.
        path: file to write; the suffix is set to the format's.
        format: 'onnx' (needs the ``export`` extra), or 'torch_export' for ``torch.export``'s .pt2.
        fixed_size: keep height and width as they are in ``inputs``, for models whose layers depend on them.
        metadata: JSON values by name that the file carries: as ``metadata_props`` of ONNX, one JSON text each, or as
            the extra file ``larkit.json`` of a .pt2.

    Returns:
        The path written.

    Raises:
        InputError: if there is no such format, the packages for ONNX are missing, or the model does not take every
            height and width.
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

    stem = path.stem if path.suffix in _SUFFIXES.values() else path.name  # a model's tag may hold a dot
    path = path.with_name(stem + _SUFFIXES[format])
    verb = "replaced" if path.exists() else "wrote"

    with atomic_write(path, keep_suffix=True) as unfinished:
        write = _write_onnx if format == "onnx" else _write_pt2
        any_size = not fixed_size and _may_have_any_size(inputs[0], format)
        outputs, any_size = _write_with_sizes(write, folded, inputs, unfinished, metadata or {}, any_size=any_size)

        from_folding = _relative_difference(after_folding, expected)
        in_all = _relative_difference(outputs, expected)
        print(f"folded against trained form: max relative difference {from_folding:.1e}")
        print(f"exported file against trained form: max relative difference {in_all:.1e}")
        if not in_all < TOLERANCE:
            raise RuntimeError(f"the exported file differs from the model by {in_all:.1e}, more than {TOLERANCE:.0e}")

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
    """Write the file; gives its outputs, and whether the sizes of the first input are dynamic."""
    try:
        return write(model, inputs, path, metadata, any_size=any_size), any_size
    except (AssertionError, RuntimeError, ValueError) as error:
        if not any_size:
            raise
        if inputs[0].ndim == 4 and not _takes_another_size(model, inputs):
            height, width = inputs[0].shape[2:]
            raise InputError(
                f"the model takes images of {height} x {width} and not every other size; add --fixed_size true "
                "(in Python: fixed_size=True)"
            ) from error
        if inputs[0].ndim == 4:
            raise

    return write(model, inputs, path, metadata, any_size=False), False


def _may_have_any_size(example: Tensor, format: Format) -> bool:
    """Whether sizes besides the batch may be dynamic: of maps and images, and the length of waveforms.

    ``torch.export`` treats a last map of one pixel apart from larger ones, so that small maps are left out.
    """
    if example.ndim == 2:
        return example.is_floating_point()
    return example.ndim == 4 and (format == "onnx" or min(example.shape[2:]) > 32)


def _takes_another_size(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    traced, _ = _trace_with(inputs, any_size=True)
    try:
        with torch.no_grad():
            model(*traced)
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True


def _trace_with(inputs: tuple[Tensor, ...], *, any_size: bool) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Inputs of two samples for the tracer, which would take a size of 1 for a constant, and their dynamic sizes."""
    auto = torch.export.Dim.AUTO
    traced = [torch.cat([value, value])[:2] for value in inputs]
    shapes: list[dict[int, Any]] = [{0: auto} for _ in inputs]

    if any_size and traced[0].ndim == 4:
        # height and width differ, so that the tracer does not take them for one number
        traced[0] = traced[0].new_zeros(2, traced[0].shape[1], 96, 128)
        shapes[0] |= {2: auto, 3: auto}
    elif any_size:
        shapes[0] |= {1: auto}

    return tuple(traced), tuple(shapes)


def _nested(model: nn.Module, shapes: tuple[dict[int, Any], ...]) -> Any:
    """The dynamic sizes in the form of the arguments: those of ``*raw`` are one tuple."""
    return (shapes,) if isinstance(model, _FromRaw) else shapes


def _write_pt2(
    model: nn.Module, inputs: tuple[Tensor, ...], path: Path, metadata: Mapping[str, Any], *, any_size: bool
) -> list[Tensor]:
    traced, shapes = _trace_with(inputs, any_size=any_size)
    program = torch.export.export(model, traced, dynamic_shapes=_nested(model, shapes))
    torch.export.save(program, path, extra_files={"larkit.json": json.dumps(dict(metadata))})

    with torch.no_grad():
        return tree_leaves(torch.export.load(path).module()(*inputs))


def _write_onnx(
    model: nn.Module, inputs: tuple[Tensor, ...], path: Path, metadata: Mapping[str, Any], *, any_size: bool
) -> list[Tensor]:
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
    """The largest difference of two outputs, relative to the largest output."""
    pairs = list(zip(tree_leaves(got), tree_leaves(expected), strict=True))
    largest = max(float(wanted.abs().max()) for _, wanted in pairs)
    return max(float((output - wanted).abs().max()) for output, wanted in pairs) / largest


def _sizes(example: Tensor, *, any_size: bool) -> str:
    sizes = list(map(str, example.shape[1:]))
    if any_size:
        sizes = [sizes[0], "height", "width"] if example.ndim == 4 else ["length"]
    return f"({', '.join(['batch', *sizes])})"


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"exporting to ONNX needs {', '.join(missing)}; type in LarKit's folder: pip install -e '.[export]'"
        )

"""Export a model in inference form, and compare the exported file with the model on real input."""

import importlib.util
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from core.errors import InputError
from core.reparam import reparameterize
from core.writing import whole_file

__all__ = ["Format", "export_model"]

Format = Literal["onnx", "torch_export"]

TOLERANCE = 1e-4
"""Largest difference allowed between the exported file and the trained model, relative to the largest output."""


def export_model(
    model: nn.Module,
    example: Tensor,
    path: Path,
    *,
    format: Format = "onnx",
    fixed_size: bool = False,
) -> Path:
    """Fold a model, export it with dynamic batch, height and width, and check the file before it gets its name.

    A .pt2 for input of up to 32 pixels has that height and width fixed, and so has whatever is not a map.

    Args:
        model: in eval mode; maps one tensor to one tensor.
        example: (B, C, H, W), or (B, ...) of other than maps; real input for the comparison.
        path: file to write; the suffix is set to the format's.
        format: 'onnx' (needs the ``export`` extra), or 'torch_export' for ``torch.export``'s .pt2.
        fixed_size: keep height and width as they are in ``example``, for models whose layers depend on them.

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
    folded = reparameterize(model)
    with torch.no_grad():
        expected, after_fold = model(example), folded(example)
    stem = path.stem if path.suffix in (".onnx", ".pt2") else path.name  # a model's tag may hold a dot
    path = path.with_name(stem + (".onnx" if format == "onnx" else ".pt2"))
    verb = "replaced" if path.exists() else "wrote"
    any_size = not fixed_size and _any_size(example, format)
    run = _write_onnx if format == "onnx" else _write_pt2
    with whole_file(path, keep_suffix=True) as unfinished:
        try:
            exported = run(folded, example, unfinished, any_size=any_size)
        except (AssertionError, RuntimeError, ValueError) as error:
            if not any_size or _takes_another_size(folded, example):
                raise
            raise InputError(
                f"the model takes images of {example.shape[2]} x {example.shape[3]} and not every other size; add "
                "--fixed_size true (in Python: fixed_size=True)"
            ) from error
        fold, total = _relative(after_fold, expected), _relative(exported, expected)
        print(f"folded against trained form: max relative difference {fold:.1e}")
        print(f"exported file against trained form: max relative difference {total:.1e}")
        if not total < TOLERANCE:
            raise RuntimeError(f"the exported file differs from the model by {total:.1e}, more than {TOLERANCE:.0e}")
    sizes = [*map(str, example.shape[1:2]), "height", "width"] if any_size else example.shape[1:]
    print(f"{verb} {path} ({path.stat().st_size / 1e6:.1f} MB), input (batch, {', '.join(map(str, sizes))})")
    return path


def _any_size(example: Tensor, format: str) -> bool:
    """Whether height and width stay free: ``torch.export`` treats a last map of one pixel apart from larger ones."""
    return example.ndim == 4 and (format == "onnx" or min(example.shape[2:]) > 32)


def _takes_another_size(model: nn.Module, example: Tensor) -> bool:
    (traced,), _ = _trace_with(example, any_size=True)
    try:
        with torch.no_grad():
            model(traced)
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True


def _trace_with(example: Tensor, *, any_size: bool) -> tuple[tuple[Tensor], tuple[dict[int, Any]]]:
    """Input and free dimensions for the tracer, which would take a size of 1 for a constant."""
    auto = torch.export.Dim.AUTO
    if any_size:
        return (example.new_zeros(2, example.shape[1], 96, 128),), ({0: auto, 2: auto, 3: auto},)
    return (example.new_zeros(2, *example.shape[1:]),), ({0: auto},)


def _write_pt2(model: nn.Module, example: Tensor, path: Path, *, any_size: bool) -> Tensor:
    inputs, shapes = _trace_with(example, any_size=any_size)
    program = torch.export.export(model, inputs, dynamic_shapes=shapes)
    torch.export.save(program, path)
    with torch.no_grad():
        output: Tensor = torch.export.load(path).module()(example)
    return output


def _write_onnx(model: nn.Module, example: Tensor, path: Path, *, any_size: bool) -> Tensor:
    import onnxruntime

    inputs, shapes = _trace_with(example, any_size=any_size)
    program = torch.onnx.export(
        model,
        inputs,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=["image"],
        output_names=["output"],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: example.numpy()})[0])


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"exporting to ONNX needs {', '.join(missing)}; type in LarKit's folder: pip install -e '.[export]'"
        )

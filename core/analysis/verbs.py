"""The analyses as commands: each prints a table, and writes a picture and a JSON file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from core.analysis.cost_verb import cost_verb
from core.analysis.models import (
    Normalization,
    image_mode,
    names_checkpoint,
    normalization,
    open_model,
    square_transform,
)
from core.analysis.receptive_field import (
    THRESHOLDS,
    effective_receptive_field,
    ratio_text,
    receptive_field_figure,
)
from core.analysis.report import check_output, check_positive, print_table, write_report
from core.analysis.shape_bias import ShapeBias, shape_bias, shape_bias_figure
from core.data.images import image_files, read_image
from core.errors import InputError

__all__ = ["VERBS", "cost_verb", "erf_verb", "run_analysis", "shape_bias_verb"]


def erf_verb(
    models: list[str],
    images: str,
    *,
    size: int = 1024,
    num_images: int = 50,
    batch_size: int = 1,
    pretrained: bool = True,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: str = "cpu",
    output: str = "erf",
) -> None:
    """Measure the effective receptive field of models on images: a table, erf.png and erf.json.

    Args:
        models: timm or LarKit names, NAME=FILE for weights of your own, or checkpoints that fit wrote.
        images: an image or a folder of images, of which the first ones by name are used.
        size: side in pixels of the square to which every image is resized.
        num_images: number of images.
        batch_size: number of images in a batch; the result does not depend on it.
        pretrained: load published weights for models named without a file; false measures random weights.
        mean: mean of each channel, for pixels in [0, 1]; by default each model's own.
        std: standard deviation of each channel; by default each model's own.
        device: cpu, cuda, ...
        output: folder for the picture and the JSON file.
    """
    check_positive(size=size, num_images=num_images, batch_size=batch_size)
    check_output(output)
    files = image_files(Path(images))[:num_images]

    rows = []
    panels = {}
    numbers = {}
    for name in models:
        model = open_model(name, pretrained=pretrained, device=device)
        norm = _given_normalization(mean, std) or normalization(model)
        field = effective_receptive_field(model, _batches(files, model, size, norm, batch_size, device))

        label = _label(name, pretrained)
        ratios = field.area_ratios()
        rows.append([label, *map(ratio_text, ratios.values()), str(field.images)])
        panels[f"{label}\nmean {_short(norm[0])}, std {_short(norm[1])}"] = field
        numbers[label] = {
            "area_ratios": {f"{threshold:.0%}": ratio for threshold, ratio in ratios.items()},
            "images": field.images,
            "skipped": field.skipped,
            "mean": norm[0],
            "std": norm[1],
        }

    print_table(["model", *[f"t = {threshold:.0%}" for threshold in THRESHOLDS], "images"], rows)
    title = f"effective receptive field, {len(files)} images of {size} x {size}"
    write_report(output, "erf", receptive_field_figure(panels, title), {"size": size, "models": numbers})


def shape_bias_verb(
    models: list[str],
    images: str,
    *,
    batch_size: int = 32,
    pretrained: bool = True,
    device: str = "cpu",
    output: str = "shape_bias",
) -> None:
    """Measure the shape bias of ImageNet classifiers: a table, shape_bias.png and shape_bias.json.

    Args:
        models: timm or LarKit names, NAME=FILE for weights of your own, or checkpoints that fit wrote; 1000 classes.
        images: folder of cue-conflict images, which are named after shape and texture, as in cat3-knife1.png.
        batch_size: number of images in a batch.
        pretrained: load published weights for models named without a file.
        device: cpu, cuda, ...
        output: folder for the picture and the JSON file.
    """
    check_positive(batch_size=batch_size)
    check_output(output)

    results: dict[str, ShapeBias] = {}
    for name in models:
        model = open_model(name, pretrained=pretrained, device=device)
        mean, std = normalization(model)
        options = resolve_model_data_config(model) | {"mean": mean, "std": std}
        transform = create_transform(**options, is_training=False)
        label = _label(name, pretrained)
        results[label] = shape_bias(model, images, transform, batch_size=batch_size, mode=image_mode(model))

    shares = [result.by_category for result in results.values()]
    rows = [[category, *[_share(share[category]) for share in shares]] for category in shares[0]]
    rows.append(["overall", *[_share(result.overall) for result in results.values()]])
    for kind in ("shape", "texture", "other"):
        rows.append([f"decided by {kind}", *[str(sum(getattr(result, kind).values())) for result in results.values()]])
    print_table(["shape category", *results], rows)

    numbers = {
        label: asdict(result) | {"overall": result.overall, "by_category": result.by_category}
        for label, result in results.items()
    }
    write_report(output, "shape_bias", shape_bias_figure(results), numbers)


VERBS: dict[str, Callable[..., None]] = {"erf": erf_verb, "shape-bias": shape_bias_verb, "cost": cost_verb}


def run_analysis(words: Sequence[str]) -> None:
    """Run an analysis with the words of the command line, of which the first is its name.

    Raises:
        InputError: if an option is unknown, or a value cannot be used.
    """
    from jsonargparse import ArgumentError, ArgumentParser  # only the command needs it

    verb = VERBS[words[0]]
    summary = (verb.__doc__ or "").partition("\n")[0]
    parser = ArgumentParser(prog=f"lightning {words[0]}", description=summary, exit_on_error=False)
    parser.add_argument("models", nargs="+", type=str, help="names of models, NAME=FILE, or checkpoints that fit wrote")
    parser.add_function_arguments(verb, as_group=False, skip={"models"})
    try:
        given = parser.parse_args(list(words[1:]))
    except ArgumentError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = f"{lines[0]} write lists as [0.5, 0.5, 0.5]" if "list[" in str(error) else " ".join(lines)
        raise InputError(f"{reason}. Type: lightning {words[0]} --help") from error
    verb(**given.as_dict())


def _batches(
    files: Sequence[Path], model: nn.Module, size: int, norm: Normalization, batch_size: int, device: str
) -> Iterator[Tensor]:
    """Yield images as normalized batches (B, C, size, size) on the device."""
    mode = image_mode(model)
    mean, std = norm
    if not len(mean) == len(std) == len(mode):
        raise InputError(f"--mean has {len(mean)} and --std {len(std)} values; the model takes {len(mode)}")

    transform = square_transform(size, norm)
    for first in range(0, len(files), batch_size):
        images = [transform(read_image(file, mode)) for file in files[first : first + batch_size]]
        yield torch.stack(images).to(device)


def _given_normalization(mean: list[float] | None, std: list[float] | None) -> Normalization | None:
    """Return the normalization that the user gave, or None to use that of each model."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise InputError("give both --mean and --std, or neither for each model's own")
    if min(std) <= 0:
        raise InputError(f"--std is {std}; give numbers above 0")
    return tuple(mean), tuple(std)


def _label(name: str, pretrained: bool) -> str:
    """Return the name of a model in the table, with a note if weights are random."""
    has_file = "=" in name or names_checkpoint(name)
    if has_file:
        return name
    if not pretrained:
        return f"{name} (random weights)"
    return f"{name} (large kernels random)" if name.startswith("lk_") else name  # published with small kernels


def _short(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"

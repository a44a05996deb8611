"""The analyses as verbs of the command: each prints a table, and writes a picture and a JSON file."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from core.analysis.cost_verb import cost_verb
from core.analysis.models import Normalisation, image_mode, normalisation, open_model, square_transform
from core.analysis.receptive_field import (
    THRESHOLDS,
    effective_receptive_field,
    ratio_text,
    receptive_field_figure,
)
from core.analysis.report import check_output, check_positive, print_table, write_report
from core.analysis.shape_bias import ShapeBias, shape_bias, shape_bias_figure
from core.errors import InputError
from core.images import image_files, read_image

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
    """Effective receptive field of models on images: table, erf.png and erf.json.

    Args:
        models: timm or LarKit names, NAME=FILE for weights of your own, or checkpoints that fit wrote.
        images: an image or a folder of images; the first ones by name are used.
        size: side in pixels that every image is squashed to, bicubic.
        num_images: how many images.
        batch_size: images at a time; the result does not depend on it.
        pretrained: load published weights for models named without a file; false measures random weights.
        mean: of each channel, for pixels in [0, 1]; by default each model's own.
        std: of each channel.
        device: cpu, cuda, ...
        output: folder for the picture and the JSON file.
    """
    check_positive(size=size, num_images=num_images, batch_size=batch_size)
    check_output(output)
    files, fields, numbers, titles = image_files(Path(images))[:num_images], {}, {}, {}
    for name in models:
        model = open_model(name, pretrained=pretrained, device=device)
        norm = _given(mean, std) or normalisation(model)
        batches = _batches(files, model, size, norm, batch_size, device)
        label = _label(name, pretrained)
        field = fields[label] = effective_receptive_field(model, batches)
        ratios = {f"{t:.0%}": ratio for t, ratio in field.area_ratios().items()}
        counts = {"images": field.images, "skipped": field.skipped}
        numbers[label] = {"area_ratios": ratios, **counts, "mean": norm[0], "std": norm[1]}
        titles[label] = f"{label}\nmean {_numbers(norm[0])}, std {_numbers(norm[1])}"
    print_table(
        ["model", *[f"t = {t:.0%}" for t in THRESHOLDS], "images"],
        [[name, *map(ratio_text, f.area_ratios().values()), str(f.images)] for name, f in fields.items()],
    )
    title = f"effective receptive field, {len(files)} images of {size} x {size}"
    figure = receptive_field_figure({titles[name]: field for name, field in fields.items()}, title)
    write_report(output, "erf", figure, {"size": size, "models": numbers})


def shape_bias_verb(
    models: list[str],
    images: str,
    *,
    batch_size: int = 32,
    pretrained: bool = True,
    device: str = "cpu",
    output: str = "shape_bias",
) -> None:
    """Shape bias of ImageNet classifiers on cue-conflict images: table, shape_bias.png and shape_bias.json.

    Args:
        models: timm or LarKit names, NAME=FILE for weights of your own, or checkpoints that fit wrote; 1000 classes.
        images: folder of images named after shape and texture, as cat3-knife1.png.
        batch_size: images at a time.
        pretrained: load published weights for models named without a file.
        device: cpu, cuda, ...
        output: folder for the picture and the JSON file.
    """
    check_positive(batch_size=batch_size)
    check_output(output)
    results: dict[str, ShapeBias] = {}
    for name in models:
        model = open_model(name, pretrained=pretrained, device=device)
        mean, std = normalisation(model)
        transform = create_transform(**resolve_model_data_config(model) | {"mean": mean, "std": std}, is_training=False)
        mode = image_mode(model)
        results[_label(name, pretrained)] = shape_bias(model, images, transform, batch_size=batch_size, mode=mode)
    first = next(iter(results.values()))
    rows = [[name, *[_share(r.by_category[name]) for r in results.values()]] for name in first.by_category]
    rows += [["overall", *[_share(result.overall) for result in results.values()]]]
    rows += [[f"decided by {kind}", *[str(_sum(result, kind)) for result in results.values()]] for kind in _KINDS]
    print_table(["shape category", *results], rows)
    numbers = {
        name: asdict(result) | {"overall": result.overall, "by_category": result.by_category}
        for name, result in results.items()
    }
    write_report(output, "shape_bias", shape_bias_figure(results), numbers)


VERBS: dict[str, Callable[..., None]] = {"erf": erf_verb, "shape-bias": shape_bias_verb, "cost": cost_verb}
_KINDS = ("shape", "texture", "other")
_TUNE = "first measure which implementation of each depthwise convolution is fastest here, and keep it for later runs"


def run_analysis(words: Sequence[str]) -> None:
    """Run one verb from the words of the command line, the verb first.

    Raises:
        InputError: if an option is unknown, or something given cannot be used.
    """
    from jsonargparse import ArgumentError, ArgumentParser  # Lightning's, which the functions do not need

    verb = VERBS[words[0]]
    summary = (verb.__doc__ or "").partition("\n")[0]
    parser = ArgumentParser(prog=f"lightning {words[0]}", description=summary, exit_on_error=False)
    parser.add_argument("models", nargs="+", type=str, help="names of models, NAME=FILE, or checkpoints that fit wrote")
    switches = {"tune"} & set(inspect.signature(verb).parameters)
    for switch in switches:
        parser.add_argument(f"--{switch}", action="store_true", help=_TUNE)
    parser.add_function_arguments(verb, as_group=False, skip={"models", *switches})
    try:
        given = parser.parse_args(list(words[1:]))
    except ArgumentError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = f"{lines[0]} write lists as [0.5, 0.5, 0.5]" if "list[" in str(error) else " ".join(lines)
        raise InputError(f"{reason}. Type: lightning {words[0]} --help") from error
    verb(**given.as_dict())


def _batches(
    files: Sequence[Path], model: nn.Module, size: int, norm: Normalisation, batch_size: int, device: str
) -> Iterator[Tensor]:
    mode = image_mode(model)
    if not len(norm[0]) == len(norm[1]) == len(mode):
        raise InputError(f"--mean has {len(norm[0])} and --std {len(norm[1])} values; the model takes {len(mode)}")
    transform = square_transform(size, norm)
    for first in range(0, len(files), batch_size):
        yield torch.stack([transform(read_image(f, mode)) for f in files[first : first + batch_size]]).to(device)


def _given(mean: list[float] | None, std: list[float] | None) -> Normalisation | None:
    if (mean is None) != (std is None):
        raise InputError("give both --mean and --std, or neither for each model's own")
    if std is not None and min(std) <= 0:
        raise InputError(f"--std is {std}; give numbers above 0")
    return None if mean is None or std is None else (tuple(mean), tuple(std))


def _label(name: str, pretrained: bool) -> str:
    known = pretrained or "=" in name or name.endswith(".ckpt")
    if known and name.startswith("lk_") and "=" not in name:
        return f"{name} (large kernels random)"
    return name if known else f"{name} (random weights)"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _sum(result: ShapeBias, kind: str) -> int:
    return int(sum(getattr(result, kind).values()))

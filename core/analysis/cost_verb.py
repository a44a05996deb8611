"""The command ``lightning cost``: a table of the cost of models in training and inference form."""

import platform
from dataclasses import asdict

import torch

from core.analysis.cost import Cost, cost_figure, model_cost
from core.analysis.models import open_model
from core.analysis.report import check_output, check_positive, print_table, write_report
from core.backbones.build import input_channels
from core.errors import InputError

__all__ = ["cost_verb"]


def cost_verb(
    models: list[str],
    *,
    size: int = 224,
    width: int | None = None,
    batch_size: int = 8,
    rounds: int = 5,
    device: str = "cpu",
    output: str = "cost",
) -> None:
    """Measure parameters, MACs, memory and speed of models in both forms: a table, cost.png and cost.json.

    Args:
        models: timm or LarKit names, or checkpoints that fit wrote; the weights do not matter.
        size: height of the input in pixels.
        width: width of the input in pixels; by default the height.
        batch_size: number of images in a timed batch.
        rounds: number of timed batches for each form; the forms of a model take turns. 0 leaves the timing out.
        device: cpu, cuda, ...
        output: folder for the picture and the JSON file.

    Raises:
        InputError: if a number is out of range, the output folder cannot be used, or there is no such model or it does
            not take this input.
    """
    check_positive(size=size, batch_size=batch_size, width=1 if width is None else width)
    check_output(output)
    if rounds < 0:
        raise InputError(f"--rounds is {rounds}; give 0 for no timing, or more")

    costs = []
    for name in models:
        model = open_model(name, device=device)
        input_size = (input_channels(model), size, width or size)
        costs += model_cost(model, input_size, name=name, batch_size=batch_size, rounds=rounds)

    print_table(
        ["model", "form", "parameters", "GMACs", "saved for backward", "peak activations", "images/s"],
        [_row(cost) for cost in costs],
    )

    where = {"device": _device_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    title = f"input {size} x {width or size}, batch {batch_size}, {where['device']}, torch {where['torch']}"
    print(f"one image of {size} x {width or size}; speed: batches of {batch_size} on {where['device']}")

    content = {"costs": [asdict(cost) for cost in costs], "batch_size": batch_size, **where}
    write_report(output, "cost", cost_figure(costs, title) if rounds else None, content)


def _row(cost: Cost) -> list[str]:
    return [
        cost.model,
        cost.form,
        f"{cost.parameters / 1e6:.2f} M",
        f"{cost.macs / 1e9:.3f}",
        "" if cost.saved_bytes is None else f"{cost.saved_bytes / 2**20:.1f} MiB",
        f"{cost.peak_bytes / 2**20:.1f} MiB",
        "" if cost.images_per_second is None else f"{cost.images_per_second:.1f}",
    ]


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} CPU threads"

"""What a model costs: parameters, multiplications, memory for activations, images a second, in each of its forms."""

from __future__ import annotations

import copy
import statistics
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from core.errors import InputError
from core.figures import new_figure
from core.reparam import folds, reparameterize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Cost", "activation_peak", "cost_figure", "count_macs", "model_cost", "saved_for_backward"]


@dataclass(frozen=True)
class Cost:
    """Costs of one form of a model at one input size.

    Attributes:
        model: its name.
        form: 'train' with branches and norms, 'inference' folded.
        input_size: (C, H, W).
        parameters: number of learned values.
        macs: multiplications with additions for one image; papers call them FLOPs. Convolutions, matrix products and
            attention are counted, as the papers do; taps that can never meet the map are left out, as they are in
            :func:`core.ops.depthwise_conv2d`.
        saved_bytes: kept for the backward pass of one image in training, parameters left out; None for 'inference'.
        peak_bytes: largest sum of tensors that live at the same time in inference on one image, parameters left out.
        images_per_second: measured forward pass in eval mode; None if it was not measured.
    """

    model: str
    form: Literal["train", "inference"]
    input_size: tuple[int, int, int]
    parameters: int
    macs: int
    saved_bytes: int | None
    peak_bytes: int
    images_per_second: float | None


def model_cost(
    model: nn.Module, input_size: tuple[int, int, int], *, name: str = "", batch_size: int = 8, rounds: int = 5
) -> list[Cost]:
    """Costs of a model in training form and, if it folds, in inference form.

    Counts are made without data, so that they take no memory. Speeds are medians over rounds in which the forms take
    turns, on the model's device and dtype; on a CPU with torch's number of threads.

    Args:
        model: in eval mode.
        input_size: (C, H, W).
        name: for the table; by default the class.
        batch_size: images of a timed batch.
        rounds: timed batches for each form; 0 leaves the timing out.

    Raises:
        InputError: if the model is in training mode or does not take this input.
    """
    if model.training:
        raise InputError("costs are those of eval mode; call model.eval() first")
    forms: dict[Literal["train", "inference"], nn.Module] = {"train": model}
    if any(folds(module) for module in model.modules()):
        forms["inference"] = reparameterize(model)
    speeds = _images_per_second(list(forms.values()), input_size, batch_size, rounds)
    costs = []
    for (form, module), speed in zip(forms.items(), speeds, strict=True):
        saved = saved_for_backward(module, input_size) if form == "train" else None
        costs.append(
            Cost(
                model=name or type(model).__name__,
                form=form,
                input_size=input_size,
                parameters=sum(p.numel() for p in module.parameters()),
                macs=count_macs(module, input_size),
                saved_bytes=saved,
                peak_bytes=activation_peak(module, input_size),
                images_per_second=speed,
            )
        )
    return costs


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiplications with additions of the forward pass of one image (C, H, W) in eval mode.

    Raises:
        InputError: if the model does not take this input.
    """
    shadow = _shadow(model)
    x = _empty(model, 1, input_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _run(shadow.eval(), x)
    return int(counter.get_total_flops()) // 2


def saved_for_backward(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Bytes that autograd keeps for the backward pass of a training step, for one image of a batch of two.

    What activation checkpointing keeps and recomputes is not in it: measure the model without.

    Raises:
        InputError: if the model does not take this input.
    """
    shadow = _shadow(model).train()
    x = _empty(model, 2, input_size)
    fixed = {p.untyped_storage()._cdata for p in (*shadow.parameters(), *shadow.buffers())}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in fixed:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.enable_grad():
        _run(shadow, x)
    return sum(storage.nbytes() for storage in kept.values()) // 2


def activation_peak(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Bytes of all tensors that live at the worst moment of the forward pass of one image, its input included.

    What a kernel needs for itself while it runs is not in it.

    Raises:
        InputError: if the model does not take this input.
    """
    shadow = _shadow(model).eval()
    x = _empty(model, 1, input_size)
    live = _LiveBytes()
    live.follow(x)
    with live, torch.no_grad():
        _run(shadow, x)
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operators make until nobody holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and not func.is_view:
                self.follow(tensor)
        return result

    def follow(self, tensor: Tensor) -> None:
        """Count a tensor's storage once, and until it is freed."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.seen:
            return
        self.seen.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def _shadow(model: nn.Module) -> nn.Module:
    """A copy without data."""
    return copy.deepcopy(model).to("meta")


def _empty(model: nn.Module, batch_size: int, input_size: tuple[int, int, int]) -> Tensor:
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return torch.empty(batch_size, *input_size, dtype=dtype, device="meta")


def _run(model: nn.Module, x: Tensor) -> Any:
    try:
        return model(x)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"{type(model).__name__} does not take an input of {tuple(x.shape[1:])} ({error}); choose another size or "
            "number of channels"
        ) from error


def _images_per_second(
    models: Sequence[nn.Module], input_size: tuple[int, int, int], batch_size: int, rounds: int
) -> list[float | None]:
    if rounds < 1:
        return [None] * len(models)
    like = next(models[0].parameters(), torch.zeros(()))
    x = torch.randn(batch_size, *input_size, device=like.device, dtype=like.dtype)
    timers = [
        Timer("model(x)", globals={"model": model, "x": x}, num_threads=torch.get_num_threads()) for model in models
    ]
    with torch.no_grad(), torch.cuda.device_of(x):  # the timer waits for the current GPU
        for model in models:
            _run(model, x)  # warm up, and refuse before timing
        seconds = [[timer.timeit(1).mean for timer in timers] for _ in range(rounds)]
    return [batch_size / statistics.median(column) for column in zip(*seconds, strict=True)]


def cost_figure(costs: Sequence[Cost], title: str) -> Figure:
    """Images a second over multiplications, an arrow from each training form to its inference form."""
    figure = new_figure(7.5, 5)
    axes = figure.subplots()
    start = {cost.model: cost for cost in costs if cost.form == "train"}
    for cost in costs:
        place = (cost.macs / 1e9, cost.images_per_second or 0.0)
        folded = cost.form == "inference"
        axes.scatter(*place, s=30 + cost.parameters / 5e5, alpha=0.6, color="tab:green" if folded else "tab:gray")
        if folded and cost.model in start:
            before = (start[cost.model].macs / 1e9, start[cost.model].images_per_second or 0.0)
            axes.annotate("", place, before, arrowprops={"arrowstyle": "->", "color": "tab:green"})
        aside = (6, 6) if folded else (6, -20)  # the two forms are often close together
        axes.annotate(f"{cost.model}\n{cost.form}", place, xytext=aside, textcoords="offset points", fontsize=7)
    axes.set(xlabel="GMACs", ylabel="images a second, eval forward", title=title)
    axes.margins(0.2)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return figure

"""Cost of a model in training and inference form: parameters, MACs, activation memory and images per second."""

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
from core.figures import new_figure, plain
from core.reparam import folds, reparameterize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Cost", "activation_peak", "cost_figure", "count_macs", "model_cost", "saved_for_backward"]


@dataclass(frozen=True)
class Cost:
    """The cost of one form of a model at one input size.

    Attributes:
        model: name of the model.
        form: 'train' for the form with branches and norms, 'inference' for the folded form.
        input_size: size of the input, (C, H, W).
        parameters: number of parameters.
        macs: multiply-accumulate operations for one image, which papers call FLOPs. Convolutions, matrix products and
            attention are counted, as in the papers. Kernel taps that only ever meet padding are not counted, since
            :func:`core.ops.depthwise_conv2d` leaves them out.
        saved_bytes: memory that is kept for the backward pass of one image, without parameters; None for 'inference'.
        peak_bytes: largest memory of all tensors that exist at the same time in inference on one image, without
            parameters.
        images_per_second: measured speed of the forward pass in eval mode; None if it was not measured.
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
    """Measure the cost of a model in training form and, if it can be folded, in inference form.

    Counting runs on the meta device, so it takes neither memory nor data. A speed is the median over rounds in which
    the forms take turns, on the model's device and in its dtype; on a CPU with torch's number of threads.

    Args:
        model: model in eval mode.
        input_size: size of the input, (C, H, W).
        name: name in the table; by default that of the class.
        batch_size: number of images in a timed batch.
        rounds: number of timed batches for each form; 0 leaves the timing out.

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
    """Count the multiply-accumulate operations of the forward pass of one image (C, H, W) in eval mode.

    Raises:
        InputError: if the model does not take this input.
    """
    meta_model = _copy_to_meta(model).eval()
    x = _empty(model, 1, input_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _run(meta_model, x)
    return int(counter.get_total_flops()) // 2  # torch counts a multiplication and an addition as two


def saved_for_backward(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Measure the bytes that autograd keeps for the backward pass of a training step, for one image of a batch of two.

    Tensors that activation checkpointing keeps and recomputes are not included: measure the model without it.

    Raises:
        InputError: if the model does not take this input.
    """
    meta_model = _copy_to_meta(model).train()
    x = _empty(model, 2, input_size)
    fixed = {p.untyped_storage()._cdata for p in (*meta_model.parameters(), *meta_model.buffers())}
    kept: dict[int, Any] = {}  # storages by their address, since several saved tensors may share one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in fixed:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.enable_grad():
        _run(meta_model, x)

    return sum(storage.nbytes() for storage in kept.values()) // 2


def activation_peak(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Measure the peak memory of the forward pass of one image, in bytes of existing tensors with the input.

    Workspace that a kernel allocates while it runs is not included.

    Raises:
        InputError: if the model does not take this input.
    """
    meta_model = _copy_to_meta(model).eval()
    x = _empty(model, 1, input_size)
    live = _LiveBytes()
    live.follow(x)
    with live, torch.no_grad():
        _run(meta_model, x)
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Tracks the storages that operators allocate until they are freed."""

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
        """Count the storage of a tensor, once, until it is freed."""
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


def _copy_to_meta(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device, on which tensors have shapes but no data."""
    return copy.deepcopy(model).to("meta")


def _empty(model: nn.Module, batch_size: int, input_size: tuple[int, int, int]) -> Tensor:
    """Make an input on the meta device in the dtype of the model."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return torch.empty(batch_size, *input_size, dtype=dtype, device="meta")


def _run(model: nn.Module, x: Tensor) -> Any:
    """Run a model, and raise an InputError if it does not take the input."""
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
    """Time all models in turns, so that a slow moment of the machine affects all of them alike."""
    if rounds < 1:
        return [None] * len(models)

    like = next(models[0].parameters(), torch.zeros(()))
    x = torch.randn(batch_size, *input_size, device=like.device, dtype=like.dtype)
    timers = [
        Timer("model(x)", globals={"model": model, "x": x}, num_threads=torch.get_num_threads()) for model in models
    ]

    with torch.no_grad(), torch.cuda.device_of(x):  # the timer waits for the current GPU
        for model in models:
            _run(model, x)  # warm-up, which also fails before anything is timed
        rows = [[timer.timeit(1).mean for timer in timers] for _ in range(rounds)]

    seconds_of_model = zip(*rows, strict=True)
    return [batch_size / statistics.median(seconds) for seconds in seconds_of_model]


def cost_figure(costs: Sequence[Cost], title: str) -> Figure:
    """Plot images per second over MACs, with an arrow from each training form to its inference form."""
    figure = new_figure(7.5, 5)
    axes = figure.subplots()

    training_form = {cost.model: cost for cost in costs if cost.form == "train"}
    for cost in costs:
        is_folded = cost.form == "inference"
        place = _place_in_figure(cost)
        axes.scatter(*place, s=30 + cost.parameters / 5e5, alpha=0.6, color="tab:green" if is_folded else "tab:gray")
        if is_folded and cost.model in training_form:
            before = _place_in_figure(training_form[cost.model])
            axes.annotate("", place, before, arrowprops={"arrowstyle": "->", "color": "tab:green"})

        offset = (6, 6) if is_folded else (6, -20)  # the two forms are often close together
        axes.annotate(f"{plain(cost.model)}\n{cost.form}", place, xytext=offset, textcoords="offset points", fontsize=7)

    axes.set(xlabel="GMACs", ylabel="images per second, forward pass in eval mode", title=plain(title))
    axes.margins(0.2)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return figure


def _place_in_figure(cost: Cost) -> tuple[float, float]:
    return cost.macs / 1e9, cost.images_per_second or 0.0

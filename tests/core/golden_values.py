"""Weights and inputs that depend on names and shapes alone, as the golden values were made, and models with them."""

import functools
import gzip
import json
import zlib
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import timm
import torch
from torch import Tensor, nn

from core.backbones import LargeKernelNet

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = "test_unireplknet"
TINY_REPLKNET = "test_replknet"
TINIES = [TINY, TINY_REPLKNET]
UNIREPLKNETS = [*timm.list_models("unireplknet_*"), TINY]
REPLKNETS = [*timm.list_models("replknet_*"), TINY_REPLKNET]
NAMES = UNIREPLKNETS + REPLKNETS

M = TypeVar("M", bound=nn.Module)


def read_json(name: str) -> dict[str, Any]:
    with gzip.open(GOLDEN / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return content


def golden_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the golden value of a tensor: its name seeds the generator, and the last part chooses the distribution."""
    random, last = np.random.RandomState(zlib.crc32(name.encode())), name.split(".")[-1]
    if last == "num_batches_tracked":
        return torch.zeros(shape)
    if last == "running_var" or (last == "weight" and len(shape) == 1):
        value = random.uniform(0.5, 1.5, shape)
    elif last in ("running_mean", "bias", "beta"):
        value = 0.1 * random.standard_normal(shape)
    elif last == "gamma":
        value = random.uniform(0.1, 0.5, shape) if len(shape) == 1 else 0.5 * random.standard_normal(shape)
    else:
        value = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value))


def fill(model: nn.Module) -> None:
    """Set every tensor of ``model`` to its golden value, in its own dtype."""
    state = {name: golden_tensor(name, tuple(t.shape)).to(t.dtype) for name, t in model.state_dict().items()}
    model.load_state_dict(state)


def filled(module: M) -> M:
    """Set golden values, far from the initial ones in norms, layer scales and GRN; return the module in eval mode."""
    fill(module)
    return module.eval()


def tiny(name: str = TINY, **options: Any) -> Any:
    """Return a test net in eval mode with golden values."""
    return filled(timm.create_model(name, **options))


@functools.cache
def shapes_only(name: str) -> LargeKernelNet:
    """Return a registered net in eval mode on the meta device, with drop path rates up to 0.3; do not change it."""
    with torch.device("meta"):
        model: LargeKernelNet = timm.create_model(name, drop_path_rate=0.3)
    return model.eval()


def golden_input(*shape: int) -> Tensor:
    """Return a fixed standard normal float32 input."""
    key = "input:" + "x".join(map(str, shape))
    return torch.from_numpy(np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)).float()


def difference(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Return the relative difference between the outputs of two models for ``x``."""
    with torch.no_grad():
        return relative_difference(other(x), model(x))


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference, divided by the largest absolute expected value."""
    got, expected = got.detach(), expected.detach()
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())

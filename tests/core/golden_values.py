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
    """The value of the tensor called ``name``: by the last part of its name, from a generator seeded by all of it."""
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
    """Give every tensor of ``model`` its golden value, in its own dtype."""
    state = {name: golden_tensor(name, tuple(t.shape)).to(t.dtype) for name, t in model.state_dict().items()}
    model.load_state_dict(state)


def filled(module: M) -> M:
    """The same module in eval mode with golden values: norms, layer scales and GRN far from their initial values."""
    fill(module)
    return module.eval()


def tiny(name: str = TINY, **options: Any) -> Any:
    """A test net in eval mode with golden values."""
    return filled(timm.create_model(name, **options))


@functools.cache
def shapes_only(name: str) -> LargeKernelNet:
    """A registered net in eval mode without data, with drop path rates up to 0.3; shared, so not to be changed."""
    with torch.device("meta"):
        model: LargeKernelNet = timm.create_model(name, drop_path_rate=0.3)
    return model.eval()


def golden_input(*shape: int) -> Tensor:
    """The standard normal float32 input of this shape."""
    key = "input:" + "x".join(map(str, shape))
    return torch.from_numpy(np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)).float()


def difference(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    """The relative difference of what ``other`` gives for ``x`` from what ``model`` gives."""
    with torch.no_grad():
        return relative_difference(other(x), model(x))


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, relative to the largest absolute expected value."""
    got, expected = got.detach(), expected.detach()
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())

"""Nets whose last map is finer: later strides become dilations."""

from typing import Any

import pytest
import timm
import torch
from golden_values import TINIES
from torch import nn
from torch.testing import assert_close

import core
from core.errors import InputError

both = pytest.mark.parametrize("net", TINIES)


def _features(net: str, output_stride: int | None = None, **options: Any) -> Any:
    """Return the maps of all stages, computed with the same weights and running statistics for any stride."""
    if "unireplknet" in net:
        options |= {"extra": "none", "layer_scale_init_value": 0.5}  # SE reads the whole map; a new GRN changes nothing
    torch.manual_seed(0)
    model = timm.create_model(net, features_only=True, output_stride=output_stride, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@both
@pytest.mark.parametrize("output_stride", [4, 8, 16])
@pytest.mark.parametrize("kernel_size", [3, 9])
def test_finer_maps_hold_those_of_the_strided_net(net: str, output_stride: int, kernel_size: int) -> None:
    options: dict[str, Any] = {"kernel_sizes": (kernel_size,) * 4}
    if "unireplknet" not in net:
        options["small_kernel"] = 3
    strided, finer = _features(net, **options), _features(net, output_stride, **options)
    x = torch.randn(2, 3, 101, 134)
    assert finer.feature_info.reduction() == [min(r, output_stride) for r in (4, 8, 16, 32)]
    for coarse, fine, reduction in zip(strided(x), finer(x), (4, 8, 16, 32), strict=True):
        step = max(1, reduction // output_stride)
        assert fine.shape[2:] == tuple(-(-side // min(reduction, output_stride)) for side in (101, 134))
        assert_close(fine[..., ::step, ::step], coarse, rtol=1e-4, atol=1e-5)


@both
def test_inference_form_has_the_same_stride(net: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(net, num_classes=5, output_stride=8).train()
    for _ in range(3):
        model(torch.randn(4, 3, 64, 64))  # set running statistics
    folded = core.reparameterize(model.eval())
    x = torch.randn(2, 3, 70, 97)
    assert folded.forward_features(x).shape == (2, 32, 9, 13)
    assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())
    built = timm.create_model(net, num_classes=5, output_stride=8, inference_mode=True).eval()
    built.load_state_dict(folded.state_dict(), strict=True)
    assert_close(built(x), folded(x), rtol=1e-5, atol=1e-6)


@both
def test_weights_know_no_stride(net: str) -> None:
    names = [set(timm.create_model(net, output_stride=stride).state_dict()) for stride in (None, 8, 32)]
    assert names[0] == names[1] == names[2]


@both
@pytest.mark.parametrize("output_stride", [2, 12, 64])
def test_impossible_strides_are_refused(net: str, output_stride: int) -> None:
    with pytest.raises(InputError, match=rf"output_stride={output_stride}; expected one of 4, 8, 16, 32"):
        timm.create_model(net, output_stride=output_stride)

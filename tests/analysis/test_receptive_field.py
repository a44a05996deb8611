"""The effective receptive field equals its definition, written out image by image and pixel by pixel."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from core.analysis import ReceptiveField, effective_receptive_field
from core.analysis.receptive_field import THRESHOLDS, ratio_text, receptive_field_figure

SWIN = {"img_size": 64, "depths": (1, 1), "embed_dim": 8, "num_heads": (1, 2), "window_size": 4}
NETS: list[tuple[str, int, dict[str, Any]]] = [
    ("test_unireplknet", 64, {}),
    ("test_replknet", 64, {}),
    ("test_resnet", 48, {}),
    ("test_maxvit", 160, {}),
    ("swin_tiny_patch4_window7_224", 64, SWIN),  # its maps are (B, H, W, C)
]


class Net(nn.Module):
    """Layers that give the last map, in either order of axes."""

    def __init__(self, *layers: nn.Module, output_fmt: str = "NCHW") -> None:
        super().__init__()
        self.layers, self.output_fmt = nn.Sequential(*layers), output_fmt

    def forward_features(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y.permute(0, 2, 3, 1) if self.output_fmt == "NHWC" else y


class Roots(nn.Module):
    """Roots, whose gradient at a black pixel is infinite, and at a negative one is none."""

    def forward_features(self, x: Tensor) -> Tensor:
        return x.sqrt().sum(dim=(2, 3), keepdim=True)


def _convolution(weight: Tensor) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=weight.shape[2] // 2, bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def _plain_field(model: Any, images: Sequence[Tensor]) -> np.ndarray:
    """One image after the other; those with NaN are left out."""
    total, count = np.zeros(images[0].shape[1:]), 0
    for image in images:
        x = image[None].clone().requires_grad_()
        last = model.forward_features(x)
        if getattr(model, "output_fmt", "NCHW") == "NHWC":
            last = last.movedim(3, 1)
        center = last[0, :, last.shape[2] // 2, last.shape[3] // 2]
        sum(torch.relu(value) for value in center).backward()
        gradient = torch.relu(x.grad[0]).sum(dim=0)
        if not gradient.isnan().any():
            total, count = total + gradient.double().numpy(), count + 1
    return total / count


def _plain_ratio(contributions: np.ndarray, threshold: float) -> float | None:
    """The rule of RepLKNet's analysis: squares of side 2i + 1 around the center, the first that holds enough."""
    height, width = contributions.shape
    scores = np.log10(contributions + 1)
    scores = scores / scores.max()
    for i in range(1, min(height, width) // 2):
        inside = 0.0
        for row in range(height // 2 - i, height // 2 + i + 1):
            for column in range(width // 2 - i, width // 2 + i + 1):
                inside += scores[row, column]
        if inside / scores.sum() > threshold:
            return (2 * i + 1) ** 2 / (height * width)
    return None


def _random_field(*shape: int) -> ReceptiveField:
    y, x = np.mgrid[: shape[0], : shape[1]]
    peak = np.exp(-((y - shape[0] // 2) ** 2 + (x - shape[1] // 2) ** 2) / 20)
    return ReceptiveField(peak * np.random.default_rng(0).uniform(0, 5, shape), 1)


@pytest.mark.parametrize(("name", "size", "options"), NETS)
def test_field_equals_its_definition(name: str, size: int, options: dict[str, Any]) -> None:
    model, images = timm.create_model(name, **options).double().eval(), torch.randn(3, 3, size, size).double()
    field = effective_receptive_field(model, [images[:2], images[2:]])
    assert (field.images, field.skipped, field.contributions.dtype) == (3, 0, np.float64)
    np.testing.assert_allclose(field.contributions, _plain_field(model, list(images)), rtol=1e-6, atol=1e-12)
    assert field.contributions.max() > 0


@pytest.mark.parametrize("shape", [(64, 64), (65, 97), (97, 64), (33, 32)])
@pytest.mark.parametrize("name", ["test_unireplknet", "test_replknet"])
def test_odd_and_oblong_maps(name: str, shape: tuple[int, int]) -> None:
    model, images = timm.create_model(name).double().eval(), torch.randn(2, 3, *shape).double()
    field = effective_receptive_field(model, [images])
    np.testing.assert_allclose(field.contributions, _plain_field(model, list(images)), rtol=1e-6, atol=1e-12)
    ratios = {t: _plain_ratio(field.contributions, t) for t in THRESHOLDS}
    assert field.area_ratios() == pytest.approx(ratios)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_does_not_matter(batch_size: int) -> None:
    model, images = timm.create_model("test_replknet").double().eval(), torch.randn(5, 3, 64, 64).double()
    whole = effective_receptive_field(model, [images]).contributions
    parts = effective_receptive_field(model, iter(images.split(batch_size))).contributions
    np.testing.assert_allclose(parts, whole, rtol=1e-9)


@pytest.mark.parametrize("output_fmt", ["NCHW", "NHWC"])
def test_two_3x3_convolutions_see_5x5_pixels(output_fmt: str) -> None:
    ones = [_convolution(torch.ones(2, 3, 3, 3)), _convolution(torch.ones(4, 2, 3, 3))]
    field = effective_receptive_field(Net(*ones, output_fmt=output_fmt).eval(), [torch.ones(2, 3, 13, 11)])
    expected = np.zeros((13, 11))
    expected[4:9, 3:8] = np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1]) * 3 * 2 * 4  # channels in, between, out
    np.testing.assert_array_equal(field.contributions, expected)
    scores = np.log10(expected + 1) / np.log10(3 * 3 * 24 + 1)
    np.testing.assert_allclose(field.scores, scores)
    assert field.area_ratios((0.99,)) == {0.99: 25 / (13 * 11)}


def test_only_positive_outputs_and_positive_gradients_count() -> None:
    up = torch.zeros(1, 1, 3, 3)
    up[0, 0, 1] = torch.tensor([2.0, 3.0, -1.0])
    model = Net(_convolution(torch.cat([up, -up]))).eval()  # the second channel is below zero where the first is above
    field = effective_receptive_field(model, [torch.ones(1, 1, 5, 5)])
    assert field.contributions[2].tolist() == [0, 2, 3, 0, 0]
    assert field.contributions.sum() == 5
    silent = effective_receptive_field(Net(_convolution(-up)).eval(), [torch.ones(1, 1, 5, 5)])
    assert silent.contributions.max() == silent.scores.max() == 0
    assert set(silent.area_ratios().values()) == {None}


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_images_without_finite_gradients_are_left_out_and_counted(value: float) -> None:
    images = torch.rand(4, 2, 9, 9) + 0.5
    images[1, 0, 3, 2] = images[2, 1, 8, 8] = value
    field = effective_receptive_field(Roots().eval(), [images[:3], images[3:]])
    assert (field.images, field.skipped) == (2, 2)
    expected = (0.5 * images[[0, 3]].rsqrt()).sum(dim=1).mean(dim=0)
    np.testing.assert_allclose(field.contributions, expected.numpy(), rtol=1e-5)


def test_nothing_but_images_without_finite_gradients() -> None:
    with pytest.raises(
        ValueError, match=re.escape("no image gave finite gradients (2 tried); give images, and undamaged")
    ):
        effective_receptive_field(Roots().eval(), [torch.zeros(1, 1, 8, 8), -torch.ones(1, 1, 8, 8)])


def test_gradient_of_minus_infinity_is_not_finite() -> None:
    class Falling(Roots):
        def forward_features(self, x: Tensor) -> Tensor:
            return 100 - super().forward_features(x)

    images = torch.ones(2, 1, 8, 8)
    images[0, 0, 1, 1] = 0
    assert effective_receptive_field(Falling().eval(), [images]).skipped == 1


@pytest.mark.parametrize("shape", [(40, 40), (41, 41), (30, 44), (44, 31), (5, 5), (4, 6)])
def test_area_ratios_equal_their_definition(shape: tuple[int, int]) -> None:
    field = _random_field(*shape)
    thresholds = (0.05, 0.2, 0.3, 0.5, 0.8, 0.9, 0.99)
    assert field.area_ratios(thresholds) == pytest.approx({t: _plain_ratio(field.contributions, t) for t in thresholds})
    assert field.scores.max() == 1
    assert field.scores.min() >= 0


def test_flat_field_has_a_share_that_no_square_reaches() -> None:
    field = ReceptiveField(np.full((20, 20), 0.7), 3)
    assert field.area_ratios() == {0.2: 81 / 400, 0.3: 121 / 400, 0.5: 225 / 400, 0.99: None}
    assert (ratio_text(81 / 400), ratio_text(None)) == ("20.25%", "not reached")


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (2, 9)])
def test_maps_too_small_for_any_square(shape: tuple[int, int]) -> None:
    assert set(ReceptiveField(np.ones(shape), 1).area_ratios().values()) == {None}


def test_figure_shows_every_field_with_its_ratios() -> None:
    fields = {"flat\nmean 0.5": ReceptiveField(np.ones((20, 20)), 1), "peak": _random_field(20, 20)}
    figure = receptive_field_figure(fields, "2 images of 20 x 20")
    figure.canvas.draw()
    assert figure.get_suptitle() == "2 images of 20 x 20"
    flat, peak, _colors = figure.axes
    assert [flat.get_title(), peak.get_title()] == list(fields)
    assert flat.get_xlabel().splitlines()[0] == "20%: 20.25% of the area"
    assert flat.get_xlabel().splitlines()[3] == "99%: not reached"
    (image,) = peak.get_images()
    np.testing.assert_array_equal(image.get_array(), fields["peak"].scores)
    assert image.get_clim() == (0, 1)


def test_titles_of_panels_keep_paths_and_dollar_signs_in_one_piece() -> None:
    run = "/home/somebody/runs/lightning_logs/ImageClassifier/version_0/checkpoints/best.ckpt"
    names = [f"net={run}\nmean 0.5", run, f"/{60 * 'a'}", "costs $x^$ or $y"]
    fields = {name: _random_field(20, 20) for name in names}
    figure = receptive_field_figure(fields, "2 images of photos/$x^$")
    figure.canvas.draw()  # mathtext would refuse '$x^$'
    titles = [axes.get_title().replace(r"\$", "$").splitlines() for axes in figure.axes[:-1]]
    assert titles == [
        ["net=.../checkpoints/best.ckpt", "mean 0.5"],
        [".../version_0/checkpoints/best.ckpt"],
        [f"...{35 * 'a'}"],
        ["costs $x^$ or $y"],
    ]


def test_model_and_images_stay_as_they_are() -> None:
    model, x = timm.create_model("test_resnet").eval(), torch.randn(1, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():  # as in evaluation code around it
        effective_receptive_field(model, [x])
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not x.requires_grad


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is that of eval mode; call model\.eval\(\) first"):
        effective_receptive_field(timm.create_model("test_resnet"), [torch.zeros(1, 3, 64, 64)])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (timm.create_model("test_vit"), "the last map of VisionTransformer is (1, 101, 64), not (B, C, H, W)"),
        (nn.Conv2d(3, 4, 3), "Conv2d has no forward_features, which gives the last map; use a timm or LarKit model"),
        (Net(nn.Flatten()), "the last map of Net is (1, 76800), not (B, C, H, W): its positions do not form a grid"),
    ],
    ids=["tokens", "no forward_features", "vector"],
)
def test_models_without_a_last_map_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        effective_receptive_field(model.eval(), [torch.zeros(1, 3, 160, 160)])


def test_images_of_two_sizes_are_refused() -> None:
    model = Net(_convolution(torch.ones(1, 3, 3, 3))).eval()
    batches = [torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 18)]
    with pytest.raises(ValueError, match=re.escape("images of (16, 16) and (16, 18) pixels; use one size")):
        effective_receptive_field(model, batches)


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 3, 16, 16)]])
def test_no_images_are_refused(batches: list[Tensor]) -> None:
    with pytest.raises(ValueError, match=re.escape("no image gave finite gradients (0 tried); give images")):
        effective_receptive_field(Net(_convolution(torch.ones(1, 3, 3, 3))).eval(), batches)

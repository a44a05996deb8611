"""From clouds to images: features, image branch and the whole encoder against the published steps, one by one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from core.errors import InputError
from pointcloud import PointViews
from pointcloud.feature_map import EdgeFeatures, unit_sphere
from pointcloud.views import VIEWS, euler_matrices, pixels, pose_matrices, splat


def _model(**kwargs: object) -> PointViews:
    model = PointViews(**{"num_views": 2, "obj_size": 28, "neighbors": 5, "dim": 8, **kwargs}).eval()  # type: ignore[arg-type]
    for name, value in model.state_dict().items():
        if value.is_floating_point() and name != "views":
            value.add_(0.3 * torch.randn_like(value).abs() if "running_var" in name else 0.3 * torch.randn_like(value))
    return model


def _images(model: PointViews, points: Tensor, *pose: Tensor) -> Tensor:
    """Return the views of points that are already sampled."""
    return model.render(points, model.enc(points), *pose)


def _plain_features(enc: EdgeFeatures, points: Tensor) -> Tensor:
    """Return the features, computed edge by edge and cloud by cloud."""
    found = []
    for cloud in points:
        f = enc.input_trans(cloud.T[None])[0].T
        neighbor = (cloud[:, None] - cloud[None]).square().sum(-1).topk(enc.neighbors, largest=False)[1]
        other, own = f[neighbor], f[:, None].expand(-1, enc.neighbors, -1)
        edges = enc.graph_layer(torch.cat([other - own, own], dim=2).permute(2, 0, 1)[None])
        found.append(enc.proj_layer(edges.amax(dim=3))[0].T)
    return torch.stack(found)


def _plain_fusion(fusion: torch.nn.Module, x: Tensor, views: int) -> Tensor:
    """Return the fused maps, computed in full size and with the attention written out."""
    tokens = fusion.conv1(x)  # type: ignore[operator]
    height, width = tokens.shape[2:]
    t = tokens.permute(0, 2, 3, 1).reshape(len(x) // views, views * height * width, -1)
    first, second = fusion.transformer.layers[0]  # type: ignore[union-attr, index, misc]
    q, k, v = (part.unflatten(2, (8, -1)).transpose(1, 2) for part in first.fn.to_qkv(first.norm(t)).chunk(3, dim=2))  # type: ignore[has-type]
    weights = (q @ k.transpose(2, 3) / t.shape[2] ** 0.5).softmax(dim=3)
    t = t + first.fn.to_out((weights @ v).transpose(1, 2).flatten(2))  # type: ignore[has-type]
    t = t + second.fn.net(second.norm(t))  # type: ignore[has-type]
    t = t.reshape(len(x), height, width, -1).permute(0, 3, 1, 2)
    t = fusion.conv2(F.interpolate(t, scale_factor=7, mode="nearest"))  # type: ignore[operator]
    return fusion.conv3(torch.cat([t, x], dim=1))  # type: ignore[operator]


def _count(module: torch.nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad) if module else 0


def test_names_shapes_and_count_are_the_published_ones() -> None:
    model = PointViews()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    published = {
        **{"views": (10, 2, 3), "enc.input_trans.weight": (8, 3, 1), "enc.graph_layer.0.weight": (64, 16, 1, 1)},
        **{"enc.graph_layer.1.bias": (64,), "enc.proj_layer.weight": (64, 64, 1), "enc.img_block.0.bn2.weight": (64,)},
        **{"enc.img_block.0.conv1.weight": (64, 64, 3, 3), "enc.img_block.1.weight": (64, 64, 1, 1)},
        **{"enc.fusion.conv1.weight": (128, 64, 7, 7), "enc.fusion.conv2.0.weight": (64, 128, 3, 3)},
        **{"enc.fusion.transformer.layers.0.0.fn.to_qkv.weight": (3072, 128)},
        **{"enc.fusion.transformer.layers.0.0.fn.to_out.0.weight": (128, 1024)},
        **{"enc.fusion.transformer.layers.0.0.norm.weight": (128,)},
        **{"enc.fusion.transformer.layers.0.1.fn.net.0.weight": (256, 128)},
        **{"enc.fusion.transformer.layers.0.1.fn.net.3.weight": (128, 256)},
        **{"enc.fusion.conv3.0.weight": (64, 128, 1, 1), "enc.img_layer.weight": (3, 64, 1, 1)},
    }
    assert {name: shapes.get(name) for name in published} == published
    assert round(_count(model) / 1e6, 3) == 1.158
    assert not model.views.requires_grad
    assert model.views[:, 1].tolist() == [[0, 0, pytest.approx(-1.4)]] * 10


@pytest.mark.parametrize("far", [0.0, 20.0])
def test_features_equal_those_of_single_edges(far: float) -> None:
    enc, points = _model().enc, unit_sphere(torch.randn(3, 60, 3)) + far
    enc.graph_layer[1].weight.data[::2] *= -1  # type: ignore[union-attr, operator, index]
    ours, plain = EdgeFeatures.forward(enc, points), _plain_features(enc, points)
    assert_close(ours, plain, rtol=1e-3, atol=1e-3 if far else 1e-5)
    weights = [p for name, p in enc.named_parameters() if name.startswith(("input", "graph", "proj"))]
    assert len(weights) == 7
    g = torch.randn_like(plain)
    pairs = zip(*(torch.autograd.grad((out * g).sum(), weights) for out in (ours, plain)), strict=True)
    for a, b in pairs:
        assert_close(a, b, rtol=1e-2, atol=1e-2 * float(b.abs().max()) if far else 1e-4)


def test_fusion_equals_the_plain_form_and_its_gradient() -> None:
    fusion, x = _model().enc.fusion, torch.randn(6, 8, 28, 35)
    assert fusion is not None
    ours, plain = fusion(x, 3), _plain_fusion(fusion, x, 3)
    assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours[:3], fusion(torch.cat([x[:2], x[3:4], x[3:]]), 3)[:3])  # views see each other
    g = torch.randn_like(plain)
    weights = list(fusion.parameters())
    pairs = zip(*(torch.autograd.grad((out * g).sum(), weights) for out in (ours, plain)), strict=True)
    for a, b in pairs:
        assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("fusion", [True, False])
def test_images_equal_the_published_steps(fusion: bool) -> None:
    model, points = _model(num_views=3, obj_size=24, img_size=28, fusion=fusion), unit_sphere(torch.randn(2, 50, 3))
    pose, shift = pose_matrices(torch.tensor([0.3, 1.0]), torch.tensor([-1.0, -0.7])), torch.randn(2, 1, 3)
    images = _images(model, points, pose, shift).unflatten(1, (3, 3)).flatten(0, 1)
    features = _plain_features(model.enc, points)
    matrices, maps = euler_matrices(torch.tensor(VIEWS[:3])), []
    for b in range(2):
        moved = points[b] @ pose[b].T + shift[b]
        for v in range(3):
            place = pixels((moved @ matrices[v].T)[None], 24)
            maps.append(F.pad(splat(features[b : b + 1], place[None], 24), (2, 2, 2, 2)))
    x = model.enc.img_block(torch.cat(maps))
    x = _plain_fusion(model.enc.fusion, x, 3) if model.enc.fusion else x
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = (model.enc.img_layer(x).sigmoid() - mean) / std
    assert images.shape == (6, 3, 28, 28)
    differing = ((images - expected).abs() > 1e-3).float().mean()  # a point on the edge of a pixel may fall either side
    assert float(differing) < (0.1 if fusion else 0.03)


def test_the_pose_draws_and_has_no_gradient() -> None:
    model, points = _model(), torch.randn(1, 30, 3, requires_grad=True)
    pose = pose_matrices(torch.tensor([0.5]), torch.tensor([-1.0])).requires_grad_()
    _images(model, points, pose).sum().backward()
    assert pose.grad is None
    assert points.grad is not None
    assert float(points.grad.abs().sum()) > 0
    assert model.enc.input_trans.weight.grad is not None


def test_coordinates_stay_exact_under_autocast() -> None:
    model, points = _model(fusion=False), unit_sphere(torch.randn(2, 80, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = _images(model, points)
    assert float((half - _images(model, points)).detach().abs().max()) < 0.3


@pytest.mark.parametrize("kind", ["equal", "line", "plane"])
def test_flat_clouds_give_finite_images_and_gradients(kind: str) -> None:
    points = torch.randn(2, 40, 3)
    if kind == "equal":
        points[:] = 1.0
    elif kind == "line":
        points[..., 1:] = 0.0
    else:
        points[..., 2] = 0.0
    model = _model()
    images = _images(model, unit_sphere(points))
    images.sum().backward()
    assert bool(images.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_unit_sphere() -> None:
    points = torch.randn(4, 90, 3) * 7 + 3
    before = points.clone()
    sphere = unit_sphere(points)
    assert_close(sphere.mean(dim=1), torch.zeros(4, 3), rtol=0, atol=1e-6)
    assert_close(sphere.norm(dim=2).amax(dim=1), torch.ones(4))
    assert torch.equal(points, before)
    assert torch.equal(unit_sphere(torch.full((5, 3), 2.0)), torch.zeros(5, 3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_views": 11}, "num_views=11, .*expected 1 to 10 views"),
        ({"num_views": 0}, "expected 1 to 10 views"),
        ({"obj_size": 27, "fusion": False}, "an even obj_size of at least 4"),
        ({"obj_size": 28, "img_size": 14}, "expected an img_size of at least obj_size"),
        ({"obj_size": 32}, "with fusion, a multiple of 7 such as 224"),
        ({"dim": 6}, "dim=6, .*a dim that is a multiple of 4"),
        ({"neighbors": 0}, "neighbors=0, .*neighbors and trans_dim of at least 1"),
        ({"trans_dim": 0}, "trans_dim=0; .*neighbors and trans_dim of at least 1"),
    ],
)
def test_sizes_that_cannot_be(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _model(**wrong)


def test_clouds_that_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="cannot find 5 neighbors in clouds of 4 points"):
        _model()(torch.randn(1, 4, 3))
    with pytest.raises(InputError, match="a cloud holds NaN or infinity"):
        _model().pixels(torch.full((1, 9, 3), torch.nan))

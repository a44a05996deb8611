"""The backbones in segmentation_models_pytorch and under torchvision's detection heads."""

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import core

SMALL = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 40)}
FAMILIES: dict[str, dict[str, Any]] = {
    "unireplknet_t": SMALL | {"layer_scale_init_value": 0.5},
    "replknet_31b": SMALL | {"kernel_sizes": (13, 11, 9, 7)},
}
families = pytest.mark.parametrize("name", FAMILIES)


def _wake(model: nn.Module) -> nn.Module:
    """Batch norms and GRNs as after some training."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    for key, parameter in model.named_parameters():
        if "act.1" in key:
            nn.init.normal_(parameter, std=0.1)
    return model


def _unet(decoder: str, name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return smp.create_model(decoder, f"tu-{name}", encoder_weights=None, classes=3, **FAMILIES[name], **options)


@families
@pytest.mark.parametrize("decoder", ["Unet", "FPN", "UPerNet", "DeepLabV3", "DeepLabV3Plus", "PAN"])
def test_decoders_train_the_whole_encoder(decoder: str, name: str) -> None:
    model = _unet(decoder, name, in_channels=4)
    logits = model(torch.randn(2, 4, 128, 160))  # less is too little for PAN
    assert logits.shape == (2, 3, 128, 160)
    logits.square().mean().backward()
    gradients = {key: p.grad for key, p in model.encoder.named_parameters()}
    assert all(g is not None and float(g.abs().sum()) > 0 for key, g in gradients.items() if "act.1" not in key)


@families
def test_encoder_gives_the_maps_of_the_backbone(name: str) -> None:
    encoder = smp.encoders.get_encoder(f"tu-{name}", weights=None, **FAMILIES[name]).eval()
    net = timm.create_model(name, num_classes=0, **FAMILIES[name]).eval()
    net.load_state_dict({k.removeprefix("model."): v for k, v in encoder.model.state_dict().items()}, strict=False)
    x = torch.randn(1, 3, 64, 96)
    image, empty, *maps = encoder(x)
    assert encoder.out_channels == [3, 0, 16, 24, 32, 40]
    assert image is x
    assert empty.shape == (1, 0, 32, 48)
    assert_close(maps, net.forward_intermediates(x, intermediates_only=True))


@families
@pytest.mark.parametrize(("decoder", "stride"), [("DeepLabV3Plus", 16), ("DeepLabV3", 8)])
def test_deeplab_reads_a_finer_last_map(decoder: str, stride: int, name: str) -> None:
    model = _unet(decoder, name, encoder_output_stride=stride).eval()
    reductions = [64 // m.shape[2] for m in model.encoder(torch.randn(1, 3, 64, 64))]
    assert reductions == [1, 2, 4, 8, min(16, stride), stride]


@families
def test_odd_sizes(name: str) -> None:
    """Unet takes any size; other decoders say which they take, and take those that are no powers of two."""
    assert _unet("Unet", name).eval()(torch.randn(1, 3, 101, 131)).shape == (1, 3, 101, 131)
    model = _unet("DeepLabV3Plus", name).eval()
    assert model(torch.randn(1, 3, 112, 144)).shape == (1, 3, 112, 144)
    with pytest.raises(RuntimeError, match="divisible by 16"):
        model(torch.randn(1, 3, 101, 131))


@families
def test_depth_and_weights(name: str, tmp_path: Path) -> None:
    """A shorter encoder takes a classifier's file; its maps are those of the first stages."""
    net = timm.create_model(name, num_classes=7, **FAMILIES[name]).eval()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    model = _unet("Unet", name, encoder_depth=4, decoder_channels=(32, 16, 16, 8)).eval()
    core.load_weights(model.encoder.model, tmp_path / "weights.pth")
    x = torch.randn(1, 3, 48, 80)
    assert_close(model.encoder(x)[2:], net.forward_intermediates(x, 4, intermediates_only=True)[:3])
    assert model(x).shape == (1, 3, 48, 80)


@families
@pytest.mark.parametrize("decoder", ["Unet", "DeepLabV3Plus"])
def test_inference_form_gives_the_same_masks(decoder: str, name: str) -> None:
    model = _wake(_unet(decoder, name)).eval()
    folded = core.reparameterize(model)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())


def test_preprocessing_is_that_of_the_weights() -> None:
    found = smp.encoders.get_preprocessing_params("tu-unireplknet_s")
    assert found["mean"] == [0.485, 0.456, 0.406]
    assert found["std"] == [0.229, 0.224, 0.225]


class _Pyramid(nn.Module):
    def __init__(self, name: str, out_indices: tuple[int, ...]) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=out_indices, **FAMILIES[name])
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 16, LastLevelMaxPool())
        self.out_channels = 16

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(i): level for i, level in enumerate(self.body(x))})


def _detector(kind: str, name: str) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_classes": 4, "min_size": 96, "max_size": 128}
    if kind == "retinanet":
        anchors = AnchorGenerator(((16,), (32,), (64,), (96,)), ((0.5, 1.0, 2.0),) * 4)
        head: dict[str, Any] = {"anchor_generator": anchors, "score_thresh": 0.0, "detections_per_img": 20}
        return RetinaNet(_Pyramid(name, (1, 2, 3)), **options, **head)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (96,)), ((0.5, 1.0, 2.0),) * 5)
    head = {"rpn_anchor_generator": anchors, "box_score_thresh": 0.0, "box_detections_per_img": 20}
    head |= {"rpn_post_nms_top_n_test": 100, "rpn_post_nms_top_n_train": 100}
    return (MaskRCNN if kind == "mask_rcnn" else FasterRCNN)(_Pyramid(name, (0, 1, 2, 3)), **options, **head)


def _scenes() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of differing odd sizes with a bright square each."""
    images, targets = [torch.rand(3, 97, 131) / 2, torch.rand(3, 111, 90) / 2], []
    for i, image in enumerate(images):
        x, y = 20 + 10 * i, 30
        mask = torch.zeros(1, *image.shape[1:], dtype=torch.uint8)
        mask[:, y : y + 40, x : x + 32] = 1
        image[mask.expand_as(image) == 1] = 1.0
        box = torch.tensor([[x, y, x + 32, y + 40]]).float()
        targets.append({"boxes": box, "labels": torch.tensor([1 + i]), "masks": mask})
    return images, targets


kinds = pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "retinanet"])


@families
@kinds
def test_torchvision_heads_train_the_whole_backbone(kind: str, name: str) -> None:
    model = _detector(kind, name).train()
    losses = model(*_scenes())
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    gradients = {key: p.grad for key, p in model.backbone.body.named_parameters() if "act.1" not in key}
    assert all(g is not None and float(g.abs().sum()) > 0 for g in gradients.values())


@families
@kinds
def test_inference_form_gives_the_same_boxes(kind: str, name: str) -> None:
    """Boxes within 1e-4 pixels of images of 97 x 131 and 111 x 90 pixels, in float32."""
    model = _wake(_detector(kind, name)).eval()
    folded = core.reparameterize(model)
    images = _scenes()[0]
    with torch.no_grad():
        before, after = model(images), folded(images)
    assert len(before) == len(after) == 2
    for image, a, b in zip(images, before, after, strict=True):
        assert len(a["boxes"]) == 20
        assert float(a["boxes"].min()) >= 0
        assert float(a["boxes"].max()) <= max(image.shape)
        assert_close(b["boxes"], a["boxes"], rtol=0, atol=1e-4)
        assert_close(b["scores"], a["scores"], rtol=0, atol=1e-6)
        assert torch.equal(b["labels"], a["labels"])
        if kind == "mask_rcnn":
            assert a["masks"].shape == (20, 1, *image.shape[1:])
            assert_close(b["masks"], a["masks"], rtol=0, atol=1e-4)

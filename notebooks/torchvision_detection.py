# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Detection with torchvision's heads
#
# Faster R-CNN, Mask R-CNN, Keypoint R-CNN, RetinaNet and FCOS of torchvision take any module as a backbone that gives a
# dictionary of maps and says how many channels they have. A feature pyramid on the maps of a LarKit backbone is one.
# This trains Faster R-CNN on digits drawn over photos, on one CPU core within a minute.

# %%
import argparse
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import timm
import torch
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.utils import draw_bounding_boxes

import core
from vision.digits import handwritten_digits, split_digits

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=50, help="training steps")
parser.add_argument("--picture", type=Path, help="PNG to be written: images with the boxes found")
args, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own
torch.manual_seed(0)

# %% [markdown]
# ## Data
#
# One to three zeros, ones or twos on a crop of a photo, as torchvision wants them: a list of images (3, H, W) in
# [0, 1], and for each a dictionary of boxes x1, y1, x2, y2 in pixels and labels from 1 on; 0 is the background.

# %%
SIDE, CLASSES = 96, ("zero", "one", "two")
DIGITS, LABELS = handwritten_digits()
PHOTOS = {"train": skimage.data.coffee(), "val": skimage.data.chelsea()}
Target = dict[str, Tensor]


def draw_scenes(split: str, count: int) -> tuple[list[Tensor], list[Target]]:
    """Images and targets, always the same; photos and digits of training and validation differ."""
    generator, photo = np.random.default_rng(0), PHOTOS[split]
    known = [index for index in split_digits()[split] if LABELS[index] < len(CLASSES)]
    images, targets = [], []
    for _ in range(count):
        top, left = (generator.integers(0, size - SIDE) for size in photo.shape[:2])
        image = photo[top : top + SIDE, left : left + SIDE] / 255 * 0.6
        boxes, labels = [], []
        for x in generator.permutation([2, 34, 66])[: generator.integers(1, 4)]:
            index, y = generator.choice(known), generator.integers(0, SIDE - 28)
            ink = DIGITS[index][:, :, None] / 255
            place = (slice(y, y + 28), slice(x, x + 28))
            image[place] = image[place] * (1 - ink) + generator.uniform(0.6, 1, size=3) * ink
            rows, columns = np.nonzero(ink[:, :, 0] > 0.4)
            boxes.append([x + columns.min(), y + rows.min(), x + columns.max() + 1, y + rows.max() + 1])
            labels.append(LABELS[index] + 1)
        images.append(torch.from_numpy(image).float().permute(2, 0, 1))
        targets.append({"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)})
    return images, targets


train_images, train_targets = draw_scenes("train", 200)
val_images, val_targets = draw_scenes("val", 30)

# %% [markdown]
# ## A backbone for torchvision
#
# `features_only=True` gives the maps of the stages that `out_indices` names, 4, 8, 16 and 32 pixels a place.


# %%
class Pyramid(nn.Module):
    """Maps of a timm model under torchvision's feature pyramid: '0', '1', ... and 'pool', each (B, channels, h, w)."""

    def __init__(self, name: str, channels: int = 64, **kwargs: Any) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, **kwargs)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to the maps by name."""
        return self.fpn({str(i): level for i, level in enumerate(self.body(x))})


def train(model: nn.Module, steps: int, batch: int = 4) -> list[float]:
    """Sum of the model's losses in each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    losses = []
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(train_images), (batch,)).tolist()
        parts = model([train_images[i] for i in chosen], [train_targets[i] for i in chosen])
        loss = sum(parts.values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def predict(model: nn.Module) -> list[Target]:
    """Boxes, labels and scores of the validation images."""
    return model.eval()(val_images)


def report(name: str, losses: list[float], found: list[Target]) -> None:
    """Print how the loss fell, and mean average precision at an overlap of a half."""
    metric = MeanAveragePrecision(iou_thresholds=[0.5])
    metric.update(found, val_targets)
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    print(f"{name}: loss {first:.3f} -> {last:.3f}, validation mAP50 {metric.compute()['map_50']:.3f}")


# %% [markdown]
# ## Faster R-CNN

# %%
anchors = AnchorGenerator(sizes=((8,), (16,), (32,), (64,), (96,)), aspect_ratios=((0.5, 1.0, 2.0),) * 5)
options = {"rpn_anchor_generator": anchors, "min_size": SIDE, "max_size": SIDE}
options |= {"rpn_post_nms_top_n_train": 100, "rpn_post_nms_top_n_test": 50, "box_batch_size_per_image": 64}  # quicker
detector = FasterRCNN(Pyramid("unireplknet_a"), num_classes=len(CLASSES) + 1, **options)
losses = train(detector, args.steps)
found = predict(detector)
report("Faster R-CNN", losses, found)

# %% [markdown]
# ## Inference form
#
# `core.reparameterize` folds the backbone inside the detector: fewer layers, same boxes.

# %%
folded = core.reparameterize(detector)
before, after = (torch.cat([image["boxes"] for image in images]) for images in (found, predict(folded)))
difference = max((before - after).abs().flatten().tolist(), default=0.0)
parts = [sum(1 for _ in model.backbone.body.modules()) for model in (detector, folded)]
print(f"folded: {parts[0]} -> {parts[1]} modules in the backbone")
print(f"{len(before)} boxes differ by at most {difference:.1e} pixels")

# %%
if args.picture:
    drawn = []
    for image, boxes in list(zip(val_images, found, strict=True))[:6]:
        sure = boxes["scores"] > 0.5
        names = [CLASSES[label - 1] for label in boxes["labels"][sure]]
        drawn.append(draw_bounding_boxes(image, boxes["boxes"][sure], names, colors="yellow"))
    skimage.io.imsave(args.picture, (torch.cat(drawn, dim=2).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))

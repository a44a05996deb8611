# %% [markdown]
# # In your own code
#
# The backbones are plain modules in timm's registry. So they go wherever a timm model goes: under a head of yours, into
# torchvision's detectors, segmentation_models_pytorch and the Hugging Face Hub. Lightning is needed
# only where a whole task is shared, at the end. The two trainings here are short ones on one CPU core: they show that
# it works, not how good it gets. `pip install -e '.[notebooks]'` brings the packages that are plugged into.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import segmentation_models_pytorch as smp
import skimage
import timm
import torch
from timm.models import save_for_hf
from timm.utils import random_seed
from torch import nn
from torch.nn import functional as F
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.functional.classification import multiclass_jaccard_index
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.utils import draw_bounding_boxes

import core  # importing it puts the backbones into timm's registry
from core.training.hub import from_pretrained, save_pretrained
from vision import ImageClassifier
from vision.demo import handwritten_digits, split_digits

random_seed(0)
small = {"depths": (1, 1, 2, 1), "dims": (24, 48, 96, 192), "layer_scale_init_value": 0.1}  # quicker than A itself

# %% [markdown]
# ## Under a head of your own
#
# `features_only=True` gives the maps of the stages that `out_indices` names, and `feature_info` says how many channels
# they have. Here a head reads two of them and gives one number for each eighth of the image's sides.


# %%
class Density(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = timm.create_model("unireplknet_a", features_only=True, out_indices=(1, 2), **small)
        fine, coarse = self.body.feature_info.channels()
        self.head = nn.Conv2d(fine + coarse, 1, kernel_size=1)

    def forward(self, x):
        fine, coarse = self.body(x)
        coarse = F.interpolate(coarse, size=fine.shape[2:])
        return self.head(torch.cat([fine, coarse], dim=1))


density = Density().eval()
print("strides", density.body.feature_info.reduction(), "channels", density.body.feature_info.channels())
x = torch.randn(2, 3, 96, 128)
with torch.no_grad():
    answer, after = density(x), core.reparameterize(density)(x)  # folds what it finds inside
print(tuple(answer.shape), f"folded differs by at most {(answer - after).abs().max():.0e}")

# %% [markdown]
# ## Large kernels in a net that you have
#
# `core.enlarge_kernels` returns a copy of a model whose depthwise kernels are large, each with a small branch that
# keeps the old weights and merges into the large kernel after training. By name, for YAML files, it is
# `lk_mobilenetv2_100` or `lk_resnet50`.

# %%
net = timm.create_model("mobilenetv2_100", num_classes=5).eval()
large = core.enlarge_kernels(net, 13, small_kernel=3)
folded = core.reparameterize(large)
for name, form in {"as it was": net, "enlarged": large, "folded": folded}.items():
    sizes = [m.kernel_size[0] for m in form.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    print(f"{name}: depthwise kernels", ", ".join(f"{sizes.count(k)} of {k}" for k in sorted(set(sizes))))
with torch.no_grad():
    before, after = large(x), folded(x)
print(f"logits of up to {before.abs().max():.0f} differ after folding by at most {(after - before).abs().max():.0e}")

# %% [markdown]
# ## Scenes to train on
#
# For the two trainings: a zero, one or two in a light color at each side of a crop of a photo. Segmentation gets label
# maps, 1 on ink and 0 on the photo; detection gets boxes x1, y1, x2, y2 with labels 1, 2 and 3, as torchvision wants
# them. Photos and digits of training and validation differ.

# %%
SIDE, CLASSES = 64, ("photo", "zero", "one", "two")
PHOTOS = {"train": skimage.data.coffee(), "val": skimage.data.chelsea()}
DIGITS, LABELS = handwritten_digits()


def draw_scenes(split, count):
    generator, photo = np.random.default_rng(0), PHOTOS[split]
    known = [index for index in split_digits()[split] if LABELS[index] < 3]
    images, maps, targets = [], torch.zeros(count, SIDE, SIDE, dtype=torch.int64), []
    for label_map in maps.numpy():
        top, left = (generator.integers(0, size - SIDE) for size in photo.shape[:2])
        image, boxes, labels = photo[top : top + SIDE, left : left + SIDE] / 255 * 0.6, [], []
        for x in (2, 34):
            index, y = generator.choice(known), generator.integers(0, SIDE - 28)
            place, ink = (slice(y, y + 28), slice(x, x + 28)), DIGITS[index][:, :, None] / 255
            image[place] = image[place] * (1 - ink) + generator.uniform(0.6, 1, size=3) * ink
            label_map[place][ink[:, :, 0] > 0.4] = 1
            rows, columns = np.nonzero(ink[:, :, 0] > 0.4)
            boxes.append([x + columns.min(), y + rows.min(), x + columns.max() + 1, y + rows.max() + 1])
            labels.append(LABELS[index] + 1)
        images.append(torch.from_numpy(image).float().permute(2, 0, 1))
        targets.append({"boxes": torch.tensor(np.array(boxes)).float(), "labels": torch.tensor(labels)})
    return torch.stack(images), maps, targets


train_images, train_maps, train_targets = draw_scenes("train", 256)
val_images, val_maps, val_targets = draw_scenes("val", 32)


def train(model, loss_of, steps, lr):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    losses = []
    model.train()
    for _ in range(steps):
        loss = loss_of(model, torch.randint(len(train_images), (6,)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def curve(losses):
    _, axes = plt.subplots(figsize=(5, 2), layout="constrained")
    axes.plot(losses)
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)


# %% [markdown]
# ## segmentation_models_pytorch
#
# Every backbone is an encoder there, by its name after `tu-`, with its arguments after that: Unet, FPN, UPerNet,
# DeepLabV3+ and PAN take it; the last two ask for a finer last map, `output_stride=16`. `encoder_weights=True`
# downloads the published weights; a file of your own goes to `core.load_weights(model.encoder.model, FILE)`. Pixels are
# normalized by the mean and std of the weights that one starts from, which the library knows too.

# %%
unet = smp.Unet("tu-unireplknet_a", encoder_weights=None, classes=2, **small)
normal = smp.encoders.get_preprocessing_params("tu-unireplknet_a")
mean, std = (torch.tensor(normal[name]).view(3, 1, 1) for name in ("mean", "std"))
dice = smp.losses.DiceLoss("multiclass")


def segmentation_loss(model, chosen):
    logits = model((train_images[chosen] - mean) / std)
    return F.cross_entropy(logits, train_maps[chosen]) + dice(logits, train_maps[chosen])


curve(train(unet, segmentation_loss, steps=25, lr=5e-3))
unet.eval()
folded = core.reparameterize(unet)
with torch.no_grad():
    logits, after = unet((val_images - mean) / std), folded((val_images - mean) / std)
masks = logits.argmax(dim=1)
nothing, unet_miou = (multiclass_jaccard_index(m, val_maps, num_classes=2) for m in (torch.zeros_like(masks), masks))
print(f"validation mIoU {unet_miou:.2f}; {nothing:.2f} for an answer without ink")
print(f"folded: logits differ by at most {(logits - after).abs().max():.0e}")

# %% [markdown]
# Images, true label maps, and what the Unet gives:

# %%
figure, panels = plt.subplots(3, 6, figsize=(9, 4.8), layout="constrained")
for row, (name, pictures) in zip(panels, {"image": val_images, "truth": val_maps, "Unet": masks}.items(), strict=True):
    row[0].set_ylabel(name)
    for panel, picture in zip(row, pictures, strict=False):
        shown = picture.permute(1, 2, 0) if picture.ndim == 3 else picture
        panel.imshow(shown, cmap="viridis", vmin=0, vmax=1)
        panel.set(xticks=[], yticks=[])

# %% [markdown]
# ## torchvision's detectors
#
# Faster R-CNN, Mask R-CNN, RetinaNet and FCOS take any module that gives a dictionary of maps and says in
# `out_channels` how many channels they have: a feature pyramid on the backbone's maps is one.


# %%
class Pyramid(nn.Module):
    def __init__(self, name, channels=64, **kwargs):
        super().__init__()
        self.body = timm.create_model(name, features_only=True, **kwargs)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, x):
        return self.fpn({str(i): level for i, level in enumerate(self.body(x))})


def detection_loss(model, chosen):
    return sum(model(list(train_images[chosen]), [train_targets[i] for i in chosen]).values())


anchors = AnchorGenerator(sizes=((8,), (16,), (24,), (48,)), aspect_ratios=((0.5, 1.0, 2.0),) * 4)
options = {"rpn_anchor_generator": anchors, "min_size": SIDE, "max_size": SIDE, "box_nms_thresh": 0.3}
options |= {"rpn_post_nms_top_n_train": 100, "rpn_post_nms_top_n_test": 50, "box_batch_size_per_image": 32}  # quicker
pyramid = Pyramid("unireplknet_a", out_indices=(0, 1, 2), **small)
detector = FasterRCNN(pyramid, num_classes=len(CLASSES), **options)
curve(train(detector, detection_loss, steps=40, lr=3e-3))

folded = core.reparameterize(detector.eval())
with torch.no_grad():
    found, after = detector(list(val_images)), folded(list(val_images))
metric = MeanAveragePrecision(iou_thresholds=[0.5])
metric.update(found, val_targets)
print(f"validation mAP50 {metric.compute()['map_50']:.2f}")
before, after = (torch.cat([image["boxes"] for image in images]) for images in (found, after))
print(f"folded: {len(before)} boxes differ by at most {(before - after).abs().max():.0e} pixels")

# %% [markdown]
# The two surest boxes of each image, titled with their classes and scores. A digit has two boxes where the detector
# wavers between two classes.

# %%
figure, panels = plt.subplots(1, 6, figsize=(10, 2), layout="constrained")
for panel, image, boxes in zip(panels, val_images, found, strict=False):
    panel.imshow(draw_bounding_boxes(image, boxes["boxes"][:2], colors="yellow").permute(1, 2, 0))
    labels, scores = boxes["labels"][:2].tolist(), boxes["scores"][:2].tolist()
    panel.set_title(", ".join(f"{CLASSES[k]} {s:.2f}" for k, s in zip(labels, scores, strict=True)), fontsize=8)
    panel.axis("off")

# %% [markdown]
# ## The Hugging Face Hub
#
# Backbones are shared as timm shares them, with depths, widths and kernels, folded or not. Here they go to a folder;
# `timm.models.push_to_hf_hub(net, "OWNER/NAME")` uploads the same, and `hf-hub:OWNER/NAME` loads it. A task of
# LarKit, with its class names and its statistics, goes through `core.training.hub`, and to the Hub with
# `push_to_hub(task, "OWNER/NAME")` or the command `lightning push`.

# %%
net = core.reparameterize(timm.create_model("unireplknet_a", num_classes=3, **small).eval())
task = ImageClassifier("unireplknet_a", num_classes=3, backbone_args=small).eval()
with tempfile.TemporaryDirectory() as folder:
    save_for_hf(net, f"{folder}/net", safe_serialization=True)
    same_net = timm.create_model(f"local-dir:{folder}/net", pretrained=True).eval()
    same_task = from_pretrained(save_pretrained(task, Path(folder, "task")))
    print("backbone:", ", ".join(sorted(path.name for path in Path(folder, "net").iterdir())))
    print("task:", ", ".join(sorted(path.name for path in Path(folder, "task").iterdir())))
with torch.no_grad():
    print(f"backbone: logits differ by at most {(net(x) - same_net(x)).abs().max():.0e}")
    print(f"task: logits differ by at most {(task(x) - same_task(x)).abs().max():.0e}")

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Segmentation with segmentation_models_pytorch
#
# LarKit's backbones are in timm's registry, and `segmentation_models_pytorch` takes any of timm's models as an encoder
# under the prefix `tu-`. Nothing of OpenMMLab is needed: `pip install segmentation-models-pytorch` beside LarKit.
# This trains two decoders on digits drawn over photos, on one CPU core within a minute.

# %%
import argparse
import tempfile
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import skimage
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_jaccard_index

import core  # importing it puts the backbones into timm's registry
from vision.digits import handwritten_digits, split_digits

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=50, help="training steps; DeepLabV3+ has twice as many")
parser.add_argument("--picture", type=Path, help="PNG to be written: image, truth, prediction")
args, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own
torch.manual_seed(0)

# %% [markdown]
# ## Data
#
# Two zeros, ones or twos in a light colour on a crop of a photo; the label map is 0 on the photo and 1, 2, 3 on ink.
# Photos and digits of training and validation differ.

# %%
SIDE, CLASSES = 64, ("photo", "zero", "one", "two")
DIGITS, LABELS = handwritten_digits()
PHOTOS = {"train": skimage.data.coffee(), "val": skimage.data.chelsea()}


def draw_scenes(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 64, 64) float32 in [0, 1] and label maps (N, 64, 64) int64, always the same."""
    generator, photo = np.random.default_rng(0), PHOTOS[split]
    known = [index for index in split_digits()[split] if LABELS[index] < 3]
    images, maps = np.empty((count, SIDE, SIDE, 3), np.float32), np.zeros((count, SIDE, SIDE), np.int64)
    for image, labels in zip(images, maps, strict=True):
        top, left = (generator.integers(0, size - SIDE) for size in photo.shape[:2])
        image[:] = photo[top : top + SIDE, left : left + SIDE] / 255 * 0.6
        for x in (2, 34):
            index, y = generator.choice(known), generator.integers(0, SIDE - 28)
            ink = DIGITS[index][:, :, None] / 255
            place = (slice(y, y + 28), slice(x, x + 28))
            image[place] = image[place] * (1 - ink) + generator.uniform(0.6, 1, size=3) * ink
            labels[place][ink[:, :, 0] > 0.4] = LABELS[index] + 1
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(maps)


train_images, train_maps = draw_scenes("train", 256)
val_images, val_maps = draw_scenes("val", 64)

# %% [markdown]
# ## Training
#
# Any name of `timm.list_models("*replknet*")` goes after `tu-`, and any argument of the backbone after that. The
# images' pixels are normalised with the mean and std of the weights that one starts from.

# %%
normal = smp.encoders.get_preprocessing_params("tu-unireplknet_a")
mean, std = (torch.tensor(normal[name]).view(3, 1, 1) for name in ("mean", "std"))


def train(model: nn.Module, steps: int, batch: int = 8) -> list[float]:
    """Cross-entropy plus Dice loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    dice, losses = smp.losses.DiceLoss("multiclass"), []
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(train_images), (batch,))
        logits = model((train_images[chosen] - mean) / std)
        loss = F.cross_entropy(logits, train_maps[chosen]) + dice(logits, train_maps[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def predict(model: nn.Module) -> Tensor:
    """Logits (64, 4, 64, 64) of the validation images."""
    return model.eval()((val_images - mean) / std)


def report(name: str, losses: list[float], logits: Tensor) -> None:
    """Print how the loss fell and the mean over classes of intersection over union."""
    miou = multiclass_jaccard_index(logits.argmax(dim=1), val_maps, num_classes=len(CLASSES))
    print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}, validation mIoU {miou:.3f}")


# %%
unet = smp.Unet("tu-unireplknet_a", encoder_weights=None, classes=len(CLASSES))
losses = train(unet, args.steps)
logits = predict(unet)
report("Unet", losses, logits)

# %% [markdown]
# DeepLabV3+ wants a finer last map: it asks the backbone for `output_stride=16`, and the last stage's stride becomes a
# dilation. A backbone of one's own, here a small RepLKNet, is made with arguments:

# %%
own = {"depths": (1, 1, 2, 1), "dims": (24, 48, 96, 192), "kernel_sizes": (13, 11, 9, 7)}
deeplab = smp.DeepLabV3Plus("tu-replknet_31b", encoder_weights=None, classes=len(CLASSES), **own)
report("DeepLabV3Plus", train(deeplab, 2 * args.steps), predict(deeplab))

# %% [markdown]
# ## Inference form
#
# `core.reparameterize` folds the backbone inside the model: fewer layers, same label maps.

# %%
folded = core.reparameterize(unet)
parts = [sum(1 for _ in model.encoder.modules()) for model in (unet, folded)]
difference = (predict(folded) - logits).abs().max()
print(f"folded: {parts[0]} -> {parts[1]} modules in the encoder, logits differ by at most {difference:.1e}")

# %% [markdown]
# ## Weights
#
# `encoder_weights=True` downloads the weights that timm's tag names: `tu-unireplknet_s` takes the first one,
# `tu-unireplknet_s.in22k` another. A file, the official one or a `best.ckpt` of `lightning fit`, goes to
# `core.load_weights(model.encoder.model, FILE)`. Here the file is a classifier that was saved a moment ago.

# %%
classifier = timm.create_model("unireplknet_a", num_classes=10)
with tempfile.TemporaryDirectory() as folder:
    torch.save(classifier.state_dict(), Path(folder, "weights.pth"))
    core.load_weights(unet.encoder.model, Path(folder, "weights.pth"))
kept = {name.removeprefix("model."): tensor for name, tensor in unet.encoder.model.state_dict().items()}
same = all(torch.equal(tensor, classifier.state_dict()[name]) for name, tensor in kept.items())
print(f"encoder holds the file's weights: {same}")

# %%
if args.picture:
    truth, found = (maps[:8, None].repeat(1, 3, 1, 1) / 3 for maps in (val_maps, logits.argmax(dim=1)))
    rows = torch.cat([torch.cat(list(part), dim=2) for part in (val_images[:8], truth, found)], dim=1)
    skimage.io.imsave(args.picture, (rows.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))

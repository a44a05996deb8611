# %% [markdown]
# # Two modalities, one backbone
#
# Once a signal is a map, the network does not know where it came from. Here one trunk learns two at once: handwritten
# digits, and spoken digits as log-mel maps. Then it begins a third task, digits as clouds of points, and is compared
# with a trunk that begins from nothing. What that is worth is printed at the end. The words need
# `pip install -e '.[speech]'`.

# %%
import copy
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import timm
import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import CombinedLoader
from matplotlib import pyplot as plt
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import core  # noqa: F401  importing it puts the backbones into timm's registry
from audio import SpokenWords
from pointcloud import DigitClouds
from pointcloud.feature_map import unit_sphere
from pointcloud.views import pixels
from vision import Digits
from vision.feature_map import PixelMap

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # the page shows what the cells print, and no hints
warnings.simplefilter("ignore")
seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Three kinds of maps
#
# The data sets are so small that all maps are held in memory, with one channel each. Pixels and waveforms come from
# the data modules of their modality, and the modality's feature map turns them into maps.

# %%
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
numbers = {"num_mels": 40, "frame_shift": 15.0, "target_length": 64, "mean": -5.1461, "std": 3.603}
modules = {
    "image": Digits(num_workers=0),
    "sound": SpokenWords(str(folder / "words"), words=NAMES, num_workers=0, **numbers),
}


feature_maps = {
    "image": PixelMap(modules["image"].mean, modules["image"].std),
    "sound": modules["sound"].settings().feature_map(),
}


def maps(name, loader):
    """All maps of a loader (N, 1, H, W), and their labels (N,)."""
    x, y = [], []
    for raw, labels in loader:
        arguments = raw if isinstance(raw, tuple) else (raw,)
        x.append(feature_maps[name](*arguments))
        y.append(labels)
    return torch.cat(x), torch.cat(y)


train, held_out = {}, {}
for name, data in modules.items():
    data.prepare_data()
    data.setup("fit")
    train[name] = maps(name, data.train_dataloader())
    held_out[name] = maps(name, data.val_dataloader())

# %% [markdown]
# The third is a depth map, made in a few lines: the pixel that a point falls on, as `pointcloud.views` has it, keeps
# how near the nearest point is. 20 clouds of each digit train.


# %%
def depth_maps(clouds, side=32):
    """Clouds (N, P, 3) seen from the front, as maps (N, 1, side, side)."""
    x, y, z = unit_sphere(clouds).unbind(dim=2)
    seen = torch.stack([-y, x, -z], dim=2)  # rows down, columns to the right
    place = pixels(seen, side)
    nearness = seen[..., 2] - seen[..., 2].amin(dim=1, keepdim=True) + 1
    empty = torch.zeros(len(clouds), side * side)
    picture = empty.scatter_reduce(1, place[..., 0] * side + place[..., 1], nearness, "amax")
    return (picture.view(-1, 1, side, side) - 0.3) / 0.6


modules["cloud"] = DigitClouds(shots=20, num_workers=0)
modules["cloud"].setup("fit")
for part, dataset in ((train, modules["cloud"].train_set), (held_out, modules["cloud"].val_set)):
    clouds, labels = zip(*dataset, strict=True)
    part["cloud"] = depth_maps(torch.stack(clouds)), torch.tensor(labels)

figure, panels = plt.subplots(3, 6, figsize=(9, 4.4), layout="constrained")
for row, (name, (x, y)) in zip(panels, held_out.items(), strict=True):
    for panel, digit in zip(row, (0, 1, 3, 5, 7, 9), strict=True):
        index = (y == digit).nonzero()[0, 0]
        panel.imshow(x[index, 0].flip(0) if name == "sound" else x[index, 0], cmap="magma")
        panel.set(title=f"{name}: {NAMES[digit]}", xticks=[], yticks=[])
plt.show()
for name, (x, _) in train.items():
    print(f"{name}: {len(x)} maps of {tuple(x.shape[1:])} train, {len(held_out[name][0])} are held out")

# %% [markdown]
# ## One trunk, a head for each modality
#
# A `LightningModule` of one's own: the trunk is an ordinary timm model without classifier, which takes maps of any
# size. A step sees a batch of each modality, from Lightning's `CombinedLoader`, and adds their losses.


# %%
class Modalities(LightningModule):
    """A trunk and a linear head for each modality."""

    def __init__(self, names, trunk=None):
        super().__init__()
        small = {"depths": (1, 1, 1, 1), "dims": (24, 48, 96, 192), "layer_scale_init_value": 0.1}
        self.trunk = trunk or timm.create_model("unireplknet_a", in_chans=1, num_classes=0, **small)
        self.heads = nn.ModuleDict({name: nn.Linear(self.trunk.num_features, 10) for name in names})

    def forward(self, name, x):
        return self.heads[name](self.trunk(x))

    def training_step(self, batch, batch_idx):
        return sum(F.cross_entropy(self(name, x), y) for name, (x, y) in batch.items())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(names, steps, trunk=None):
    """Train, with the same order of the samples each time; gives the trained model."""
    seed_everything(0, verbose=False)
    model = Modalities(names, trunk)
    loaders = {n: DataLoader(TensorDataset(*train[n]), batch_size=30, shuffle=True, drop_last=True) for n in names}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_steps=steps, max_epochs=-1, logger=False, **quiet)
    trainer.fit(model, CombinedLoader(loaders, "max_size_cycle"))
    return model.eval()


@torch.no_grad()
def accuracy(model, name):
    """Share of the held-out maps that the model gets right."""
    x, y = held_out[name]
    return (model(name, x).argmax(dim=1) == y).float().mean().item()


joint = fit(["image", "sound"], steps=70)
print({name: round(accuracy(joint, name), 3) for name in ("image", "sound")})

# %% [markdown]
# ## Transfer to clouds
#
# Few steps on few clouds, once from the joint trunk and once from random weights: the same clouds in the same order,
# the same number of steps. The trunk has seen ink and sound, and no cloud.

# %%
x, y = train["cloud"]
print(f"accuracy on {len(held_out['cloud'][0])} other clouds after 10 steps")
for shots in (3, 20):
    few = torch.cat([(y == digit).nonzero()[:shots, 0] for digit in range(10)])
    train["cloud"] = x[few], y[few]
    begun = fit(["cloud"], 10, copy.deepcopy(joint.trunk)), fit(["cloud"], 10)
    trunk, scratch = (accuracy(model, "cloud") for model in begun)
    print(f"{shots} clouds of each digit: {trunk:.3f} from the joint trunk, {scratch:.3f} from random weights")

# %% [markdown]
# What a trunk brings along counts most where there is little to learn from, if it counts at all. Seen from the front
# a cloud of a digit looks like the digit, so that this is an easy case, and one run is no measurement. The way is
# the same for real ones: weights of images go into a video or point-cloud task with `--model.weights FILE` or
# `--model.pretrained true`.

# %%
shutil.rmtree(folder)

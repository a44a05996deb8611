# %% [markdown]
# # Detection and segmentation: the backbone in OpenMMLab
#
# MMDetection and MMSegmentation build their models from configs, and LarKit's backbones are one line in them. The
# models run in OpenMMLab's own scripts, or here, in Lightning's loops. This needs `pip install -e '.[openmmlab]'`;
# nothing is compiled.
#
# The scenes are handwritten digits over photos, drawn into a temporary folder.

# %%
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from matplotlib import pyplot as plt
from PIL import Image

import core
from vision.openmmlab.config_files import read_config
from vision.openmmlab.demo import DigitScenes, draw_scenes
from vision.openmmlab.detector import Detector
from vision.openmmlab.segmenter import Segmenter

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # the page shows what the cells print, and no hints
warnings.simplefilter("ignore")
seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## One line in a config
#
# `custom_imports` registers the backbones, and the neck reads their four maps. `read_config` reads a file of
# `vision/openmmlab/configs` or one of yours, and replaces values by their dotted names, here the depths.

# %%
NAME = "upernet_unireplknet_a_digit_scenes.py"
smaller = {"model.backbone.depths": (1, 1, 1, 1)}
config = read_config(NAME, smaller)
print(config.custom_imports)
print(config.model.backbone)

# %% [markdown]
# ## The scenes
#
# `draw_scenes` writes images, COCO annotations with boxes and masks, and label maps. The same files serve both
# packages, and yours are read in the same way. In a label map 0 is the photo and 1 + d the digit d.

# %%
draw_scenes(folder / "scenes", {"train": 160, "val": 4, "test": 12})
files = sorted((folder / "scenes" / "images" / "train").glob("*.png"))[:5]
figure, axes = plt.subplots(2, 5, figsize=(8, 3.4), layout="constrained")
for file, (above, below) in zip(files, axes.T, strict=True):
    above.imshow(Image.open(file))
    below.imshow(Image.open(folder / "scenes" / "labels" / "train" / file.name), cmap="tab20", vmin=0, vmax=10)
    for panel in (above, below):
        panel.axis("off")
figure.suptitle("images of 96 x 96 pixels, and their label maps")
plt.show()

# %% [markdown]
# ## Some steps of a segmentor
#
# UPerNet as `Segmenter`: MMSegmentation's model and loss, LarKit's optimizer, schedule and pictures. **Twenty steps
# are too few to tell ten digits apart**; the cells below show that everything runs. The same config with its own
# depths, `lightning fit -c vision/configs/digits_seg.yaml`, was measured by us on two cores: 4 min 4 s, mean IoU 0.550
# (validation) and 0.488 (test), before training 0.007 and 0.004.

# %%
options = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
data = DigitScenes(NAME, root=str(folder / "scenes"), batch_size=8, num_workers=0)
task = Segmenter(NAME, options=smaller, lr=4e-3, warmup_epochs=0.3)
task.examples.size = 2
trainer = Trainer(max_epochs=1, limit_val_batches=0, gradient_clip_val=5.0, logger=CSVLogger(folder), **options)
trainer.fit(task, datamodule=data)
(measured,) = trainer.test(task, datamodule=data, verbose=False)
print({name: round(value, 3) for name, value in measured.items()})

# %% [markdown]
# The sheet of examples in the run folder shows the truth and beside it the prediction.

# %%
Image.open(Path(trainer.log_dir) / "examples.png")

# %% [markdown]
# ## Pixels in, label maps out
#
# The task needs nothing but images: uint8, or float in [0, 1]. They pass through the test pipeline of the config, and
# the answer has the size of the image. `task.predict` reads files, folders and arrays, and names the classes.

# %%
tests = sorted((folder / "scenes" / "images" / "test").glob("*.png"))[:8]
pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in tests])
with torch.no_grad():
    found = task.eval()(pixels / 255)
print(tuple(pixels.shape), "->", len(found), "label maps of", tuple(found[0].pred_sem_seg.data.shape))

(row,) = task.predict(tests[0])
print({name: round(share, 3) for name, share in zip(row["classes"], row["shares"], strict=True)})

# %% [markdown]
# ## Folding
#
# `core.reparameterize` finds the backbone's blocks inside the whole model. Branches and norms become single
# convolutions; the logits differ by rounding alone.

# %%
folded = core.reparameterize(task)
with torch.no_grad():
    pairs = list(zip(task(pixels), folded(pixels), strict=True))
difference = max((a.seg_logits.data - b.seg_logits.data).abs().max().item() for a, b in pairs)
largest = max(a.seg_logits.data.abs().max().item() for a, _ in pairs)
modules = [sum(1 for _ in model.backbone.modules()) for model in (task, folded)]
print(f"modules of the backbone: {modules[0]} -> {modules[1]}")
print(f"logits of up to {largest:.1f} differ by at most {difference:.0e}")

# %% [markdown]
# ## A detector
#
# Mask R-CNN as `Detector`, on the same scenes. The config's other lines are MMDetection's own: neck, heads,
# assigners. Ten steps here; `lightning fit -c vision/configs/digits_det.yaml` takes 4 min 28 s on two cores, with mAP50
# 0.873 of boxes and 0.814 of masks in validation, 0.806 and 0.726 in test (measured by us; before training 0.001 at
# most).

# %%
MASK_RCNN = "mask_rcnn_unireplknet_a_digit_scenes.py"
detector = Detector(MASK_RCNN, options=smaller, lr=1e-3)
scenes = DigitScenes(MASK_RCNN, root=str(folder / "scenes"), batch_size=8, num_workers=0)
trainer = Trainer(max_epochs=1, limit_train_batches=10, limit_val_batches=0, logger=CSVLogger(folder), **options)
trainer.fit(detector, datamodule=scenes)
losses = {name: round(value.item(), 2) for name, value in trainer.callback_metrics.items() if "loss" in name}
print(losses)

# %% [markdown]
# Folded, it finds the same objects in the same places.

# %%
detector.eval()
with torch.no_grad():
    pairs = list(zip(detector(pixels), core.reparameterize(detector)(pixels), strict=True))
counts = [sum(len(found.pred_instances) for found in side) for side in zip(*pairs, strict=True)]
print(f"objects in {len(pairs)} scenes, at any score above 0.05: {counts[0]} before and {counts[1]} after")
for one, other in pairs[:3]:
    best = [found.pred_instances for found in (one, other)]
    print(
        *(f"{objects.scores[0]:.4f} at {objects.bboxes[0].round().tolist()}" for objects in best if len(objects)),
        sep=" | ",
    )

# %% [markdown]
# Both packages' own training scripts run the same configs: `vision/README.md` has the commands, the papers' configs,
# and what `lightning predict` writes.

# %%
shutil.rmtree(folder)

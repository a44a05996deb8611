# %% [markdown]
# # Video: a clip becomes one large image
#
# Frames laid side by side are one image, and a net for images can read it: nothing in the net knows of time. What
# moves from frame to frame is then a pattern across the image.
#
# The clips are rendered: a camera moves over photos that come with packages. Nothing is downloaded.

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
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, TensorDataset

from video import CameraMoves, VideoClassifier, clip_to_map
from video.decoding import VideoFile
from video.demo import render_moves

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # the page shows what the cells print, and no hints
warnings.simplefilter("ignore")
seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## From a file to a map
#
# Three moves are rendered as mp4 files, in class folders like those of your own videos. Each split has photos of its
# own.

# %%
render_moves(folder / "moves", {"train": 8, "val": 1, "test": 8}, ["pan_left", "pan_right", "still"])
files = sorted((folder / "moves" / "test").glob("*/*.mp4"))
with VideoFile(files[0]) as clip:
    frames = torch.from_numpy(clip.read(np.arange(len(clip)))).permute(0, 3, 1, 2)
print(f"{files[0].relative_to(folder)}: frames {tuple(frames.shape)} of {frames.dtype}")

# %% [markdown]
# Sixteen of its frames in both layouts. `grid`, that of the paper's text, puts whole frames side by side. `strip`,
# that of the released code, cuts them into their scan lines. With small frames and a single row, each frame becomes
# one line of the map (here every fourth pixel of a frame is kept, 16 x 16). The same place a moment later is then
# right below it: what stands still makes vertical lines, and what moves makes slanted ones.

# %%
grid = clip_to_map(frames[None, ::2], "grid")[0]
strip = clip_to_map(frames[None, ::2, :, ::4, ::4], "strip", rows=1)[0]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(1, 2), layout="constrained")
left.imshow(grid.permute(1, 2, 0))
left.set(title="grid", xlabel="pixel", ylabel="pixel")
right.imshow(strip.permute(1, 2, 0), aspect="auto", interpolation="nearest")
right.set(title="strip, one row", xlabel="pixel of the frame, line after line", ylabel="frame")
plt.show()

# %% [markdown]
# ## Training
#
# Decoding takes longer here than the small net needs. So each clip is decoded once, with a random crop, and the frames
# are kept. A longer run gives the data module itself to the trainer and sees another window and crop each time.
#
# The task learns from the data module's `spec()` what its data are: the names of the classes, the mean and standard
# deviation of the pixels, and how clips are sampled. It normalizes the frames and lays them out itself.

# %%
data = CameraMoves(str(folder / "moves"), size=16, batch_size=24, num_workers=0)
data.setup("fit")
clips, labels = (torch.cat(part) for part in zip(*data.train_dataloader(), strict=True))
print(f"clips {tuple(clips.shape)} of {clips.dtype}, classes {', '.join(data.spec().classes)}")

task = VideoClassifier(
    "unireplknet_a",
    spec=data.spec(),
    layout="strip",
    rows=1,
    backbone_args={"depths": (1, 1), "dims": (24, 48), "kernel_sizes": (7, 13), "layer_scale_init_value": 0.1},
    lr=4e-3,
    warmup_epochs=1,
)
trainer = Trainer(
    max_epochs=15,
    logger=CSVLogger(folder),
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(task, DataLoader(TensorDataset(clips, labels), batch_size=24, shuffle=True, drop_last=True))
task.examples.size = 8  # of the sheet below
(measured,) = trainer.test(task, datamodule=data, verbose=False)
print(f"accuracy on other photos: {measured['test_acc']:.3f}, chance {1 / 3:.3f}")

# %% [markdown]
# One frame says nothing about a move: halfway through, the clips of all classes look alike. Logistic regression on the
# middle frame can memorize the training photos, and stays near chance on others.

# %%
test_clips, truth = (torch.cat(part) for part in zip(*data.test_dataloader(), strict=True))
middle, test_middle = clips[:, 8].flatten(1) / 255, test_clips[:, 8].flatten(1) / 255
frame = LogisticRegression(C=2, max_iter=300).fit(middle, labels)
print(f"one frame: training {frame.score(middle, labels):.3f}, test {frame.score(test_middle, truth):.3f}")

# %% [markdown]
# Some test clips, 16 frames of 16 x 16 pixels each, with the predicted move and its probability. Wrong predictions are
# red, with the true move in brackets.

# %%
run = Path(trainer.log_dir)
Image.open(run / "examples.png").convert("RGB").quantize(64)

# %% [markdown]
# The confusion matrix shows which moves are taken for which.

# %%
Image.open(run / "confusion_matrix.png")

# %% [markdown]
# ## A file of your own
#
# `predict` takes mp4, mkv, webm and what else FFmpeg reads, of any size, rate and length; a test clip stands in for
# one. It also takes a folder, a list, or an array of frames.

# %%
(answer,) = task.predict(files[0])
print(f"{answer['class']}, probability {answer['probability']:.2f}; the file is {files[0].relative_to(folder)}")

# %% [markdown]
# All eight moves and a larger net take minutes: `lightning fit -c video/configs/cls.yaml`. For class folders of your
# own videos (`video/README.md` has the rest):
#
#     lightning fit -c video/configs/folder.yaml --data.root videos --model.pretrained true
#     lightning predict --ckpt_path best --data.predict_path clip.mp4

# %%
shutil.rmtree(folder)

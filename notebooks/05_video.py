# %% [markdown]
# # Video: a clip becomes one large image
#
# Frames laid side by side are one image, and a net for images reads it: nothing in the net knows of time. What moves
# from frame to frame is then a pattern across the image.
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
from video.camera_moves import render_moves
from video.decoding import VideoFile

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # the page shows what the cells print, and no hints
warnings.simplefilter("ignore")
seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## From a file to a map
#
# Three moves are rendered as mp4 files, in class folders as yours would be. The photos of the splits differ.

# %%
render_moves(folder / "moves", {"train": 8, "val": 1, "test": 8}, ["pan_left", "pan_right", "still"])
files = sorted((folder / "moves" / "test").glob("*/*.mp4"))
with VideoFile(files[0]) as clip:
    frames = torch.from_numpy(clip.read(np.arange(len(clip)))).permute(0, 3, 1, 2)
print(f"{files[0].relative_to(folder)}: frames {tuple(frames.shape)} of {frames.dtype}")

# %% [markdown]
# Sixteen of its frames in both layouts. `grid`, that of the paper's text, puts whole frames side by side. `strip`,
# that of the released code, cuts them into their scan lines. With small frames and a single row it makes a frame one
# line of the map (here every fourth pixel of a frame is kept, 16 x 16), so that the same place a moment later is
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
# Decoding takes longer here than the small net needs, so that each clip is decoded once, with a random crop, and the
# clips are kept. A longer run gives the data module itself to the trainer and sees another window and crop each
# time.

# %%
data = CameraMoves(str(folder / "moves"), size=16, batch_size=24, num_workers=0)
data.setup("fit")
kept = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
clips, labels = (torch.cat(part) for part in zip(*kept, strict=True))
print(f"clips {tuple(clips.shape)} of {', '.join(data.classes)}")

task = VideoClassifier(
    "unireplknet_a",
    num_classes=3,
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
# One frame says nothing about a move: halfway through, the clips of all classes are drawn alike. Logistic regression
# on the middle frame can learn the training photos by heart, and stays near chance on others.

# %%
tested = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
asked, truth = (torch.cat(part) for part in zip(*tested, strict=True))
frame = LogisticRegression(C=0.1, max_iter=300).fit(clips[:, 8].flatten(1), labels)
print(f"one frame: training {frame.score(clips[:, 8].flatten(1), labels):.3f}, test", end=" ")
print(f"{frame.score(asked[:, 8].flatten(1), truth):.3f}")

# %% [markdown]
# Some test clips, 16 frames of 16 x 16 pixels each, with the answer and its probability. Wrong ones are red, with
# the true move in brackets.

# %%
run = Path(trainer.log_dir)
Image.open(run / "examples.png").convert("RGB").quantize(64)

# %% [markdown]
# And which moves are taken for which.

# %%
Image.open(run / "confusion_matrix.png")

# %% [markdown]
# ## A file of your own
#
# `predict` takes mp4, mkv, webm and what else FFmpeg reads, of any size, rate and length; a test clip stands in for
# one.

# %%
asked = CameraMoves(str(folder / "moves"), size=16, num_workers=0, predict_path=str(files[0]))
(answer,) = trainer.predict(task, datamodule=asked)
print(f"{answer['class'][0]}, probability {answer['probability'][0]:.2f}; the file is {files[0].relative_to(folder)}")

# %% [markdown]
# All eight moves and a larger net take minutes: `lightning fit -c video/configs/cls.yaml`. Your own class folders of
# videos (`video/README.md` has the rest):
#
#     lightning fit -c video/configs/folder.yaml --data.root videos --model.num_classes 2 --model.pretrained true
#     lightning predict -c video/configs/folder.yaml --data.predict_path videos --ckpt_path best

# %%
shutil.rmtree(folder)

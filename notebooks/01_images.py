# %% [markdown]
# # Images
#
# From an image file to a map, a trained classifier, its pictures, and a folder to share. The digits are real
# handwriting of 28 x 28 pixels that comes with a package. One CPU core trains this small net and draws its pictures in
# about twenty seconds; `lightning fit -c vision/configs/cls.yaml` trains a larger one for longer, to a higher accuracy.

# %%
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import Image as Picture
from IPython.display import display
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

import core
from core.data.images import read_image
from core.training import LearningCurves
from core.training.hub import from_pretrained, save_pretrained
from vision import Digits, ImageClassifier
from vision.augment import eval_transform, train_transform
from vision.demo import handwritten_digits, split_digits
from vision.feature_map import PixelMap

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # else it says which accelerators there are
warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the digits are in memory and need none
warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own use of a torch API that was renamed
seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## From a file to a map
#
# Three digits of the test split are written as PNG files, as yours would be. `eval_transform` resizes an image to
# pixels; `train_transform` cuts out another part each time, which is all the augmentation that digits need. The feature
# map, the first step of every task, normalizes pixels by the mean and standard deviation of the training data.

# %%
images, labels = handwritten_digits()
for index in split_digits()["test"][[3, 5, 8]]:
    Image.fromarray(images[index]).save(folder / f"a_{labels[index]}.png")
files = sorted(folder.glob("*.png"))

evaluated = eval_transform(32, crop="squash")
augmented = train_transform(32, mean=(0.1307,), scale=(0.6, 1.0), hflip=0.0, auto_augment=None)
image = read_image(files[1], "L")
pixels = evaluated(image)
feature_map = PixelMap(mean=(0.1307,), std=(0.3081,))
map_ = feature_map(pixels[None])
print(f"{image.size} pixels become a map {tuple(map_.shape)} from {map_.min():.2f} to {map_.max():.2f}")

figure, panels = plt.subplots(1, 6, figsize=(9, 1.9), layout="constrained")
shown = [pixels, *(augmented(image) for _ in range(4))]
titles = ["for evaluation"] + ["for training"] * 4
panels[0].imshow(image, cmap="gray")
panels[0].set_title("the file")
for panel, one, title in zip(panels[1:], shown, titles, strict=True):
    panel.imshow(one[0], cmap="gray")
    panel.set_title(title)
for panel in panels:
    panel.axis("off")

# %% [markdown]
# ## Training
#
# A data module describes its data in `spec()`: class names, size, mean and standard deviation. The task builds its
# feature map and its classifier from it; the trainer is Lightning's own. The backbone is UniRepLKNet-A made narrower
# and shallower. Each epoch is 32 batches of 50 digits.

# %%
data = Digits(batch_size=50, num_workers=0)
task = ImageClassifier(
    "unireplknet_a",
    spec=data.spec(),
    backbone_args={"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128), "layer_scale_init_value": 0.1},
    lr=3e-3,
    warmup_epochs=1,
)
trainer = Trainer(
    max_epochs=4,
    limit_train_batches=32,
    accelerator="cpu",
    logger=CSVLogger(folder, name="run"),
    callbacks=[LearningCurves()],
    log_every_n_steps=32,
    num_sanity_val_steps=0,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(task, datamodule=data)
[measured] = trainer.test(task, datamodule=data, verbose=False)
print(f"right on {measured['test_acc']:.1%} of 1,000 test digits")

# %% [markdown]
# ## The pictures of a run
#
# They are in the run's folder, here a temporary one. Learning curves first: loss, accuracy and top-5 accuracy after
# each epoch, on 500 digits that are not trained on. The training loss stays above the validation loss because it alone
# has label smoothing and random crops.

# %%
run = Path(trainer.logger.log_dir)
display(Picture(run / "learning_curves.png", width=900))

# %% [markdown]
# The confusion matrix of the test split: rows are the true digits, columns the answers.

# %%
display(Picture(run / "confusion_matrix.png", width=480))

# %% [markdown]
# And 32 test digits with the answers and their probabilities; wrong ones are red, with the true digit in brackets.

# %%
display(Picture(run / "examples.png", width=800))

# %% [markdown]
# ## Prediction
#
# The task knows how its images were prepared, so it reads files, folders and arrays by itself; the command
# `lightning predict` writes the same rows into a CSV file.

# %%
for row in task.predict(files):
    print(f"{Path(row['file']).name} is a {row['class']}, with probability {row['probability']:.2f}")

# %% [markdown]
# ## Share it
#
# `save_pretrained` writes weights as safetensors, settings as JSON and a model card; `push_to_hub` uploads the same to
# the Hugging Face Hub. `from_pretrained` builds the task again, with all that it knows of its data, and runs no code of
# the folder. Raw pixels go in.

# %%
shared = save_pretrained(task, folder / "shared", metrics=measured)
for file in sorted(shared.iterdir()):
    print(f"{file.name}: {file.stat().st_size / 1e3:,.0f} kB")

again = from_pretrained(shared)
pixels = torch.stack([evaluated(read_image(file, "L")) for file in files])
with torch.no_grad():
    logits, same = task.eval()(pixels), again(pixels)
print("answers:", [again.class_names[i] for i in same.argmax(dim=1)], "for", [file.name for file in files])
print(f"logits differ by at most {(logits - same).abs().max():.0e}; it knows {again.spec}")

# %% [markdown]
# ## Fold it
#
# For use, and never before training is over, the branches and norms fold into single kernels. `lightning export` does
# that too and writes ONNX or a `.pt2` file, whose outputs it compares with the model's.

# %%
folded = core.reparameterize(again)
with torch.no_grad():
    print(f"logits of up to {same.abs().max():.1f} differ by at most {(folded(pixels) - same).abs().max():.0e}")
counts = [len(list(form.backbone.modules())) for form in (again, folded)]
print(f"modules in the backbone: {counts[0]} -> {counts[1]}")
shutil.rmtree(folder)

# %% [markdown]
# # Sound: a recording becomes a log-mel map
#
# A recording is a long row of numbers. Cut into short overlapping frames, with the energy of each frame sorted into
# bands of frequency, it becomes a picture: time runs to the right, pitch upwards. A net for images reads it.
#
# Here a speech synthesizer says the ten digits, which needs `pip install -e '.[speech]'` and no download. Everything
# is written into a temporary folder.

# %%
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import soundfile
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.linear_model import LogisticRegression

from audio import AudioClassifier, SpokenWords
from audio.files import read_wave, resample_wave

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # the page shows what the cells print, and no hints
warnings.simplefilter("ignore")
seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## From a file to a map
#
# `SpokenWords` speaks each word in 104 voices and writes wav files in the layout of Speech Commands. The split is by
# voice: those that validate and test are not heard in training. The map's numbers are those of
# `audio/configs/cls.yaml`: 40 bands, 64 frames, one every 15 milliseconds.

# %%
data = SpokenWords(
    str(folder / "words"),
    words=["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    num_mels=40,
    frame_shift=15.0,
    target_length=64,
    batch_size=32,
    num_workers=0,
)
data.setup("fit")
print(
    *(f"{len(part)} recordings {verb}" for part, verb in ((data.train_set, "train"), (data.test_set, "test"))), sep=", "
)

# %% [markdown]
# What a model must know of the data is their specification: the classes, the settings of the map, and mean and
# standard deviation of its values, which are measured on the training recordings.

# %%
spec = data.spec()
print(f"classes: {', '.join(spec.classes)}")
print(f"log-mel values: mean {spec.mean:.2f}, standard deviation {spec.std:.2f}")

# %% [markdown]
# One file, twice: the wave, and the map. Where the wave is loud, the map is bright; the bright lines that run along
# it are the voice's resonances, which tell the vowels apart.

# %%
seven = folder / "words" / "seven" / "Alex.wav"
wave = read_wave(seven, sample_rate=16_000)
log_mel = spec.feature_map().filter_bank(wave[None])[0]

figure, (above, below) = plt.subplots(2, 1, figsize=(7, 4), sharex=True, layout="constrained")
above.plot(torch.arange(len(wave)) / 16_000, wave, lw=0.5)
above.set(
    ylabel="amplitude", title=f"{seven.name}, 'seven': {len(wave)} samples become a map of {tuple(log_mel.shape)}"
)
image = below.imshow(log_mel, origin="lower", aspect="auto", extent=(0, log_mel.shape[1] * 0.015, 0, len(log_mel)))
below.set(xlabel="time in s", ylabel="mel band")
figure.colorbar(image, ax=below, label="log energy")
plt.show()

# %% [markdown]
# ## Training
#
# A small UniRepLKNet and Lightning's `Trainer`. The task takes waveforms and makes the maps itself. Training maps have
# bands and stretches of time masked, so that the net relies on none of them alone.

# %%
small = {"depths": (1, 1, 1, 1), "dims": (24, 48, 96, 192), "layer_scale_init_value": 0.1}
task = AudioClassifier(
    "unireplknet_a",
    spec=spec,
    backbone_args=small,
    criterion="ce",
    lr=4e-3,
    warmup_epochs=1,
    mixup=0.0,
    frequency_mask=4,
    time_mask=8,
    roll=4,
)
trainer = Trainer(
    max_epochs=6,
    limit_val_batches=0,
    logger=CSVLogger(folder),
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(task, datamodule=data)
task.examples.size = 16  # of the sheet below
(measured,) = trainer.test(task, datamodule=data, verbose=False)
print(f"accuracy on voices never heard: {measured['test_acc']:.3f}")

# %% [markdown]
# For comparison, logistic regression on the same maps, without their masks. A word begins anywhere in its recording,
# which a convolution does not mind and a linear model does.


# %%
def rows(loader):
    """Maps as rows, and their labels."""
    maps, labels = zip(*((task.to_maps(waves), y) for waves, y in loader), strict=True)
    return torch.cat(maps).flatten(1).numpy(), torch.cat(labels).numpy()


linear = LogisticRegression(C=1e-3, max_iter=100).fit(*rows(data.train_dataloader()))
print(f"logistic regression: {linear.score(*rows(data.test_dataloader())):.3f}")

# %% [markdown]
# Every evaluation leaves pictures in the run folder. The confusion matrix shows which words are taken for which; a
# row is what was said, a column what was heard.

# %%
run = Path(trainer.log_dir)
Image.open(run / "confusion_matrix.png")

# %% [markdown]
# The sheet of examples has some of the test maps, low frequencies at the bottom, with the answer and its
# probability; wrong ones are red, with the true word in brackets.

# %%
Image.open(run / "examples.png").convert("RGB").quantize(64)

# %% [markdown]
# ## A file of your own
#
# `task.predict` takes any recording: another rate, several channels, any length. A stereo file at 44.1 kHz stands in
# for it here, in which a test voice says one word twice. A recording that is longer than a map is cut into overlapping
# windows, and their probabilities are averaged.

# %%
spoken, _ = data.test_set[7 * 17]
twice = resample_wave(spoken.repeat(2), 16_000, 44_100)
soundfile.write(folder / "question.wav", torch.stack([twice, twice], dim=1).numpy(), 44_100)

(answer,) = task.predict(folder / "question.wav")
print(f"{answer['class']}, probability {answer['probability']:.2f}; spoken was {spec.classes[7]}")

# %% [markdown]
# A waveform from elsewhere, such as a microphone, goes straight into the task, and logits come out.

# %%
task.eval()
with torch.no_grad():
    probabilities = task.probabilities(task(spoken[None]))[0]
print(f"{spec.classes[int(probabilities.argmax())]}, probability {float(probabilities.max()):.2f}")

# %% [markdown]
# The same on the command line, for class folders of your own recordings (`audio/README.md` has the rest):
#
#     lightning fit -c audio/configs/folder.yaml --data.root sounds
#     lightning predict -c audio/configs/folder.yaml --ckpt_path best --data.predict_path recording.wav

# %%
shutil.rmtree(folder)

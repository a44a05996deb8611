# %% [markdown]
# # Time series: days below each other become a map
#
# A series that repeats itself, day after day, becomes a picture when each day is a row: neighboring hours stand
# side by side, the same hour of neighboring days one above the other. A large kernel sees both at once.
#
# The series is the weather at New York's JFK airport in 2013, which comes with a package, so that nothing is
# downloaded. It is written as a CSV file first, since that is how one's own series are read.

# %%
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import pandas as pd
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from matplotlib import pyplot as plt
from PIL import Image

from timeseries import CSVSeries, ForecastTask, NewYorkWeather, dominant_period, fold_by_period

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # the page shows what the cells print, and no hints
warnings.simplefilter("ignore")
seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## From a file to a map
#
# Any file with a date column and one column of numbers for each channel will do, if its time step is constant.

# %%
weather = NewYorkWeather().read()
table = pd.DataFrame(weather.values.numpy(), index=weather.times, columns=weather.channels)
table.filter(like="JFK").rename_axis("date").to_csv(folder / "weather.csv")
print((folder / "weather.csv").read_text()[:300])

# %% [markdown]
# `dominant_period` finds the length of the strongest wave, a day. Four weeks of temperature, folded by it: a bright
# stretch in the middle is the warm part of a day (the hours are UTC, from 6 on), a bright row is a warm day. The net
# gets the last four days as such a map, for each channel by itself.

# %%
jfk = weather.values[:, [i for i, name in enumerate(weather.channels) if name.startswith("JFK")]]
period = dominant_period(jfk, longest=96)

temperature = weather.values[: 28 * period, weather.channels.index("JFK_temp")]
folded = fold_by_period(temperature.view(1, 1, -1), period)[0, 0]
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
image = axes.imshow(folded, aspect="auto", cmap="magma", extent=(0, period, 28, 0))
axes.set(xlabel="hour of the row", ylabel="day", title=f"{temperature.numel()} hours as a map of {tuple(folded.shape)}")
figure.colorbar(image, label="temperature in degrees Fahrenheit")
plt.show()

# %% [markdown]
# ## Training
#
# 24 hours ahead from 96. The forecaster is a linear layer plus what the backbone reads from the map. What it must
# know of the data, such as the names of the channels, the lengths and the scale, is the data module's `spec`. Every
# evaluation also measures three baselines on the same windows: the last value, the last day again, and one linear
# layer, which is computed by least squares and not trained. Errors are those of standardized channels.

# %%
data = CSVSeries(str(folder / "weather.csv"), seq_len=96, pred_len=24, period=period, batch_size=32, num_workers=0)
small = {"depths": (1, 1), "dims": (16, 32), "kernel_sizes": (7, 5), "layer_scale_init_value": 0.1}
task = ForecastTask("unireplknet_a", spec=data.spec(), backbone_args=small, lr=2e-3)
trainer = Trainer(
    max_epochs=1,
    limit_val_batches=0,
    logger=CSVLogger(folder),
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(task, datamodule=data)
(measured,) = trainer.test(task, datamodule=data, verbose=False)
for name in ("test_mse", "test_mse_linear", "test_mse_last", "test_mse_seasonal"):
    print(f"{name:18} {measured[name]:.3f}")

# %% [markdown]
# The run folder holds forecasts of some windows against what came.

# %%
run = Path(trainer.log_dir)
Image.open(run / "forecasts.png")

# %% [markdown]
# And the errors, by how far ahead the step is and by channel. The last value is good for an hour or two; the last
# day again is equally good, or bad, at any distance.

# %%
Image.open(run / "errors.png")

# %% [markdown]
# ## A forecast of your own series
#
# `task.predict` continues a file after its last row, in the file's units; on the command line, the same rows are
# written to `predictions.csv`. Here the file ends with the first week of March.

# %%
march = pd.read_csv(folder / "weather.csv").query("date < '2013-03-08'")
march.to_csv(folder / "march.csv", index=False)
pd.DataFrame(task.predict(folder / "march.csv")).iloc[::6].round(1)

# %% [markdown]
# The same on the command line (`timeseries/README.md` has the rest):
#
#     lightning stats -c timeseries/configs/csv.yaml --data.path FILE
#     lightning fit -c timeseries/configs/csv.yaml --data.path FILE --pred_len 24
#     lightning predict --ckpt_path best --data.predict_path FILE

# %%
shutil.rmtree(folder)

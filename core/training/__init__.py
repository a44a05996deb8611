"""Training: everything that imports lightning."""

from core.training.classification import ClassificationTask
from core.training.data import DataModule
from core.training.ema import EMA
from core.training.pictures import LearningCurves
from core.training.predictions import PredictionWriter
from core.training.samples import FolderDataModule, SampleDataModule
from core.training.task import Task
from core.training.trainer import ExportingTrainer

__all__ = [
    "EMA",
    "ClassificationTask",
    "DataModule",
    "ExportingTrainer",
    "FolderDataModule",
    "LearningCurves",
    "PredictionWriter",
    "SampleDataModule",
    "Task",
]

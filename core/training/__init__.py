"""Tasks, and everything else that imports lightning."""

from core.training.averaging import EMA
from core.training.callbacks import LearningCurves
from core.training.classification import ClassificationTask
from core.training.predictions import PredictionWriter
from core.training.task import Task

__all__ = ["EMA", "ClassificationTask", "LearningCurves", "PredictionWriter", "Task"]

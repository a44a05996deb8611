"""Data for any modality: samples and splits, the base of all data modules, and what a model must know of its data."""

from core.data.labeled import FolderDataModule, SampleDataModule
from core.data.module import DataModule
from core.data.spec import DataSpec

__all__ = ["DataModule", "DataSpec", "FolderDataModule", "SampleDataModule"]

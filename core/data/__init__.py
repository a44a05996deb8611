"""Data for any modality: samples and splits, the bases of all data modules, and what a model must know of its data."""

"""Data of any modality: samples, splits, the bases of all data modules, and what a model must know about its data."""

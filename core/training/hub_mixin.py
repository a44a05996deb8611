"""Sharing of tasks through the Hugging Face Hub."""

from core.training.hub import TaskHubMixin

__all__ = ["TaskHubMixin"]

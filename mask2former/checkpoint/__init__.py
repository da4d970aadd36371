"""Weights in and out: reading checkpoints of every kind safely, and writing Hugging Face folders."""

from .load import Mask2FormerCheckpointer, load_weights, read_weights

__all__ = ["Mask2FormerCheckpointer", "load_weights", "read_weights"]

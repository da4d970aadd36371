"""Data: registration of data sets, mappers from dataset dicts to training examples."""

from . import datasets  # noqa: F401

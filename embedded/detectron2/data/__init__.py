"""Data: catalogues of data sets, loaders, samplers, mappers and transforms."""

from .catalog import DatasetCatalog, Metadata, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from . import datasets, samplers

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog", "AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "ToIterableDataset"]

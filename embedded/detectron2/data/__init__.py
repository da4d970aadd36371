"""Data: catalogues of data sets, loaders, samplers, mappers and transforms."""

from .catalog import DatasetCatalog, Metadata, MetadataCatalog

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]

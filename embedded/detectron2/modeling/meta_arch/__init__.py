"""Whole models: inputs from the data loader in, losses or results out."""

from detectron2._unsupported import missing
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.semantic_seg import SEM_SEG_HEADS_REGISTRY, SemanticSegmentor, build_sem_seg_head

__all__ = ["META_ARCH_REGISTRY", "SEM_SEG_HEADS_REGISTRY", "SemanticSegmentor", "build_model", "build_sem_seg_head"]

__getattr__ = missing(__name__)

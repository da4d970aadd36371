"""Multi-scale deformable attention (Deformable DETR): one function, several back ends, the same numbers."""

from .deform_attn import ms_deform_attn, ms_deform_attn_projected

__all__ = ["ms_deform_attn", "ms_deform_attn_projected"]

"""Panoptic segmentation: colour-coded segment ids and Panoptic Quality (Kirillov et al., 2019)."""

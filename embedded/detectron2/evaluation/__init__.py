"""Evaluators: the numbers of COCO, of semantic and of panoptic segmentation."""

"""COCO evaluation in compiled code: faster-coco-eval, whose numbers are those of pycocotools."""

try:
    from faster_coco_eval import COCOeval_faster as COCOeval_opt

    AVAILABLE = True
except ImportError:
    from pycocotools.cocoeval import COCOeval as COCOeval_opt

    AVAILABLE = False

__all__ = ["AVAILABLE", "COCOeval_opt"]

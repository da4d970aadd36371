"""Boundary AP (Cheng et al., 2021): COCO's AP with the smaller of mask IoU and boundary IoU.

The boundary IoU of two masks is that of the pixels within some distance inside their outlines, so it judges large
masks by their edges.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

# Where a metric is in COCO's `stats`.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def boundary_ap(gt_json_file: str | Path, dt_json_file: str | Path, dilation_ratio: float = 0.02) -> dict[str, float]:
    """Boundary AP of a file of results.

    Args:
        gt_json_file: ground truth in COCO's format.
        dt_json_file: a list of results with image_id, category_id, score and segmentation, such as COCOEvaluator's
            coco_instances_results.json.
        dilation_ratio: how far a boundary reaches inwards, relative to the image's diagonal.

    Returns:
        {AP, AP50, AP75, APs, APm, APl, AP-<class>...} in percent; NaN where there is nothing to measure.

    Raises:
        ValueError: there are no results, or results without masks.
    """
    import numpy as np
    from faster_coco_eval import COCO, COCOeval_faster

    results = json.loads(Path(dt_json_file).read_text())
    _check(results, dt_json_file)
    # With a box, COCO would take the size of a mask (small, medium, large) from it.
    results = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(gt_json_file))
        evaluation = COCOeval_faster(
            truth, truth.loadRes(results), "boundary", boundary_dilation_ratio=dilation_ratio, boundary_cpu_count=1
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    def percent(values: Any) -> float:
        values = np.asarray(values, dtype=float)
        values = values[values > -1]
        return 100 * float(values.mean()) if values.size else float("nan")

    scores = {name: percent([value]) for name, value in zip(METRICS, evaluation.stats)}
    precision = evaluation.eval["precision"]  # (IoU thresholds, recalls, classes, area ranges, max detections)
    for index, category in enumerate(evaluation.params.catIds):
        scores[f"AP-{truth.cats[category]['name']}"] = percent(precision[:, :, index, 0, -1])
    return scores


def _check(results: Any, source: str | Path) -> None:
    if not isinstance(results, list):
        raise ValueError(f"{source} holds a {type(results).__name__}; expected a list of COCO results")
    if not results:
        raise ValueError(f"{source} has no results: there is nothing to measure")
    without = sum("segmentation" not in entry for entry in results)
    if without:
        raise ValueError(f"{without} of the {len(results)} results in {source} have no segmentation; masks are needed")

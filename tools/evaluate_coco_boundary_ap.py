"""Boundary AP of instance predictions: how well masks fit along their edges.

python tools/evaluate_coco_boundary_ap.py --gt-json-file datasets/coco/annotations/instances_val2017.json \\
    --dt-json-file output/inference/coco_instances_results.json
"""

import argparse
import sys

from mask2former.evaluation.boundary_ap import boundary_ap


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gt-json-file", required=True, help="ground truth in COCO's format")
    parser.add_argument("--dt-json-file", required=True, help="results in COCO's format, as COCOEvaluator writes them")
    parser.add_argument("--dilation-ratio", type=float, default=0.02, help="width of a boundary, in image diagonals")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        scores = boundary_ap(args.gt_json_file, args.dt_json_file, args.dilation_ratio)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    for name, value in scores.items():
        print(f"{name:<30s} {value:7.3f}")


if __name__ == "__main__":
    main()

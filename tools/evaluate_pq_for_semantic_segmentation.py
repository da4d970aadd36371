"""Panoptic Quality of semantic predictions, every class of an image taken as one segment.

python tools/evaluate_pq_for_semantic_segmentation.py --dataset ade20k_sem_seg_val \\
    --json-file output/inference/sem_seg_predictions.json
"""

import argparse
import sys

import mask2former.data.datasets  # noqa: F401  registers the data sets
from mask2former.evaluation.semantic_pq import evaluate_semantic_pq


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json-file", required=True, help="sem_seg_predictions.json, which SemSegEvaluator writes")
    parser.add_argument("--dataset", default="ade20k_sem_seg_val", help="name of the data set predicted on")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        scores = evaluate_semantic_pq(args.dataset, args.json_file)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        sys.exit(str(error))
    for name, value in scores.items():
        print(f"{name:<30s} {value:7.3f}" if name != "n" else f"{'classes that occur':<30s} {value:7d}")


if __name__ == "__main__":
    main()

"""Mask2Former from nothing: make a data set, train on it, score it, draw what the model sees.

    python demo/quickstart.py [--config-file configs/shapes/panoptic.yaml] [--output output/shapes] [KEY VALUE ...]

It runs the programs a user would run (prepare_shapes.py, train_net.py, demo.py) and shows each command.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCORES = {
    "PQ": "panoptic_seg/PQ",
    "PQ things": "panoptic_seg/PQ_th",
    "PQ stuff": "panoptic_seg/PQ_st",
    "mask AP": "segm/AP",
    "mask AP50": "segm/AP50",
    "mIoU": "sem_seg/mIoU",
}


def run(script: str, *arguments: str) -> None:
    """Run one of our programs from the top of the repository; stop here if it fails."""
    print(f"\n$ python {script} {' '.join(arguments)}", flush=True)
    # Threads that wait go to sleep soon: spinning ones slow training down several times when other programs run beside.
    environment = {"GOMP_SPINCOUNT": "1000", **os.environ}
    status = subprocess.call([sys.executable, script, *arguments], cwd=ROOT, env=environment)
    if status:
        sys.exit(f"{script} failed with status {status}; its message is above.")


def last_scores(metrics: Path) -> dict[str, float]:
    """The evaluation results in metrics.json, the newest of each."""
    scores: dict[str, float] = {}
    for line in metrics.read_text().splitlines():
        scores.update({k: v for k, v in json.loads(line).items() if k in SCORES.values()})
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default="configs/shapes/panoptic.yaml")
    parser.add_argument("--output", default="output/shapes", help="folder for checkpoints, scores and pictures")
    parser.add_argument("--train", default="600", help="images to make for training")
    parser.add_argument("--val", default="100", help="images to make for validation")
    parser.add_argument("--pictures", type=int, default=12, help="number of unseen images to draw")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides for training, KEY VALUE pairs")
    args = parser.parse_args()

    start = time.perf_counter()
    run("datasets/prepare_shapes.py", "--train", args.train, "--val", args.val)
    training = ("--config-file", args.config_file, "OUTPUT_DIR", args.output)
    run("tools/train_net.py", *training, *args.opts)
    weights = f"{args.output}/model_final.pth"
    data = ROOT / os.environ.get("DETECTRON2_DATASETS", "datasets") / "shapes"
    images = sorted((data / "val/images").glob("*.jpg"))[: args.pictures]
    drawing = ("--config-file", args.config_file, "--output", f"{args.output}/pictures")
    run("demo/demo.py", *drawing, "--input", *map(str, images), "--opts", "MODEL.WEIGHTS", weights)

    scores = last_scores(ROOT / args.output / "metrics.json")
    print(f"\nDone in {(time.perf_counter() - start) / 60:.1f} minutes. Scores on images it has not seen:\n")
    for name, key in SCORES.items():
        if key in scores:
            print(f"  {name:<10} {scores[key]:6.1f}")
    print(f"\nPictures: {ROOT / args.output / 'pictures'}\n\nNext:")
    print(
        f"  .venv/bin/python demo/demo.py --config-file {args.config_file} --input YOUR.jpg --output out.png "
        f"--opts MODEL.WEIGHTS {weights}"
    )
    print("  .venv/bin/python tools/train_net.py --config-file configs/shapes/instance.yaml")
    print(
        "  .venv/bin/python tools/train_net.py --config-file "
        "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml   # with COCO in datasets/coco"
    )


if __name__ == "__main__":
    main()

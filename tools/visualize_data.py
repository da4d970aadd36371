"""What the training mapper feeds the model, as pictures: the augmented image, and beside it the same with its targets.

python tools/visualize_data.py --config-file configs/shapes/panoptic.yaml --output-dir pictures
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.utils.env import seed_all_rng
from detectron2.utils.visualizer import Visualizer
from tqdm import tqdm

from mask2former.data.mappers import build_mapper
from mask2former.setup_config import read_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output-dir", required=True, help="folder for the pictures")
    parser.add_argument("-n", "--num-images", type=int, default=8, help="how many images, evenly over the data set")
    parser.add_argument("--versions", type=int, default=2, help="augmentations of each image")
    parser.add_argument("--seed", type=int, default=0, help="of the augmentations")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser.parse_args()


def draw(sample: dict[str, Any], cfg: CfgNode) -> np.ndarray:
    """(H, 2 W, 3) RGB: the image, and the image with its targets in the colours and names of their classes."""
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    # Where there are names of all classes, things and stuff, they are called stuff_classes.
    of_all = len(metadata.get("stuff_classes") or ()) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    names, colors = (metadata.get(f"{'stuff' if of_all else 'thing'}_{what}") for what in ("classes", "colors"))
    image = convert_image_to_rgb(sample["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
    instances = sample["instances"]
    labels = instances.gt_classes.tolist()
    picture = Visualizer(image, metadata)
    overlaid = picture.overlay_instances(
        masks=[np.ascontiguousarray(mask.numpy(), dtype=np.uint8) for mask in instances.gt_masks.bool()],
        labels=[names[label] if names else str(label) for label in labels],
        assigned_colors=[tuple(c / 255 for c in colors[label]) for label in labels] if colors else None,
    )
    return np.concatenate([np.asarray(image, dtype=np.uint8), overlaid.get_image()], axis=1)


def main() -> None:
    args = parse_args()
    try:
        cfg = read_config(args.config_file, args.opts)
        mapper = build_mapper(cfg)
        images = get_detection_dataset_dicts(list(cfg.DATASETS.TRAIN), filter_empty=False)
    except (OSError, KeyError, ValueError, AssertionError) as error:
        sys.exit(str(error))
    seed_all_rng(args.seed)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = np.unique(np.linspace(0, len(images) - 1, args.num_images).round().astype(int))
    with torch.no_grad():
        for index in tqdm(chosen, unit="image"):
            for version in range(args.versions):
                picture = draw(mapper(images[index]), cfg)
                name = f"{index:06d}_{version}_{Path(images[index]['file_name']).stem}.png"
                cv2.imwrite(str(folder / name), picture[..., ::-1])
    print(f"{len(chosen) * args.versions} pictures in {folder}")


if __name__ == "__main__":
    main()

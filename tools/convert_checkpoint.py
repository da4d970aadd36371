"""Convert a Mask2Former between detectron2's layout and Hugging Face's, in either direction.

python tools/convert_checkpoint.py model.pkl FOLDER [--config-file configs/...]     to Hugging Face
python tools/convert_checkpoint.py FOLDER model.pkl                                 back, with model.yaml beside it
python tools/convert_checkpoint.py hf://owner/name model.pth

Weights are copied bit by bit. FOLDER is read by transformers' Mask2FormerForUniversalSegmentation.from_pretrained.
"""

import argparse
import logging
import sys
from pathlib import Path

import detectron2.data.datasets  # noqa: F401  (names of their classes)

import mask2former.data.datasets  # noqa: F401
from mask2former.checkpoint.convert import from_hub, to_hub
from mask2former.checkpoint.sources import HUB
from mask2former.setup_config import read_config

logger = logging.getLogger("convert_checkpoint")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="checkpoint file or address, or a Hugging Face folder or hf:// address")
    parser.add_argument("destination", help="folder, or a file that ends in .pkl or .pth")
    parser.add_argument("--config-file", help="of the model (to Hugging Face; default: what the weights show)")
    parser.add_argument("--task", choices=["semantic", "instance", "panoptic", "all"], help="what inference returns")
    parser.add_argument("--classes", help="text file with a class name per line (to Hugging Face)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    destination = Path(args.destination)
    try:
        if args.source.startswith(HUB) or Path(args.source).is_dir():
            config = from_hub(args.source, destination, task=args.task)
            logger.info("Wrote %s and the config that fits, %s.", destination, config)
            return
        cfg = read_config(args.config_file) if args.config_file else None
        names = Path(args.classes).read_text().splitlines() if args.classes else None
        to_hub(args.source, destination, cfg, task=args.task, class_names=names)
        logger.info("Wrote config.json, preprocessor_config.json and model.safetensors to %s.", destination)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"convert_checkpoint: {error}")


if __name__ == "__main__":
    main()

"""Convert a pretrained backbone into detectron2's layout: torchvision's and MSRA's ResNet, published Swin classifiers.

python tools/convert_backbone.py resnet101-63fe2227.pth R-101.pkl
python tools/convert_backbone.py swin_tiny_patch4_window7_224.pth swin_tiny_patch4_window7_224.pkl

MODEL.WEIGHTS takes these files as they are, too; the converted one is also read by other programs on detectron2.
"""

import argparse
import logging
import sys
from pathlib import Path

from mask2former.checkpoint.convert import convert_backbone

logger = logging.getLogger("convert_backbone")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="checkpoint file or address")
    parser.add_argument("destination", help="file to write, ending in .pkl")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        kind, number = convert_backbone(args.source, Path(args.destination))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"convert_backbone: {error}")
    logger.info("Wrote %d weights of %s to %s.", number, kind, args.destination)


if __name__ == "__main__":
    main()

"""What a model costs: parameters, multiply-adds, activations, structure. Needs no weights and no memory for the model.

python tools/analyze_model.py --config-file configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml
python tools/analyze_model.py --config-file CONFIG --tasks flop --size 512 512
"""

import argparse
import itertools
import sys

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from torch import nn

from mask2former.analysis import network_cost, parameters_of, published_flops
from mask2former.setup_config import read_config

# Width to height of photographs where the data set cannot be asked: two of three 4:3, one 3:2, as is typical of COCO.
TYPICAL_RATIOS = (4 / 3, 4 / 3, 3 / 2)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    choices = ["parameter", "flop", "activation", "structure"]
    parser.add_argument("--tasks", nargs="+", choices=choices, default=choices[:3])
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="of the network's input; by default those of the test data set's images, resized as for testing",
    )
    parser.add_argument("-n", "--num-inputs", type=int, default=100, help="average over so many images of the data set")
    parser.add_argument("--depth", type=int, default=2, help="levels of modules to list")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser.parse_args()


def sizes_of(cfg: CfgNode, count: int) -> tuple[list[tuple[int, int]], str]:
    """Sizes of the network's inputs in a test, and where they come from."""
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    resized = ResizeShortestEdge.get_output_shape
    try:
        images = DatasetCatalog.get(cfg.DATASETS.TEST[0])[:count]
        found = [resized(image["height"], image["width"], short, longest) for image in images]
        return found, f"mean over {len(found)} images of {cfg.DATASETS.TEST[0]}"
    except (KeyError, OSError, IndexError):
        typical = [resized(1000, round(1000 * ratio), short, longest) for ratio in TYPICAL_RATIOS]
        return typical, f"assumed, as {cfg.DATASETS.TEST[0]} is not here: photographs, two of three 4:3 and one 3:2"


def report_costs(cfg: CfgNode, model: nn.Module, args: argparse.Namespace) -> None:
    sizes, source = ([tuple(args.size)], "as given") if args.size else sizes_of(cfg, args.num_inputs)
    costs, published = {}, 0.0
    for size, group in itertools.groupby(sorted(sizes)):
        costs[size] = network_cost(model, size, args.depth + 1), len(list(group)) / len(sizes)
    published = sum(published_flops(cfg, cost) * share for cost, share in costs.values())
    print(f"Input: {', '.join(sorted({'x'.join(map(str, cost.size)) for cost, _ in costs.values()})[:5])}; {source}.")

    def mean(pick) -> float:
        return sum(pick(cost) * share for cost, share in costs.values())

    if "flop" in args.tasks:
        print(f"{mean(lambda c: c.flops) / 1e9:10.1f} G multiply-adds, in")
        for name in next(iter(costs.values()))[0].flops_of:
            flops = mean(lambda c, name=name: c.flops_of.get(name, 0))
            if name.count(".") < args.depth and flops >= 5e7:
                print(f"{flops / 1e9:10.1f} G {'  ' * name.count('.')}{name}")
        print(f"{mean(lambda c: c.sampling) / 1e9:10.1f} G of them are the sampling of deformable attention")
        print(
            f"{published / 1e9:10.1f} G as published tables count: without that sampling, and with every layer's masks "
            "at full size, which this implementation does not need"
        )
    if "activation" in args.tasks:
        print(
            f"{mean(lambda c: c.activations) / 1e6:10.1f} M activations (outputs of convolutions and matrix products)"
        )


def main() -> None:
    args = parse_args()
    try:
        cfg = read_config(args.config_file, [*args.opts, "MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""])
    except (OSError, KeyError, ValueError, AssertionError) as error:
        sys.exit(f"The config cannot be read: {error}")
    model = build_model(cfg)
    if "parameter" in args.tasks:
        for name, count in parameters_of(model, args.depth).items():
            level = name.count(".") + bool(name)
            print(f"{count / 1e6:10.2f} M {'  ' * level}{name or 'parameters, in'}")
    if {"flop", "activation"} & set(args.tasks):
        report_costs(cfg, model, args)
    if "structure" in args.tasks:
        print(model)


if __name__ == "__main__":
    main()

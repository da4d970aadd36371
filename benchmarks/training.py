"""A training step, forward and backward, against the published order of operations.

python benchmarks/training.py --config r50 --size 512 --images 2 --instances 17
"""

import copy
from typing import Any

import torch
from common import CONFIGS, alternate, arguments, build, image, report
from detectron2.structures import Instances
from plain import PlainModel


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--config", default="r50", help=f"{', '.join(CONFIGS)}, or a config file")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--instances", type=int, default=17, help="of all images together")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = build(args.config).train()
    plain = PlainModel(model)
    samples = [
        sample(args.size, args.instances // args.images + (i < args.instances % args.images))
        for i in range(args.images)
    ]
    sides = {
        "plain": lambda: step(plain, samples, False),
        "float32": lambda: step(model, samples, False),
        "bfloat16": lambda: step(model, samples, True),
    }
    totals = {name: run() for name, run in sides.items()}
    measured = alternate(sides, args.repeats)
    rows = [
        {
            "side": name,
            "wall s": times["wall"],
            "cpu s": times["cpu"],
            "times faster (cpu)": measured["plain"]["cpu"] / times["cpu"],
            "loss": totals[name],
        }
        for name, times in measured.items()
    ]
    report(f"{args.config}, {args.images} images of {args.size}, {args.instances} instances", rows, args.json)


def step(model: torch.nn.Module, samples: list[dict[str, Any]], half: bool) -> float:
    """Gradients of the sum of all losses, from the same random points each time; returns the sum."""
    torch.manual_seed(0)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = sum(model(copy.copy(samples)).values())
    loss.backward()
    return float(loss.detach())


def sample(size: int, count: int) -> dict[str, Any]:
    """An image with `count` rectangles of different sizes."""
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for n in range(count):
        side = size // 8 + n * size // 40
        masks[n, n * size // (2 * count) :, :][:side, n * size // (2 * count) :][:, :side] = True
    instances = Instances((size, size), gt_classes=torch.arange(count) % 80, gt_masks=masks)
    return {"image": image(size, size), "instances": instances}


if __name__ == "__main__":
    main()

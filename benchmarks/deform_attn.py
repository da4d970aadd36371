"""Deformable attention with the shapes of an 800x1088 image: the fused kernels against grid_sample.

python benchmarks/deform_attn.py
"""

from collections.abc import Callable

import torch
from common import alternate, arguments, report
from torch import Tensor

from mask2former.modeling.ops import ms_deform_attn_projected
from mask2former.modeling.pixel_decoder.msdeformattn import pixel_centers


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1088), metavar=("HEIGHT", "WIDTH"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    shapes = tuple((args.size[0] // stride, args.size[1] // stride) for stride in (32, 16, 8))
    pixels = sum(h * w for h, w in shapes)
    torch.manual_seed(0)
    value = torch.randn(1, pixels, 8, 32, requires_grad=True)
    projected = (torch.randn(1, pixels, 8 * 3 * 4 * 3) * 2).requires_grad_()
    centers = pixel_centers(shapes, torch.device("cpu"))

    def attend(backend: str) -> Tensor:
        return ms_deform_attn_projected(value, shapes, centers, projected, backend)

    forward = {"reference": lambda: attend("reference"), "numba": lambda: attend("numba")}
    with torch.no_grad():
        expected, fused = (run() for run in forward.values())
        # Means: the slope of a bilinear sample jumps at pixel centres, where rounding decides.
        difference = float((expected - fused).abs().mean() / expected.abs().mean())
        measured = {"forward": alternate(forward, args.repeats)}
    outputs = {name: run() for name, run in forward.items()}
    gradient = torch.randn_like(outputs["numba"])

    def back(name: str) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(outputs[name], (value, projected), gradient, retain_graph=True)

    backward = {name: back(name) for name in outputs}
    apart = max(
        float((a - b).abs().mean() / a.abs().mean())
        for a, b in zip(backward["reference"](), backward["numba"](), strict=True)
    )
    measured["backward"] = alternate(backward, args.repeats)
    rows = [
        {
            "what": what,
            "grid_sample cpu s": times["reference"]["cpu"],
            "fused cpu s": times["numba"]["cpu"],
            "times faster": times["reference"]["cpu"] / times["numba"]["cpu"],
            "mean difference": {"forward": difference, "backward": apart}[what],
        }
        for what, times in measured.items()
    ]
    report(f"{pixels} queries, 8 heads, 3 levels, 4 points", rows, args.json)


if __name__ == "__main__":
    main()

"""Peak memory above the weights of a large photo, each side in a process of its own.

python benchmarks/memory.py --image 800 1067 --output 3000 4000

The plain side needs some 30 GB for that, in proportion to the pixels of the result. A process that would take more than
`--limit` ends with an error instead of bringing the machine down.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import arguments, build, image, report
from plain import PlainModel


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--image", type=int, nargs=2, default=(800, 1067), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--output", type=int, nargs=2, default=(3000, 4000), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--config", default="r50_panoptic")
    parser.add_argument("--side", choices=["ours", "plain"], help="measure this one here, print JSON")
    parser.add_argument("--limit", type=float, help="GB a process may take; by default 85%% of what is free")
    args = parser.parse_args()
    limit = args.limit or 0.85 * available()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.side:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 1e9),) * 2)
        sys.stdout.write(json.dumps(measure(args)))
        return
    rows = []
    for side in ("ours", "plain"):
        command = [sys.executable, *sys.argv, "--side", side, "--limit", str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and "memory" not in done.stderr:
            raise RuntimeError(done.stderr)
        rows.append(
            json.loads(done.stdout) if done.returncode == 0 else {"side": side, "needs GB": f"over {limit:.1f}"}
        )
    for row in rows:
        if "peak GB" in row and "peak GB" in rows[-1]:
            row["of plain"] = row["peak GB"] / rows[-1]["peak GB"]
    report(f"{args.config}, {args.image} to {args.output}, above the weights", rows, args.json)


def available() -> float:
    """GB that processes can still take."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 / 1e9


def measure(args: Any) -> dict[str, Any]:
    model = build(args.config, "MODEL.MASK_FORMER.TEST.SEMANTIC_LABEL_MAP", args.side == "ours")
    run = model if args.side == "ours" else PlainModel(model)
    pages = int(Path("/proc/self/statm").read_text().split()[1])  # in memory now: building may have taken more
    before = pages * resource.getpagesize()
    start = time.process_time()
    with torch.inference_mode():
        run([{"image": image(*args.image), "height": args.output[0], "width": args.output[1]}])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"side": args.side, "peak GB": peak / 1e9, "cpu s": time.process_time() - start}


if __name__ == "__main__":
    main()

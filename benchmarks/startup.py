"""What starting costs, in fresh processes: importing the package, and the way to the demo's first picture.

python benchmarks/startup.py
python benchmarks/startup.py --weights output/shapes/model_final.pth

CPU seconds are those of all threads, with the system's.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
from common import ROOT, arguments, image, report

CONFIG = ROOT / "configs" / "shapes" / "panoptic.yaml"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--weights", help="of a model trained on the shapes; otherwise random ones")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture, result = Path(folder) / "picture.png", Path(folder) / "result.png"
        cv2.imwrite(str(picture), image(144, 192).permute(1, 2, 0).numpy())
        demo = [str(ROOT / "demo" / "demo.py"), "--config-file", str(CONFIG)]
        demo += ["--input", str(picture), "--output", str(result)]
        sides = {
            "nothing": ["-c", "pass"],
            "import torch": ["-c", "import torch"],
            "import torch, mask2former": ["-c", "import torch, mask2former"],
            "first picture of the demo": demo + (["--opts", "MODEL.WEIGHTS", args.weights] if args.weights else []),
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for repeat in range(args.repeats + 1):
            for name, command in sides.items():
                seconds = run(command)
                if repeat:  # the first time warms the disk, and compiles kernels
                    measured[name].append(seconds)
        assert result.is_file(), "the demo wrote no picture"
    medians = {
        name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in measured.items()
    }
    medians["mask2former beyond torch"] = [
        a - b for a, b in zip(medians["import torch, mask2former"], medians["import torch"], strict=True)
    ]
    rows = [{"what": name, "wall s": wall, "cpu s": cpu} for name, (wall, cpu) in medians.items()]
    report("fresh processes, warm disk", rows, args.json)


def run(command: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a Python process."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu


if __name__ == "__main__":
    main()

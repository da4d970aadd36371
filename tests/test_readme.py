"""Every command of the README runs. Each is listed here with what makes it small; a new one must be added."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import detectron2
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder like the top of the repository, with a small data set and its own output."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("tools", "configs", "demo", "mask2former", "requirements.txt", "constraints.txt", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "datasets").mkdir()
    for script in (ROOT / "datasets").glob("*.py"):
        (folder / "datasets" / script.name).symlink_to(script)
    return folder


def run(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(folder / "datasets")}
    result = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, f"{shlex.join(arguments)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout + result.stderr


# The README's command, and the arguments that make it small; None: only checked, as the comment says.
TRAIN = "python tools/train_net.py --config-file configs/shapes/panoptic.yaml"
SIZE = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "0"]
STOPPABLE = [*SIZE, "SOLVER.CHECKPOINT_PERIOD", "1"]
EXPECTED: dict[str, list[str] | None] = {
    "make demo": None,  # its script runs below
    "make test": None,  # this
    "python -m pip install -r requirements.txt": None,  # how this environment came to be
    "python -m pip install -e . -e ./embedded/panoptic": None,  # the same, without embedded/
    "python datasets/prepare_shapes.py": ["--train", "6", "--val", "3"],
    TRAIN: STOPPABLE,
    f"{TRAIN} --resume": STOPPABLE,
    f"{TRAIN} --eval-only MODEL.WEIGHTS output/shapes/model_final.pth": [],
    "torchrun --nproc-per-node 2 tools/train_net.py --config-file configs/shapes/panoptic.yaml": [
        *("OUTPUT_DIR", "output/two"),
        *SIZE,
    ],
    "python demo/demo.py --config-file configs/shapes/panoptic.yaml --input datasets/shapes/val/images/*.jpg "
    "--output output/pictures --opts MODEL.WEIGHTS output/shapes/model_final.pth": [],
}


def test_every_command_of_the_readme_is_known_here():
    assert commands() == list(EXPECTED)


def test_every_command_of_the_readme_runs(workplace):
    """In the README's order, as each builds on what the one before wrote."""
    for command, small in EXPECTED.items():
        if small is None or (command.startswith("torchrun") and not getattr(detectron2, "EMBEDDED", False)):
            continue  # upstream does not join the processes that torchrun starts; train_net.py says so
        program, *arguments = shlex.split(command)
        found = [str(p) for a in arguments for p in (sorted(workplace.glob(a)) if "*" in a else [a])]
        if "--resume" in arguments:  # as if the training before had been stopped after its first iteration
            (workplace / "output/shapes/last_checkpoint").write_text("model_0000000.pth")
        start = [sys.executable] if program == "python" else [sys.executable, "-m", "torch.distributed.run"]
        out = run([*start, *found, *small], workplace)
        if "--resume" in arguments:
            assert "Starting training from iteration 1" in out
    assert len(list((workplace / "output/pictures").glob("*.jpg"))) == 3
    code = blocks("python")[0].replace(
        '"image.jpg"', repr(str(next((workplace / "datasets").glob("**/val/images/*.jpg"))))
    )
    run([sys.executable, "-c", code + "print(panoptic.shape, len(segments))"], workplace)


def test_the_quickstart_of_make_demo_ends_with_scores_pictures_and_next_commands(workplace, tmp_path):
    out = run(
        [sys.executable, "demo/quickstart.py", "--train", "6", "--val", "3", "--output", str(tmp_path), *SIZE],
        workplace,
    )
    for expected in ("PQ things", "mask AP", "mIoU", f"Pictures: {tmp_path / 'pictures'}", "Next:"):
        assert expected in out
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 3


def test_make_demo_runs_the_quickstart_and_make_test_the_tests():
    makefile = (ROOT / "Makefile").read_text()
    assert "demo/quickstart.py" in makefile.split("demo:")[1].split("\n\n")[0]
    assert "-m pytest" in makefile.split("test:")[1].split("\n\n")[0]


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_every_file_the_readme_points_to_exists(path):
    assert (ROOT / path).exists()

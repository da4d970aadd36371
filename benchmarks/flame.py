"""Where a call spends its time, as a picture: what calls what from top to bottom, wide where it takes long."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

OPERATORS = ("aten::", "mkldnn::", "mask2former::")
# Deeper calls are left out, and those that take less of the whole.
DEPTH, LEAST = 10, 0.002
# In pixels; names are written where they have room.
WIDTH, ROW, TOP, READABLE = 1900, 62, 60, 60
COLOURS = {"operator": "#f4a261", "function": "#8ecae6", "module": "#95d5b2"}


class Node:
    """A function or operator among its callers; seconds of all its calls there."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.children: dict[str, Node] = {}

    def child(self, name: str) -> "Node":
        return self.children.setdefault(name, Node())


def flame(run: Callable[[], Any], title: str, path: Path) -> None:
    """Run once under PyTorch's profiler, which makes Python's own part a little longer, and draw."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_stack=True) as recorded:
        run()
    root = Node()
    _add(root, (event for event in recorded.events() if event.cpu_parent is None))
    root.seconds = sum(node.seconds for node in root.children.values())
    while len(root.children) == 1:  # what only hands on
        (root,) = root.children.values()
    rows = min(DEPTH, _depth(root, root.seconds))
    picture = Image.new("RGB", (WIDTH, TOP + rows * ROW + 10), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((10, 14), title, "black", ImageFont.load_default(26))
    x = WIDTH
    for kind, colour in reversed(COLOURS.items()):
        x -= 170
        pen.rectangle((x, 18, x + 24, 42), colour)
        pen.text((x + 34, 18), kind, "black", ImageFont.load_default(20))
    _draw(pen, root, 0.0, 0, root.seconds)
    picture.save(path)


def _depth(node: Node, total: float) -> int:
    return max(
        (1 + _depth(child, total) for child in node.children.values() if child.seconds >= LEAST * total), default=0
    )


def _add(node: Node, events: Iterable[Any]) -> None:
    for event in events:
        name = _name(event.name)
        target = node
        if name:
            target = node.child(name)
            target.seconds += event.time_range.elapsed_us() / 1e6
        if not event.name.startswith(OPERATORS):  # what an operator calls is its own affair
            _add(target, event.cpu_children)


def _name(event: str) -> str | None:
    """Of our functions, modules and PyTorch's operators; None for what is between them."""
    if event.startswith(OPERATORS):
        return event
    if event.startswith("nn.Module: "):
        return event.removeprefix("nn.Module: ").rstrip("0123456789").rstrip("_")
    place, _, function = event.partition(": ")
    file = place.partition("(")[0]
    if "/mask2former/" not in file or file.endswith("/threads.py") or function.startswith(("<", "forward")):
        return None
    return f"{Path(file).stem}.{function}"


def _draw(pen: ImageDraw.ImageDraw, node: Node, left: float, depth: int, total: float) -> None:
    """The node's children from left (a share of the width) to right, the longest first."""
    for name, child in sorted(node.children.items(), key=lambda item: -item[1].seconds):
        share = child.seconds / total
        if share < LEAST or depth == DEPTH:
            continue
        kind = "operator" if name.startswith(OPERATORS) else "function" if "." in name else "module"
        x, y, width = left * WIDTH, TOP + depth * ROW, share * WIDTH - 2
        pen.rectangle((x, y, x + max(width, 1), y + ROW - 3), COLOURS[kind])
        if width > READABLE:
            font, label = ImageFont.load_default(17), name.rpartition("::")[2]
            while font.getlength(label) > width - 10:
                label = label.removesuffix("…")[:-1] + "…"
            pen.text((x + 5, y + 6), f"{label}\n{share:.0%}", "black", font, spacing=6)
        _draw(pen, child, left, depth + 1, total)
        left += share

"""What a load did, in a few lines that say what was kept, what was not and why."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .claims import clipped

# Kept by normalisations and windows for themselves: whether a file has them changes no result.
BOOKKEEPING = (".num_batches_tracked", ".relative_position_index")


@dataclass
class LoadReport:
    """Names of weights by what became of them.

    loaded: taken from the file, unchanged or adapted.
    notes: what was adapted, and how.
    reinitialised: names of the model that keep their initial values, by reason.
    unused: names of the file that the model has no place for.
    """

    source: str
    kind: str
    loaded: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reinitialised: dict[str, list[str]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def skip(self, name: str, reason: str) -> None:
        if not name.endswith(BOOKKEEPING):
            self.reinitialised.setdefault(reason, []).append(name)

    def part(self) -> str:
        """What the file is for: "backbone." for a backbone alone, "" for the whole model."""
        return "backbone." if self.loaded and all(name.startswith("backbone.") for name in self.loaded) else ""

    def match(self) -> float:
        """Share of the part's tensors that the file filled."""
        loaded = sum(not name.endswith(BOOKKEEPING) for name in self.loaded)
        part = self.part()
        kept = sum(name.startswith(part) for reason in self.reinitialised for name in self.reinitialised[reason])
        return loaded / max(loaded + kept, 1)

    def is_clean(self) -> bool:
        """Whether nothing calls for attention: all there, or all that a backbone can fill."""
        kept = {name for names in self.reinitialised.values() for name in names if name.startswith(self.part())}
        surprising = {name for name in kept if not name.startswith("backbone.norm")} if self.part() else kept
        unused = [name for name in self.unused if not name.startswith(("head.", "norm.", "fc.", "pred_"))]
        return not surprising and not unused

    def __str__(self) -> str:
        kept = sum(len(names) for names in self.reinitialised.values())
        lines = [
            f"{self.source} ({self.kind}): loaded {len(self.loaded)}, re-initialised {kept}, "
            f"unused {len(self.unused)} of the file."
        ]
        lines += [f"  adapted: {note}" for note in self.notes]
        lines += [f"  re-initialised, {why}: {groups(names)}" for why, names in self.reinitialised.items()]
        lines += [f"  unused: {groups(self.unused)}"] if self.unused else []
        return "\n".join(lines)


def groups(names: Iterable[str], most: int = 4) -> str:
    """`sem_seg_head.predictor.* (117), backbone.norm0.* (2)`: the largest groups by prefix."""
    names = list(names)
    if len(names) <= most:
        return ", ".join(clipped(name) for name in names)
    depth = next((d for d in (3, 2, 1) if len(_count(names, d)) <= most), 1)
    counted = _count(names, depth).most_common()
    text = ", ".join(f"{clipped(prefix)}.* ({number})" for prefix, number in counted[:most])
    rest = sum(number for _, number in counted[most:])
    return text + (f", and {rest} more" if rest else "")


def _count(names: list[str], depth: int) -> Counter:
    return Counter(".".join(name.split(".")[:depth]) for name in names)

"""How augmentations are called: draw a transform from an input, apply it to all of the input, return it."""

import inspect
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from fvcore.transforms.transform import Transform, TransformList


class AugInput:
    """An image and what must move along with it.

    Subclasses may hold more; they then override `transform`. Augmentations read attributes by name.

    Attributes:
        image: (H, W) or (H, W, C).
        boxes: (N, 4) XYXY_ABS, or None.
        sem_seg: (H, W) labels, or None.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        """
        Raises:
            AssertionError: if the image is no array of two or three axes.
        """
        assert isinstance(image, np.ndarray), f"AugInput needs an image as numpy array, got {type(image).__name__}."
        assert image.ndim in (2, 3), f"AugInput needs an image of (H, W) or (H, W, C), got shape {image.shape}."
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply a transform to everything, in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: "Sequence[Augmentation | Transform]") -> TransformList:
        """Augment this input, in place; returns what was done."""
        return AugmentationList(augmentations)(self)


class Augmentation:
    """Draws transforms.

    A subclass defines `get_transform`. The names of its arguments say which attributes of the `AugInput` it gets;
    a single argument is always the image. `input_args` names the attributes explicitly.
    """

    input_args: tuple[str, ...] | None = None

    def get_transform(self, *args: Any) -> Transform:
        raise NotImplementedError(f"{type(self).__name__} does not define get_transform.")

    def __call__(self, aug_input: AugInput) -> Transform:
        """Draw a transform, apply it to the input in place and return it.

        Raises:
            AttributeError: if the input lacks what `get_transform` asks for.
            AssertionError: if `get_transform` returns no transform.
        """
        drawn = self.get_transform(*self._arguments(aug_input))
        assert isinstance(drawn, Transform), (
            f"{type(self).__name__}.get_transform must return a Transform, got {type(drawn).__name__}."
        )
        aug_input.transform(drawn)
        return drawn

    def _arguments(self, aug_input: AugInput) -> list[Any]:
        if self.input_args is None:
            self.input_args = _argument_names(self)
        for name in self.input_args:
            if not hasattr(aug_input, name):
                raise AttributeError(
                    f"{type(self).__name__} needs '{name}', which {type(aug_input).__name__} does not have."
                )
        return [getattr(aug_input, name) for name in self.input_args]

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Store constructor arguments, given as `locals()`, as attributes."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Draw uniformly from [low, high), or from [0, low) when `high` is not given."""
        start, end = (0.0, low) if high is None else (low, high)
        return np.random.uniform(start, end, size)

    def __repr__(self) -> str:
        """The constructor call, without arguments that are at their default."""
        shown = []
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            if name == "self":
                continue
            if not hasattr(self, name):
                return super().__repr__()
            value = getattr(self, name)
            if value is not parameter.default:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _argument_names(augmentation: Augmentation) -> tuple[str, ...]:
    """Which attributes of the input `get_transform` asks for."""
    parameters = inspect.signature(augmentation.get_transform).parameters.values()
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(
                f"{type(augmentation).__name__}.get_transform takes *args or **kwargs, so its inputs have no names. "
                "Name its arguments, or set `input_args`."
            )
    return ("image",) if len(parameters) == 1 else tuple(parameter.name for parameter in parameters)


class _Fixed(Augmentation):
    """A transform where an augmentation is expected."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)


def _as_augmentation(aug: "Augmentation | Transform") -> Augmentation:
    if isinstance(aug, Augmentation):
        return aug
    if isinstance(aug, Transform):
        return _Fixed(aug)
    raise TypeError(f"Expected an Augmentation or a Transform, got {type(aug).__name__}.")


class AugmentationList(Augmentation):
    """Augmentations one after the other, each drawn from what the one before has left."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        self.augs = [_as_augmentation(aug) for aug in augs]

    def __call__(self, aug_input: AugInput) -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(repr, self.augs))}]"


Input = TypeVar("Input", np.ndarray, AugInput)


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: Input
) -> tuple[Input, TransformList]:
    """Augment an image, or an `AugInput` in place.

    Returns:
        what came in, augmented, and what was done to it.
    """
    if isinstance(inputs, AugInput):
        return inputs, AugmentationList(augmentations)(inputs)
    aug_input = AugInput(inputs)
    done = AugmentationList(augmentations)(aug_input)
    return aug_input.image, done


# Earlier names of the same things.
apply_transform_gens = apply_augmentations
TransformGen = Augmentation
StandardAugInput = AugInput

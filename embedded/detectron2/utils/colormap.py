"""A fixed palette whose neighbouring entries are easy to tell apart."""

import colorsys

import numpy as np

NUM_COLORS = 74
# (saturation, value) taken in turn: three families, so that colours of a similar hue still differ.
_TONES = ((0.85, 0.95), (0.55, 1.0), (0.9, 0.68))
_GOLDEN_RATIO = 0.6180339887


def _palette() -> np.ndarray:
    """(74, 3) float32 RGB in [0, 1]; steps of the golden ratio never come back close to a recent hue."""
    hues = [(0.58 + i * _GOLDEN_RATIO) % 1.0 for i in range(NUM_COLORS)]
    return np.array([colorsys.hsv_to_rgb(hue, *_TONES[i % 3]) for i, hue in enumerate(hues)], dtype=np.float32)


_COLORS = _palette()


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """The whole palette.

    Args:
        rgb: RGB order; otherwise BGR, as OpenCV wants it.
        maximum: 255 or 1, the value of full intensity.

    Returns:
        (74, 3) float32 in [0, maximum].
    """
    if maximum not in (255, 1):
        raise ValueError(f"maximum must be 255 or 1, not {maximum!r}")
    colors = _COLORS * maximum
    return colors if rgb else colors[:, ::-1]


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One entry of the palette, drawn with NumPy's global generator; (3,) float32."""
    return colormap(rgb, maximum)[np.random.randint(NUM_COLORS)]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """N entries of the palette in random order; none comes twice before all have come once."""
    rounds = [np.random.permutation(NUM_COLORS) for _ in range(-(-N // NUM_COLORS))]
    order = np.concatenate(rounds)[:N].tolist() if rounds else []
    colors = colormap(rgb, maximum)
    return [colors[i] for i in order]

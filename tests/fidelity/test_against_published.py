"""Our answers against those of the published code, recorded by running it outside this project (docs/fidelity.md).

The models are narrow, but of the published structure, and come from the published config files; see `cases.py`.
"""

from pathlib import Path

import cases
import data_cases
import digest
import numpy as np
import pytest

RECORDED = Path(__file__).parent / "recorded"
GUARDED = [
    "coco_panoptic_r50",
    "coco_instance_swin_tiny",
    "ade20k_semantic_swin_base",
    "cityscapes_panoptic_r101",
    "cityscapes_semantic_swin_tiny",
    "mapillary_panoptic_swin_large",
    "maskformer_semantic_r50",
    "maskformer_encoder_panoptic_r50",
]
TOLERANCE = {
    "class_logits": 1e-5,  # of the largest; float32 rounding through the model is about 1e-6
    "mask_logits": 1e-5,
    "semantic": 1e-4,
    "instance_scores": 1e-4,
    "instance_classes": 0,
    "instance_masks": 2,  # pixels with a logit of 0 but for rounding
    "panoptic_segments": 0,
    "panoptic_ids": 3,
    "loss": 1e-5,
}


@pytest.fixture(scope="module", params=GUARDED)
def answers(request):
    """Digests: ours, recorded."""
    case = cases.CASES[request.param]
    return digest.digest(cases.answers(case, cases.config(case))), digest.load(RECORDED / f"{request.param}.npz")


def check(answers, kinds, at_least):
    """All recorded answers of these kinds are met."""
    ours, recorded = answers
    names = [name for name in recorded if name.split("/")[0] in kinds]
    assert len(names) >= at_least and all(name in ours for name in names)
    differences = {name: digest.difference(name, ours[name], recorded[name]) for name in names}
    wrong = {name: x for name, x in differences.items() if x > TOLERANCE[name.split("/")[0]]}
    assert not wrong, wrong


def test_logits_of_every_layer(answers):
    check(answers, {"class_logits", "mask_logits"}, 8)


def test_results(answers):
    check(answers, set(TOLERANCE) - {"class_logits", "mask_logits", "loss"}, 2)


def test_losses(answers):
    check(answers, {"loss"}, 12)


def test_gradients(answers):
    ours, recorded = answers
    names = [name for name in recorded if name.startswith("gradient/")]
    assert set(names) == {name for name in ours if name.startswith("gradient/")} and len(names) > 150
    scale = max(float(np.abs(recorded[name]).max()) for name in names)
    # Where the true gradient is 0, as of biases before a softmax, only rounding is left.
    names = [name for name in names if np.abs(recorded[name]).max() > 1e-4 * scale]
    differences = {name: digest.difference(name, ours[name], recorded[name]) for name in names}
    # A rectifier whose input is 0 but for rounding lets a gradient pass on one side only: that changes some.
    assert np.quantile(list(differences.values()), 0.5) < 1e-4, differences
    assert max(differences.values()) < 0.03, differences


def test_semantic_scores_of_augmented_images():
    case = cases.CASES["cityscapes_semantic_swin_tiny"]
    ours = digest.digest(cases.augmented(case, cases.config(case)))
    for name, recorded in digest.load(RECORDED / "augmented.npz").items():
        assert digest.difference(name, ours[name], recorded) < 1e-4


@pytest.mark.parametrize("mapper", data_cases.MAPPERS)
def test_mappers_under_fixed_random_states(mapper, tmp_path):
    """Images bit by bit, masks to the pixel, and as many random numbers drawn."""
    ours = data_cases.mapped(tmp_path, mapper)
    recorded = digest.load(RECORDED / f"mapper_{mapper}.npz")
    dropped = 0
    for state in sorted({name.split("/")[1] for name in recorded}, key=int):
        at = f"{mapper}/{state}/"
        # Published mappers keep a target that a crop has left without a pixel; ours do not.
        filled = recorded[at + "masks"] > 0
        dropped += int((~filled).sum())
        assert (ours[at + "masks"].sum((1, 2)) == recorded[at + "masks"][filled]).all()
        assert (ours[at + "classes"] == recorded[at + "classes"][filled]).all()
        for key in ("image", "size", "sem_seg", "drawn"):
            if at + key in recorded:
                found = digest.digest({at + key: ours[at + key]})[at + key]
                np.testing.assert_allclose(found, recorded[at + key], rtol=1e-6)
    assert dropped == {"panoptic": 11, "instance": 9, "panoptic_lsj": 2}.get(mapper, 0)

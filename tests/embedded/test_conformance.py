"""`embedded/` against numbers recorded from the original detectron2: what is drawn, in which order, and written how.

The functions below give the numbers on either one; `recorded/` holds those of the original.
"""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler
from detectron2.projects.point_rend import ColorAugSSDTransform
from torch import nn

RECORDED = Path(__file__).parent / "recorded"


def image(height=45, width=61):
    yy, xx = np.mgrid[0:height, 0:width]
    return np.stack([(yy * 5 + xx * 3) % 256, (yy * xx) % 256, (255 - xx * 4) % 256], -1).astype(np.uint8)


AUGMENTATIONS = {
    "shortest edge, choice": lambda: T.ResizeShortestEdge([20, 30, 50], 70, "choice"),
    "shortest edge, range": lambda: T.ResizeShortestEdge((20, 50), 70, "range"),
    "scale": lambda: T.ResizeScale(0.1, 2.0, 64, 64),
    "fixed crop": lambda: T.FixedSizeCrop((40, 80)),
    "crop": lambda: T.RandomCrop("relative_range", (0.4, 0.6)),
    "crop by area": lambda: T.RandomCrop_CategoryAreaConstraint("absolute", (20, 30), 0.6, 255),
    "flip": lambda: T.RandomFlip(),
    "brightness": lambda: T.RandomBrightness(0.5, 1.5),
    "contrast": lambda: T.RandomContrast(0.5, 1.5),
    "saturation": lambda: T.RandomSaturation(0.5, 1.5),
    "rotation": lambda: T.RandomRotation([-30, 30]),
    "colours": lambda: ColorAugSSDTransform(img_format="RGB"),
}


def transformed(name):
    """For six states: size, some pixels, some labels, a point, and what is drawn next."""
    numbers = []
    labels = (image()[..., 1] // 64).astype("double")
    for state in range(6):
        random.seed(state)
        np.random.seed(state)
        given = T.AugInput(image(), sem_seg=labels)
        augmentation = AUGMENTATIONS[name]()
        transforms = T.AugmentationList([augmentation])(given)
        numbers += [
            *given.image.shape,
            *given.image.reshape(-1)[::97].tolist(),
            *given.sem_seg.reshape(-1)[::211].tolist(),
        ]
        if name not in ("colours", "brightness", "contrast", "saturation"):
            numbers += transforms.apply_coords(np.array([[10.5, 20.25]])).reshape(-1).tolist()
        numbers += [np.random.rand(), random.random()]
    return numbers


def orders():
    """What samplers give."""
    first = lambda sampler, count: [int(i) for i in itertools.islice(iter(sampler), count)]
    factors = torch.tensor([1.0, 1.5, 3.0, 1.0, 2.25])
    return {
        "training": first(TrainingSampler(7, seed=11), 25),
        "in order": first(TrainingSampler(5, shuffle=False, seed=3), 12),
        "repeated": first(RepeatFactorTrainingSampler(factors, seed=5), 40),
        "inference": list(InferenceSampler(6)),
    }


def schedules():
    """Learning rates of 20 iterations."""
    found = {}
    for name in ("WarmupMultiStepLR", "WarmupPolyLR", "WarmupCosineLR"):
        cfg = get_cfg()
        add_deeplab_config(cfg)
        cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = name, 20, (8, 15)
        cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 4, 0.1
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        scheduler = build_lr_scheduler(cfg, optimizer)
        rates = []
        for _ in range(20):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        found[name] = rates
    return found


def training_state():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.arange(12.0).view(4, 3).sin() + step).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RECORDED / "numbers.json").read_text())


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_under_fixed_random_states(recorded, name):
    assert transformed(name) == pytest.approx(recorded["augmentations"][name], abs=1e-6)


def test_orders_of_samplers(recorded):
    assert orders() == recorded["orders"]


def test_learning_rates(recorded):
    for name, rates in schedules().items():
        assert rates == pytest.approx(recorded["schedules"][name], rel=1e-7), name


def test_a_checkpoint_of_the_original_goes_on_here(tmp_path):
    model, optimizer = training_state()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data.add_(1)
    (tmp_path / "model.pth").write_bytes((RECORDED / "checkpoint.pth").read_bytes())
    rest = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).load(str(tmp_path / "model.pth"))
    assert rest["iteration"] == 2
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert optimizer.state_dict()["state"][0]["step"] == 3


def test_a_checkpoint_has_the_contents_of_the_originals(tmp_path):
    model, optimizer = training_state()
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model", iteration=2)
    ours, theirs = (
        torch.load(path, weights_only=True) for path in (tmp_path / "model.pth", RECORDED / "checkpoint.pth")
    )
    assert set(ours) == set(theirs) and list(ours["model"]) == list(theirs["model"])
    assert ours["model"]._metadata == theirs["model"]._metadata
    assert ours["optimizer"]["param_groups"][0].keys() == theirs["optimizer"]["param_groups"][0].keys()

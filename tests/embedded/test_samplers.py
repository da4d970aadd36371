"""Orders of images, over epochs and processes."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm


def first(sampler, count):
    return list(islice(iter(sampler), count))


def as_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)


def test_the_training_order_is_the_recorded_one():
    assert first(TrainingSampler(5, seed=42), 12) == [2, 4, 3, 0, 1, 1, 4, 3, 2, 0, 0, 2]
    assert first(TrainingSampler(5, seed=-1), 6) == [1, 3, 4, 2, 0, 0]
    assert first(TrainingSampler(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_a_sampler_starts_anew_with_each_iteration():
    sampler = TrainingSampler(9, seed=1)
    assert first(sampler, 20) == first(sampler, 20)


def test_without_a_seed_numpy_decides():
    np.random.seed(3)
    one = first(TrainingSampler(50), 50)
    np.random.seed(3)
    assert first(TrainingSampler(50), 50) == one
    assert first(TrainingSampler(50), 50) != one


def test_processes_share_one_order(monkeypatch):
    alone = first(TrainingSampler(5, seed=42), 12)
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        assert first(TrainingSampler(5, seed=42), 4) == alone[rank::3]


def test_a_size_must_be_a_positive_int():
    with pytest.raises(ValueError, match="positive"):
        TrainingSampler(0)
    with pytest.raises(TypeError, match="int"):
        TrainingSampler(2.0)


def test_a_random_subset_stays_the_same_over_epochs():
    sampler = RandomSubsetTrainingSampler(10, 0.35, seed_shuffle=1, seed_subset=2)
    epochs = np.array(first(sampler, 30)).reshape(10, 3)
    assert len({frozenset(epoch) for epoch in epochs.tolist()}) == 1
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1
    other = RandomSubsetTrainingSampler(10, 0.35, seed_shuffle=1, seed_subset=3)
    assert set(first(other, 3)) != set(epochs[0].tolist())


def test_a_fractional_repeat_factor_is_met_on_average():
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.0, 1.5]), seed=0)
    counts = Counter(first(sampler, 4500))  # about 1000 epochs of 4.5
    assert counts[1] / counts[0] == pytest.approx(2, rel=0.01)
    assert counts[2] / counts[0] == pytest.approx(1.5, rel=0.05)


def test_repeat_factors_by_hand():
    def image(*categories):
        return {"annotations": [{"category_id": category} for category in categories]}

    dicts = [image(0), image(0, 0), image(0, 1), image(), image(0)]  # f = 4/5 and 1/5
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    assert factors(dicts, 0.8).tolist() == [1, 1, 2, 1, 1]  # sqrt(0.8 / 0.2) = 2
    assert factors(dicts, 0.8, sqrt=False).tolist() == pytest.approx([1, 1, 4, 1, 1])
    assert factors(dicts, 0.1).tolist() == [1] * 5


def test_inference_shares_are_contiguous_and_complete(monkeypatch):
    shares = []
    for rank in range(4):
        as_rank(monkeypatch, rank, 4)
        sampler = InferenceSampler(10)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1])
    assert shares == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]


def test_inference_shares_may_be_empty_but_not_the_data(monkeypatch):
    with pytest.raises(AssertionError):
        InferenceSampler(0)
    as_rank(monkeypatch, 3, 4)
    assert list(InferenceSampler(2)) == []

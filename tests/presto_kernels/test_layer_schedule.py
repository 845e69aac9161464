"""Which blocks run at which noise level."""

import json
import math

import numpy as np
import pytest
import torch

from presto_kernels import LayerSchedule

FOUR_STEP_WALK = (80.0, 17.5, 2.52, 0.17)


def test_the_four_step_walk_runs_62_of_96_blocks():
    schedule = LayerSchedule.default(24)
    assert [schedule.budget(s) for s in FOUR_STEP_WALK] == [10, 14, 18, 20]
    assert sum(len(schedule.kept(s)) for s in FOUR_STEP_WALK) == 62


def test_kept_blocks_are_the_first_and_the_last():
    schedule = LayerSchedule(6, (1.0,), (5, 3), keep_last=2)
    assert schedule.kept(0.5) == (0, 1, 2, 4, 5)
    assert schedule.kept(2.0) == (0, 4, 5)


def test_keep_last_zero_drops_the_last_blocks():
    assert LayerSchedule(6, (), (4,), keep_last=0).kept(1.0) == (0, 1, 2, 3)


def test_keeping_everything_keeps_every_block_once():
    for keep_last in (0, 1, 3, 6):
        assert LayerSchedule.full(6, keep_last=keep_last).kept(7.0) == tuple(range(6))


def test_a_budget_of_only_the_last_blocks():
    assert LayerSchedule(6, (), (2,), keep_last=2).kept(1.0) == (4, 5)


def test_an_edge_belongs_to_the_noisier_side():
    schedule = LayerSchedule(24, (0.8, 6.0, 40.0), (20, 18, 14, 10))
    for edge, noisier, cleaner in ((0.8, 18, 20), (6.0, 14, 18), (40.0, 10, 14)):
        assert schedule.budget(edge) == noisier
        assert schedule.budget(math.nextafter(edge, 0.0)) == cleaner
    assert schedule.budget(0.0) == 20
    assert schedule.budget(math.inf) == 10


@pytest.mark.parametrize(
    ("num_blocks", "budgets"),
    [(24, (20, 18, 14, 10)), (12, (10, 9, 7, 5)), (8, (7, 6, 5, 3)), (48, (40, 36, 28, 20)), (1, (1, 1, 1, 1))],
)
def test_the_default_scales_with_depth(num_blocks, budgets):
    assert LayerSchedule.default(num_blocks).budgets == budgets


def test_the_default_never_goes_below_keep_last():
    assert min(LayerSchedule.default(8, keep_last=5).budgets) == 5


def test_it_survives_json():
    schedule = LayerSchedule.default(24, keep_last=2)
    assert LayerSchedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


def test_numpy_numbers_are_stored_as_plain_ones():
    schedule = LayerSchedule(np.int64(8), list(np.array([0.5, 2.0])), list(np.array([8, 5, 4])))
    assert schedule == LayerSchedule(8, (0.5, 2.0), (8, 5, 4))
    assert hash(schedule) == hash(LayerSchedule(8, (0.5, 2.0), (8, 5, 4)))
    json.dumps(schedule.to_dict())
    assert schedule.budget(np.float32(0.6)) == 5


@pytest.mark.parametrize("sigma", [torch.tensor(1.0), torch.ones(2), "1", None, True])
def test_a_sigma_that_is_no_plain_number_is_refused(sigma):
    with pytest.raises(TypeError, match="plain number"):
        LayerSchedule.default(24).kept(sigma)


@pytest.mark.parametrize("sigma", [-0.1, math.nan])
def test_a_sigma_below_zero_is_refused(sigma):
    with pytest.raises(ValueError, match="at least 0"):
        LayerSchedule.default(24).budget(sigma)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (), (1,)), "num_blocks"),
        ((8, (1.0,), (8,)), "one entry more"),
        ((8, (2.0, 1.0), (8, 7, 6)), "strictly increasing"),
        ((8, (1.0, 1.0), (8, 7, 6)), "strictly increasing"),
        ((8, (0.0,), (8, 7)), "positive"),
        ((8, (math.inf,), (8, 7)), "finite"),
        ((8, (), (9,)), "budgets"),
        ((8, (), (0,)), "budgets"),
        ((8, (), (2,), 3), "budgets"),
        ((8, (), (8,), 9), "keep_last"),
        ((8, (), (8,), -1), "keep_last"),
    ],
)
def test_values_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LayerSchedule(*arguments)


def test_budgets_must_be_ints():
    with pytest.raises(TypeError, match=r"budgets\[1\]"):
        LayerSchedule(8, (1.0,), (8, 7.5))

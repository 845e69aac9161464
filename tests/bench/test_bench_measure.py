"""Interleaved, paired timing: a planted difference is seen whatever the machine does meanwhile, and Ctrl-C keeps what
is whole.
"""

import numpy as np
import pytest

from bench.measure import Ratio, cpu_timer, interleave, paired_ratio, percentile_interval, repeats_for


class FakeClock:
    """Time passes only when a planted function says so; `speed` makes the whole machine slower or faster."""

    def __init__(self):
        self.now, self.speed = 0.0, 1.0

    def __call__(self):
        return self.now

    def takes(self, milliseconds):
        def function():
            self.now += milliseconds * 1e-3 * self.speed

        return function


def test_a_function_twice_as_slow_is_seen_as_two_on_a_machine_that_drifts():
    clock = FakeClock()
    timers = {name: cpu_timer(clock.takes(ms), clock=clock) for name, ms in (("ours", 1.0), ("theirs", 2.0))}
    wobble = np.random.default_rng(0)

    def slower(share):
        clock.speed = 1 + 9 * share + wobble.random()

    samples = interleave(timers, rounds=40, on_progress=slower, clock=clock)
    ratio = paired_ratio(samples, "theirs", "ours")
    assert samples.rounds == 40
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    assert samples.percentile("ours", 95) > 5 * samples.ms("ours").min()


def test_equal_functions_have_an_interval_around_one():
    noise = np.random.default_rng(1)
    measures = {name: lambda part: float(noise.lognormal(0, 0.2)) for name in ("a", "b")}
    ratio = paired_ratio(interleave(measures, rounds=200), "a", "b")
    assert ratio.low < 1 < ratio.high
    assert ratio.low > 0.9 and ratio.high < 1.1


def test_every_round_runs_everything_once_and_the_order_changes():
    calls = []
    measures = {name: lambda part, name=name: calls.append((name, part)) or 1.0 for name in "abcd"}
    interleave(measures, rounds=20, parts=2, warmup=0)
    rounds = [calls[i : i + 4] for i in range(0, len(calls), 4)]
    assert [{part for _, part in r} for r in rounds] == [{0}, {1}] * 20
    assert all({name for name, _ in r} == set("abcd") for r in rounds)
    assert len({tuple(name for name, _ in r) for r in rounds}) > 5


def order(seed, rounds=30):
    calls = []
    interleave({name: lambda part, name=name: calls.append(name) or 1.0 for name in "abcd"}, rounds=rounds, seed=seed)
    return calls


def test_the_order_is_random_but_the_same_for_the_same_seed():
    assert order(0) == order(0) != order(1)
    first = order(0, rounds=400)[::4]
    assert all(0.15 < first.count(name) / len(first) < 0.35 for name in "abcd")


def test_warm_up_rounds_are_not_kept():
    values = iter([100.0, 1.0, 1.0, 1.0])
    samples = interleave({"a": lambda part: next(values)}, rounds=3, warmup=1)
    assert samples.ms("a").tolist() == [1.0, 1.0, 1.0]


def test_a_time_limit_ends_it_once_the_least_rounds_are_in():
    clock = FakeClock()
    timers = {"a": cpu_timer(clock.takes(400.0), clock=clock)}
    assert interleave(timers, rounds=100, seconds=2.0, clock=clock).rounds == 5
    assert interleave(timers, rounds=100, seconds=0.1, min_rounds=3, clock=clock).rounds == 3


def test_a_round_that_began_in_time_is_finished_for_all():
    clock = FakeClock()
    timers = {name: cpu_timer(clock.takes(300.0), clock=clock) for name in "ab"}
    samples = interleave(timers, parts=2, rounds=100, seconds=2.0, min_rounds=1, warmup=0, clock=clock)
    assert samples.rounds == 2
    assert {len(values) for parts in samples.times.values() for values in parts} == {2}
    assert clock.now == pytest.approx(2 * 2 * 2 * 0.3)


def test_warm_up_is_not_counted_into_the_time():
    clock = FakeClock()
    timers = {"a": cpu_timer(clock.takes(500.0), clock=clock)}
    assert interleave(timers, rounds=100, seconds=2.0, min_rounds=1, warmup=9, clock=clock).rounds == 4


def test_the_mean_of_many_calls_is_what_one_takes():
    clock, calls = FakeClock(), []
    timer = cpu_timer(lambda: (calls.append(1), clock.takes(1.0 + len(calls) % 2)()), repeats=10, clock=clock)
    assert timer(0) == pytest.approx(1.5)
    assert len(calls) == 10


def test_each_call_is_prepared_once():
    clock, calls = FakeClock(), []
    timer = cpu_timer(lambda: calls.append("call"), prepare=lambda: calls.append("prepare"), repeats=3, clock=clock)
    timer(0)
    assert calls == ["prepare", "call"] * 3


def test_ctrl_c_keeps_whole_parts_and_drops_the_broken_one():
    calls = 0

    def stops_at_the_tenth(part):
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return 1.0

    samples = interleave({"a": stops_at_the_tenth, "b": stops_at_the_tenth}, rounds=50, parts=3, warmup=0)
    assert samples.interrupted
    assert samples.rounds == 1
    assert [len(values) for values in samples.times["a"]] == [2, 1, 1]
    assert [len(values) for values in samples.times["b"]] == [2, 1, 1]
    assert samples.ms("a").tolist() == [3.0]
    assert paired_ratio(samples, "a", "b").median == 1


def test_nothing_measured_gives_no_ratio_and_no_percentile():
    def stop(part):
        raise KeyboardInterrupt

    samples = interleave({"a": stop, "b": stop}, rounds=5)
    assert samples.rounds == 0
    assert paired_ratio(samples, "a", "b") is None
    assert samples.percentile("a", 50) is None
    assert paired_ratio(samples, "a", "not measured") is None


@pytest.mark.parametrize(("percent", "fewest"), [(50, 6), (95, 72), (99, 368)])
def test_an_interval_of_a_percentile_needs_enough_values(percent, fewest):
    values = np.random.default_rng(0).random(fewest)
    assert percentile_interval(values[:-1], percent) is None
    low, high = percentile_interval(values, percent)
    assert low < high and {low, high} <= set(values)


def test_an_interval_of_a_percentile_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        low, high = percentile_interval(draw.exponential(size=200), 95)
        held += low <= -np.log(0.05) <= high
    assert 0.93 < held / 400 <= 1


def test_what_prepares_a_call_is_not_timed():
    clock = FakeClock()
    timer = cpu_timer(clock.takes(3.0), prepare=clock.takes(50.0), repeats=4, clock=clock)
    assert timer(0) == pytest.approx(3.0)


def test_short_functions_are_repeated_and_long_ones_are_not():
    clock = FakeClock()
    assert repeats_for(clock.takes(0.1), 2.0, clock=clock) == 20
    assert repeats_for(clock.takes(5.0), 2.0, clock=clock) == 1


def test_a_function_that_takes_no_time_is_not_repeated_for_ever():
    clock = FakeClock()
    assert repeats_for(clock.takes(0.0), 2.0, clock=clock) == 1000


@pytest.mark.parametrize(
    ("ratio", "clear"),
    [
        ((1.30, 1.25, 1.36), True),
        ((0.80, 0.75, 0.85), True),
        ((1.02, 0.99, 1.05), False),  # may be equal
        ((1.05, 1.01, 1.20), False),  # may be four times the difference reported
        ((1.00, 1.00, 1.00), True),  # itself
    ],
)
def test_a_ratio_is_clear_where_its_interval_says_so(ratio, clear):
    assert Ratio(*ratio, rounds=9).clear is clear

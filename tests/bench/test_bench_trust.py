"""Implementations that are wrong, forgetful or too clever are refused by `bench ops` by name; honest ones are timed.

Time passes only when an implementation says that it works, so that every ratio is what was planted.
"""

import dataclasses

import numpy as np
import pytest
import torch

from bench import checks, ops, trust
from bench.op_cases import OPS, Case
from bench.op_implementations import Implementation
from bench.results import Report

CPU = torch.device("cpu")
OPTIONS = ops.OpsOptions(compile=False, rounds=5)
honest = OPS["adaln_modulate"].eager


class Clock:
    """Reading it costs a nanosecond: nothing takes no time at all."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1e-9
        return self.now

    def work(self, milliseconds):
        self.now += milliseconds * 1e-3


def case_of(presto, clock, *, eager=None, backward=False, op="adaln_modulate"):
    """A case whose presto is this function and whose eager PyTorch takes two milliseconds."""

    def plain(*inputs, **constants):
        clock.work(2.0)
        return OPS[op].eager(*inputs, **constants)

    return Case(dataclasses.replace(OPS[op], presto=presto, eager=eager or plain), (1, 5, 64), "fp32", backward, CPU)


def measured(presto, clock, **options):
    report = Report({"ceilings": {"copy_gbs": 10.0, "matmul_tflops": {"fp32": 1.0}}})
    rows, interrupted = ops.measure_case(case_of(presto, clock, **options), OPTIONS, report, "test", clock=clock)
    assert not interrupted
    return {row["implementation"]: row for row in rows}, report


def refused(presto, reason, *, clock=None, **options):
    """Asserts that every one of presto's is refused for this reason and has no rows; gives the message."""
    rows, report = measured(presto, clock or Clock(), **options)
    assert rows.keys() == {"eager", "copy"}
    assert report.refused and not report.summary
    assert all(refusal["implementation"].startswith("presto") for refusal in report.refused)
    assert all(refusal["reason"].startswith(f"{reason.__name__}: ") for refusal in report.refused), report.refused
    return report.refused[0]["reason"]


def remembers(key, *, copies=True, after=0):
    """Computes what it has not computed before, and gives that again for the same key; from its `after`-th call on."""
    seen, calls = {}, 0

    def implementation(*inputs):
        nonlocal calls
        calls += 1
        if calls <= after:
            return honest(*inputs)
        if key(*inputs) not in seen:
            seen[key(*inputs)] = honest(*inputs)
        return tuple(t.clone() for t in seen[key(*inputs)]) if copies else seen[key(*inputs)]

    return implementation


def test_the_honest_are_timed_and_their_ratio_is_what_was_planted():
    clock = Clock()

    def presto(*inputs):
        clock.work(1.0)
        return honest(*inputs)

    rows, report = measured(presto, clock)
    assert not report.refused
    assert {"eager", "copy", "presto reference"} <= rows.keys()
    row = rows["presto reference"]
    assert row["ms_p50"] == pytest.approx(1.0, rel=1e-3)
    assert row["eager_over_this"] == pytest.approx(2.0, rel=1e-3)
    assert row["deterministic"] is True and rows["copy"]["deterministic"] is None
    assert len(report.summary) == 1


def test_an_honest_backward_that_passes_a_gradient_through_is_timed():
    rows, report = measured(OPS["gated_residual"].presto, Clock(), op="gated_residual", backward=True)
    assert not report.refused and "presto reference" in rows


def test_wrong():
    assert "BEYOND the allowed" in refused(
        lambda x, scale, shift: (honest(x, scale, shift)[0] + 0.1,), checks.WrongResult
    )


def test_wrong_on_the_second_input_set_only():
    known = []

    def presto(x, scale, shift):
        known.append(x.clone())
        return (honest(x, scale, shift)[0] + (0.0 if torch.equal(x, known[0]) else 0.1),)

    refused(presto, checks.WrongResult)


def test_other_bits_on_a_second_call():
    def presto(*inputs):
        (y,) = honest(*inputs)
        return (y + 1e-8 * torch.randn_like(y),)

    assert "second call" in refused(presto, checks.Nondeterministic)


def test_of_baselines_it_is_only_noted_that_their_bits_differ():
    clock = Clock()

    def plain(*inputs):
        (y,) = honest(*inputs)
        return (y + 1e-8 * torch.randn_like(y).to(y.dtype),)

    rows, report = measured(honest, clock, eager=plain)
    assert not report.refused
    assert rows["eager"]["deterministic"] is False and rows["presto reference"]["deterministic"] is True


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize(
    "key",
    [
        lambda *inputs: inputs[0].data_ptr(),
        lambda *inputs: tuple((id(t), t._version) for t in inputs),
        lambda *inputs: inputs[0].shape,
    ],
    ids=["address", "version", "shape"],
)
def test_remembered_results(key, copies):
    message = refused(remembers(key, copies=copies), checks.Cheating)
    assert ("lies in the memory of" in message) is not copies


def test_results_remembered_by_content_show_in_the_time_that_new_inputs_take():
    clock, seen = Clock(), {}

    def presto(*inputs):
        key = tuple(float(t.sum()) for t in inputs)
        if key not in seen:
            clock.work(1.0)
            seen[key] = honest(*inputs)
        clock.work(0.1)
        return tuple(t.clone() for t in seen[key])

    assert "11.0 times faster on inputs it has seen" in refused(presto, checks.Cheating, clock=clock)


def test_results_remembered_only_once_it_is_timed():
    presto = remembers(lambda *inputs: inputs[0].data_ptr(), after=40)
    assert "new numbers" in refused(presto, checks.Cheating)


def test_an_output_buffer_that_is_used_again():
    buffer = torch.empty(1, 5, 64)
    message = refused(lambda *inputs: (buffer.copy_(honest(*inputs)[0]),), checks.Cheating)
    assert "call 2 lies in the memory of call 1's result" in message


def test_two_buffers_in_turn():
    buffers, calls = (torch.empty(1, 5, 64), torch.empty(1, 5, 64)), []

    def presto(*inputs):
        calls.append(1)
        return (buffers[len(calls) % 2].copy_(honest(*inputs)[0]),)

    assert "lies in the memory of" in refused(presto, checks.Cheating)


def test_a_result_in_its_inputs_memory():
    refused(lambda x, scale, shift: (x.copy_(honest(x, scale, shift)[0]),), checks.Cheating)


@pytest.mark.parametrize(
    ("skips", "kind"),
    [
        (lambda x, scale, shift: not scale.any(), "zeros"),
        (lambda x, scale, shift: bool(x.any() and x.min() == x.max()), "a constant"),
    ],
)
def test_work_that_is_skipped(skips, kind):
    clock = Clock()

    def presto(*inputs):
        clock.work(0.25 if skips(*inputs) else 1.0)
        return honest(*inputs)

    assert f"4.0 times faster on {kind}" in refused(presto, checks.SkipsWork, clock=clock)


def test_a_little_faster_on_zeros_is_what_machines_do():
    clock = Clock()

    def presto(x, scale, shift):
        clock.work(1.0 if scale.any() else 1 / 1.4)
        return honest(x, scale, shift)

    _, report = measured(presto, clock)
    assert not report.refused


def test_one_disturbed_round_is_looked_at_longer_and_refuses_nobody():
    noise = np.random.default_rng(0)
    values = {kind: iter(noise.lognormal(0, 0.4, 40)) for kind in trust.KINDS}
    values[checks.ZEROS] = iter([0.1, 0.1, 0.1, *noise.lognormal(0, 0.4, 40)])
    checks.shortcuts("ours", {kind: lambda part, v=v: next(v) for kind, v in values.items()})


def test_a_backward_that_skips_on_zeros():
    clock = Clock()

    class Skips(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            clock.work(1.0 if grad.any() else 0.1)
            return grad

    def presto(*inputs):
        return (Skips.apply(honest(*inputs)[0]),)

    assert "10.0 times faster on zeros" in refused(presto, checks.SkipsWork, clock=clock, backward=True)


def test_nothing_is_timed_on_data_that_is_not_random():
    with pytest.raises(ValueError, match="scale"):
        checks.random_data(("x", "scale"), (torch.randn(3), torch.zeros(3)))
    with pytest.raises(ValueError, match="x"):
        checks.random_data(("x",), (torch.full((4,), 0.5),))
    checks.random_data(("x", "sigma"), (torch.randn(3), torch.zeros(1)))


def test_tune_files_nothing_for_one_that_cheats():
    from bench import tune

    report = Report({})
    case = case_of(remembers(lambda *inputs: inputs[0].shape), Clock())
    assert tune.time_case(case, tune.TuneOptions(rounds=3, seconds=0.1), report) == {}
    assert {refusal["reason"].split(":")[0] for refusal in report.refused} == {"Cheating"}


def test_a_baseline_that_draws_its_own_numbers_is_not_compared():
    case = Case(OPS["renoise"], (2, 5, 64), "fp32", False, CPU)
    verdict = trust.Trial(case).before(Implementation("eager", case.op.eager))
    assert verdict == trust.Verdict(0.0, False)

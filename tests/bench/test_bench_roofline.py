"""Floors and predictions, against numbers worked out by hand."""

import tomllib

import pytest

from bench import counting_dit, roofline
from bench.cli import BadOption
from bench.counting import Count
from bench.roofline import DATASHEET, GIVEN, Ceiling, Efficiency
from presto_models import DiTConfig

COUNTS = {"moves": Count(2_000_000, 1, "", ""), "computes": Count(1, 30_000_000_000, "", "")}


def ceiling(gbs=1000.0, tflops=10.0):
    return Ceiling("mine", "bf16", gbs, tflops, GIVEN, "")


def test_the_floor_is_what_each_kind_must_wait_for_in_turn():
    # 2 MB at 1000 GB/s: 0.002 ms; 30 GFLOP at 10 TFLOP/s: 3 ms.
    assert ceiling().floor_ms(COUNTS) == pytest.approx(3.002)
    assert ceiling().floor_ms(COUNTS, Efficiency(0.5, 0.25)) == pytest.approx(0.004 + 12)
    assert ceiling().ridge == 10  # 10 TFLOP/s over 1 TB/s


def test_predictions_hold_bound_and_efficiency_of_a_step_and_of_generations():
    generations = {"full": [COUNTS] * 4, "scheduled": [COUNTS, {"moves": COUNTS["moves"]}]}
    found = roofline.predict([ceiling()], COUNTS, generations, Efficiency(0.5, 0.25))
    rate = found["mine"]["rates"]["bf16"]
    assert rate["step_ms"] == pytest.approx(3.002) and rate["step_ms_at_efficiency"] == pytest.approx(12.004)
    assert rate["full_ms"] == pytest.approx(12.008) and rate["scheduled_ms"] == pytest.approx(3.004)
    assert found["mine"]["basis"] == GIVEN and "not measured" in GIVEN
    assert found["mine"]["efficiency"] == {"memory": 0.5, "products": 0.25}


@pytest.mark.parametrize("name", roofline.DEVICES)
def test_every_device_has_its_numbers_and_where_they_are_from(name):
    with roofline.FILE.open("rb") as file:
        devices = tomllib.load(file)
    assert set(devices) == set(roofline.DEVICES)
    entry = devices[name]
    assert "datasheet" in entry["source"] or "technical brief" in entry["source"]
    rates = entry["tflops"]
    # Dense figures: bf16 = fp16 = twice TF32 (B200's is rounded), fp8 twice bf16 where there is any.
    assert rates["bf16"] == rates["fp16"] == pytest.approx(2 * rates["tf32"], rel=0.03)
    assert rates.get("fp8", 2 * rates["bf16"]) == pytest.approx(2 * rates["bf16"], rel=0.001)
    for dtype in roofline.RATES:
        for made in roofline.from_datasheet(name, dtype):
            assert made.basis == DATASHEET and "not measured" in made.basis
            assert made.matmul_tflops == rates[made.rate]


def test_fp32_is_told_from_tf32():
    assert [c.rate for c in roofline.from_datasheet("h100", "fp32")] == ["fp32", "tf32"]
    assert [c.rate for c in roofline.from_datasheet("a100", "bf16")] == ["bf16"]  # no fp8 there


def test_a_step_at_paper_scale_on_an_h100_is_a_millisecond_and_a_half():
    config = DiTConfig.named("presto-32s")
    step = counting_dit.dit_step(config, batch=1, length=1379, text_tokens=64, blocks=24, itemsize=2)
    (bf16, fp8) = roofline.from_datasheet("h100", "bf16")
    products = counting_dit.model_flops(step) / 989.4e9
    assert products < bf16.floor_ms(step) < 1.5 * products
    assert fp8.floor_ms(step) < bf16.floor_ms(step)


@pytest.mark.parametrize(
    "text", ["mine", "mine:1", "mine:x:1", "mine:0:1", "mine:1:-2", "mine:1:nan", ":1:2", "a:inf:1"]
)
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(BadOption, match=r"--device-numbers: .*name:GB/s:TFLOP/s"):
        roofline.from_numbers(text, "bf16")


def test_numbers_of_ones_own_are_labelled():
    made = roofline.from_numbers("a:b:3350:989", "bf16")
    assert (made.device, made.copy_gbs, made.matmul_tflops, made.basis) == ("a:b", 3350, 989, GIVEN)


@pytest.mark.parametrize("values", [(0.9,), (0.9, 0.0), (0.9, 1.5), (0.9, 0.8, 0.7)])
def test_an_efficiency_must_be_two_shares(values):
    with pytest.raises(BadOption, match="--efficiency"):
        roofline.efficiency_of(values)


def test_the_measured_ceiling_is_the_reports():
    meta = {"device": "here", "ceilings": {"copy_gbs": 20.0, "matmul_tflops": {"bf16": 0.4}}}
    made = roofline.measured(meta, "bf16")
    assert (made.copy_gbs, made.matmul_tflops, made.basis) == (20.0, 0.4, roofline.MEASURED)

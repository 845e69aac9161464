"""The bound that the reference's own profile sets, and how near presto comes."""

import pytest

from bench import steps
from bench.counting_dit import PRODUCTS
from bench.names import PRESTO, REFERENCE


def rows(name, product, other, whole):
    kinds = dict.fromkeys(PRODUCTS, product) | {"swiglu": other, "seams": other}
    kinds |= {steps.SUM: len(PRODUCTS) * product + 2 * other, steps.WHOLE: whole}
    return [{"implementation": name, "step": 0, "kind": kind, "ms_p50": ms} for kind, ms in kinds.items()]


def test_the_bound_is_all_of_the_reference_over_its_products_and_attention():
    summary = steps.bound([*rows(REFERENCE, 10, 15, 110), *rows(PRESTO, 9, 3.5, 80)])
    assert summary["bound"] == pytest.approx(100 / 70, abs=1e-4)
    assert summary["gain"] == pytest.approx(110 / 80)
    assert summary["gain_over_bound"] == pytest.approx(110 / 80 / (100 / 70), abs=1e-4)
    assert (summary["reference_other_share"], summary["presto_other_share"]) == (0.3, 0.1)
    lines = "\n".join(steps.bound_lines(summary))
    assert "100 ms over 70 ms" in lines and "1.429x" in lines and "1.375x, 0.96 of the bound" in lines


def test_without_presto_there_is_no_gain_to_speak_of():
    summary = steps.bound(rows(REFERENCE, 10, 15, 110))
    assert "gain" not in summary and steps.bound_lines(summary) == []

"""Small result files, one of each bench, as they are after a run on a GPU, and worse."""

import json

import numpy as np

from bench import results


def meta(**more):
    made = {"device": "Some GPU", "device_type": "cuda", "commit": "0123456789+dirty", "date": "2026-11-20T10:00:00"}
    made |= {"load_average": 0.1, "ceilings": {"copy_gbs": 3000.0, "matmul_tflops": {"bf16": 700.0, "fp32": 300.0}}}
    return made | more


def timed(milliseconds, **what):
    return what | results.sample_fields(milliseconds * np.linspace(0.99, 1.01, 11))


def ratio(name, value, width=0.02):
    return {name: value, f"{name}_interval": [value - width, value + width]}


def latency():
    around = [
        timed(each, stage=name, batch=1, mode="warm", implementation="presto")
        for name, each in (
            ("prompt", 3.0),
            ("prepare", 0.5),
            ("noise", 0.1),
            ("decode", 20.0),
            ("stereo", 9.0),
            ("total", 52.6),
        )
    ]
    steps = [
        timed(5.0, stage=f"step {i}", batch=1, mode="warm", implementation="presto", budget=20 - i) for i in range(4)
    ]
    around.append(timed(40.2, stage="total", batch=1, mode="graph", implementation="presto"))
    cold = [timed(900.0, stage="decode", batch=1, mode="cold", implementation="presto")]
    targets = [
        {"name": "mono", "output": "mono", "ms": 230, "source": "a paper", "hardware": "A100", "verdict": "met"},
        {"name": "fast", "output": "stereo", "ms": 22, "source": "a readme", "hardware": "H200", "verdict": "missed"},
    ]
    summary = {"total_ms": {"mono": 43.6, "stereo": 52.6}, "targets": targets} | ratio("reference_over_presto", 1.5)
    told = meta(marks=["throttled: power cap"], telemetry={"power_w": {"max": 690.0}, "reasons": ["sw power cap"]})
    return "latency", told, [*around, *steps, *cold], summary


def steps():
    kinds = [
        {
            "step": 0,
            "kind": kind,
            "implementation": side,
            "ms_p50": ms * slower,
            "bytes": 1e7,
            "flops": flops,
            "floor_ms": ms / 2,
            "share_of_ceiling": 0.5 / slower,
            "launches": 24,
            "gap_ms": 0.01,
            "tflops": 100.0,
        }
        for side, slower in (("reference", 2.0), ("presto", 1.0))
        for kind, ms, flops in (("qkv", 0.5, 1e10), ("swiglu", 0.1, 1e7))
    ]
    predicted = {"H100": {"copy_gbs": 3350, "rates": {"bf16": {"step_ms": 0.2}, "fp8": {"step_ms": 0.1}}}}
    return "steps", meta(), kinds, {"predicted": predicted}


def ops():
    shared = {
        "dtype": "bf16",
        "direction": "forward",
        "mode": "graph",
        "bytes": 1e7,
        "flops": 1e8,
        "share_of_floor": 0.8,
    }
    rows = [
        timed(0.01, op="swiglu", shape=[1, 9, 64], implementation="presto triton", auto=True, **shared)
        | ratio("eager_over_this", 1.6) | ratio("compile_over_this", 0.8),
        timed(0.016, op="swiglu", shape=[1, 9, 64], implementation="eager", auto=False, **shared)
        | ratio("eager_over_this", 1.0, 0.0),
        timed(0.02, op="snake", shape=[1, 8, 99], implementation="presto triton", auto=True, **shared)
        | ratio("eager_over_this", 1.01),
    ]  # fmt: skip
    return "ops", meta(), rows, {}


def scaling():
    rows = [
        timed(0.1 * value, axis="length", value=value, implementation=name, floor_ms=0.05 * value)
        for value in (256, 512, 1024)
        for name in ("reference", "presto")
    ]
    fit = {"exponent": 1.0, "exponent_interval": [0.9, 1.1], "coefficient": 0.1, "fixed_ms": 0.2, "fixed_share": 0.1}
    warnings = [f"warning: number {index}" for index in range(5)]
    return "scaling", meta(), rows, {"axes": {"length": {"presto": fit, "floor_exponent": 1.0}}, "warnings": warnings}


def ablate():
    rows = [
        timed(9.0 * value, ablation=name, part="total", implementation="presto", lossless=True)
        | ratio("over_all_on", value)
        for name, value in (("nothing", 1.0), ("seam fusion", 1.2), ("graph", 0.9))
    ]
    return "ablate", meta(), rows, {"saved": {"seam fusion": {"ms": 1.8, "ms_interval": [1.7, 1.9]}}}


def memory():
    rows = [
        {"stage": stage, "batch": 1, "latents": 1379, "implementation": name, "peak_bytes": peak}
        for stage in ("steps", "decode")
        for name, peak in (("reference", 4e9), ("presto", 1e9))
    ]
    return "memory", meta(device="Another GPU"), rows, {}


def gate():
    verdicts = (
        ("same", 0.001),
        ("slower", 0.05),
        ("faster", -0.1),
        ("inconclusive", 0.02),
        ("new", None),
        ("gone", None),
    )
    rows = [
        {"subject": f"row {name}", "verdict": name, "launches": [{"base": 1.0, "new": 1.1}] * 4}
        | ({} if change is None else {"change": change, "p_value": 0.001})
        | ({} if change is None else {"change_interval": [change - 0.001, None if name == "same" else change + 0.001]})
        for name, change in verdicts
    ]
    return "gate", meta(baseline_commit="abcdef0123"), rows, {"fail_above": 0.03, "verdict": "slower"}


def nobody():
    return (
        "a bench of tomorrow",
        {},
        [{"thing": [1, {"x": 2}], "ms_p50": None}, {"implementation": None}, {}],
        {"x": []},
    )


def aot():
    rows = [{"kernel": "seam", "arch": 90, "dtype": "bf16", "implementation": "cuda", "registers": 64, "spills": 0}]
    return "aot", meta(ceilings=None), rows, {}


MAKERS = (latency, steps, ops, scaling, ablate, memory, gate, aot, nobody)


def write_all(folder):
    """One file of each bench."""
    paths = []
    for make in MAKERS:
        bench, told, rows, summary = make()
        path = folder / f"{make.__name__}.json"
        keyed = [{"key": results.row_key(row) or str(number), **row} for number, row in enumerate(rows)]
        content = {"schema_version": 2, "bench": bench, "meta": told, "rows": keyed, "summary": summary}
        path.write_text(json.dumps(content | {"refused": [{"implementation": "compile", "reason": "WrongResult: x"}]}))
        paths.append(path)
    return paths

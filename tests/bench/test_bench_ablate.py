"""Ablations: each really removes what it says, computes the same otherwise, and leaves nothing behind."""

import importlib
from unittest import mock

import numpy as np
import pytest
import torch

import presto_kernels as fused
from bench import ablate, cuda, machine, measure, schema
from bench import plain_ops as plain
from bench.__main__ import main
from bench.ablate_check import Judge
from bench.ablations import ABLATIONS, ALL_OFF, ALL_ON, BITWISE, CHANGED, MODULES, Ablation, as_it_is, only, put
from bench.product import DECODE, PARTS, PREPARE, STEPS, random_product, shipped_product
from presto_models import DiT, ReferenceDiT

CPU = torch.device("cpu")
HERE = [name for name in ABLATIONS if name not in ("attention prologue", "graph")]  # those a CPU can do


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(
        machine, "measure_ceilings", lambda device, dtypes: machine.Ceilings(30.0, dict.fromkeys(dtypes, 0.4))
    )
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def product():
    return random_product("tiny", steps=3, dtype="fp32", device=CPU, audio=None)


def module_of(key):
    return importlib.import_module(MODULES[key][0])


def calls_of(product, ablation, part, *, module="dit", name):
    """How often a name is called in one run of a part, as the modules look it up before the ablation is entered."""
    owner = module_of(module)
    with mock.patch.object(owner, name, wraps=getattr(owner, name)) as counted, ablation.off(product) as made:
        call = made.call(part)
        before = counted.call_count
        call()
        return counted.call_count - before


ON = Ablation("", as_it_is, BITWISE, only(*PARTS))


@pytest.mark.parametrize(
    "name, module, op, part",
    [
        ("seam fusion", "dit", "gated_residual_adaln", STEPS),
        ("attention prologue", "dit", "qk_norm_rope_attention", STEPS),
        ("adaln", "dit", "gated_residual_adaln", STEPS),
        ("adaln", "dit", "adaln_modulate", STEPS),
        ("rotary", "dit", "qk_norm_rope", PREPARE),
        ("rotary", "dit", "qk_norm_rope", STEPS),
        ("rotary", "dit", "qk_norm_rope_attention", STEPS),
        ("attention", "dit", "attention", STEPS),
        ("activation", "dit", "swiglu", STEPS),
        ("activation", "oobleck", "snake", DECODE),
        ("fused decoder", "oobleck", "snake", DECODE),
        ("sampler", "edm", "edm_denoise", STEPS),
        ("sampler", "noise", "renoise", STEPS),
        (ALL_OFF, "dit", "gated_residual_adaln", STEPS),
        (ALL_OFF, "edm", "edm_denoise", STEPS),
        (ALL_OFF, "oobleck", "snake", DECODE),
    ],
)
def test_what_is_off_is_never_called(product, name, module, op, part):
    assert calls_of(product, ON, part, module=module, name=op) > 0
    assert calls_of(product, ABLATIONS[name], part, module=module, name=op) == 0


def test_a_seam_apart_is_two_of_our_own_ops(product):
    with mock.patch.object(fused, "gated_residual", wraps=fused.gated_residual) as counted:
        product.call(STEPS)()
        assert counted.call_count == 0
        with ABLATIONS["seam fusion"].off(product) as made:
            made.call(STEPS)()
    assert counted.call_count == 3 * sum(product.blocks)


def times_run(product, method, part, ablation, owner=DiT):
    with mock.patch.object(owner, method, autospec=True, side_effect=getattr(owner, method)) as counted:
        with ablation.off(product) as made:
            call = made.call(part)
            counted.reset_mock()
            call()
        return counted.call_count


def test_the_modulation_runs_in_every_step_without_its_cache(product):
    off = ABLATIONS["modulation cache"]
    assert [times_run(product, "_modulation", part, ON) for part in (PREPARE, STEPS)] == [1, 0]
    assert [times_run(product, "_modulation", part, off) for part in (PREPARE, STEPS)] == [0, 3]


def test_text_is_projected_in_every_block_without_its_cache(product):
    owner = type(product.dit.blocks[0].cross_attention)
    off, ran = ABLATIONS["text cache"], sum(product.blocks)
    assert [times_run(product, "keys_values", part, ON, owner) for part in (PREPARE, STEPS)] == [8, 0]
    assert [times_run(product, "keys_values", part, off, owner) for part in (PREPARE, STEPS)] == [0, ran]
    modulation = ABLATIONS["modulation cache"]  # which leaves the text where it is
    assert [times_run(product, "keys_values", part, modulation, owner) for part in (PREPARE, STEPS)] == [8, 0]


def test_every_block_runs_without_layer_dropping(product):
    assert sum(product.blocks) < 3 * 8
    with ABLATIONS["layer dropping"].off(product) as made:
        assert made.blocks == [8, 8, 8]


def test_plain_pytorch_runs_its_own_network_alone(product):
    ran = []
    networks = (product.dit, product.reference)
    hooks = [net.register_forward_hook(lambda module, *_: ran.append(type(module))) for net in networks]
    with ABLATIONS[ALL_OFF].off(product) as made:
        made.call(STEPS)()
    for hook in hooks:
        hook.remove()
    assert ran == [ReferenceDiT] * 3


@pytest.mark.parametrize("name", ABLATIONS)
def test_everything_is_as_before(product, name):
    def state():
        modules = [importlib.import_module(module) for group in MODULES.values() for module in group]
        objects = (product, product.engine, product.engine.autoencoder)
        return [dict(vars(module)) for module in modules], [{k: id(v) for k, v in vars(o).items()} for o in objects]

    before = state()
    with pytest.raises(RuntimeError, match="inside"), ABLATIONS[name].off(product):
        raise RuntimeError("inside")
    assert state() == before


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_ablation_is_right(dtype):
    product = random_product("tiny", steps=3, dtype=dtype, device=CPU, audio=None)
    judge = Judge(product, dtype)
    verdicts = {ALL_ON: judge(ALL_ON, ON)} | {name: judge(name, ABLATIONS[name]) for name in HERE}
    assert {name: verdict.error for name, verdict in verdicts.items() if verdict.error is not None} == {}
    assert verdicts["text cache"].result == BITWISE
    assert verdicts["layer dropping"].result.startswith(CHANGED)
    assert all(ABLATIONS[name].lossless for name in HERE if name not in ("layer dropping", "sampler", ALL_OFF))


def wrong_seam(x, branch, gate, scale, shift, **norm):
    x, h = fused.gated_residual_adaln(x, branch, gate, scale, shift, **norm)
    return x, 1.01 * h


@pytest.mark.parametrize(
    "wrong",
    [
        Ablation("", put(dit={"gated_residual_adaln": wrong_seam}), "within rounding", only(STEPS)),
        Ablation("", put(oobleck={"snake": lambda x, alpha, beta: x}), "within rounding", only(DECODE)),
        Ablation("", put(dit={"swiglu": plain.swiglu, "attention": plain.attention}), BITWISE, only(STEPS)),
    ],
    ids=["denoised", "decoded", "not bitwise"],
)
def test_a_wrong_ablation_is_refused_and_the_status_says_so(monkeypatch, capsys, wrong):
    monkeypatch.setitem(ABLATIONS, "seam fusion", wrong)
    options = ablate.AblateOptions(config="tiny", dtype="fp32", device="cpu", only=("seam fusion",), steps=2, seconds=0)
    assert ablate.run(options) == 1
    assert "refused" in capsys.readouterr().out


def test_a_spectral_decoder_is_taken_apart_too():
    product = shipped_product("presto-tiny-ls", steps=1, dtype="fp32", device=CPU, audio=1.0)
    judge = Judge(product, "fp32")
    for name, made in {ALL_ON: ON, "adaln": ABLATIONS["adaln"], "fused decoder": ABLATIONS["fused decoder"]}.items():
        assert judge(name, made).error is None
    assert DECODE in ABLATIONS["adaln"].parts(product)
    assert calls_of(product, ABLATIONS["fused decoder"], DECODE, module="spectral", name="swiglu") == 0


def test_totals_take_untouched_parts_from_everything_on():
    off = {"decoder": ablate.Variant(ABLATIONS["fused decoder"], (DECODE,), BITWISE)}
    found = {ALL_ON: ablate.Variant(ON, PARTS, BITWISE)} | off
    usual = {PREPARE: 1.0, STEPS: 10.0, DECODE: 5.0}
    times = {ablate.label(ALL_ON, part): [[each, each + 1.0]] for part, each in usual.items()}
    times[ablate.label("decoder", DECODE)] = [[8.0, 9.5]]
    samples = measure.Samples(times)
    np.testing.assert_allclose(ablate.milliseconds(samples, found, "decoder", "total"), [19.0, 22.5])
    summary = ablate.summarise(samples, found)
    assert summary["saved"]["decoder"]["ms"] == pytest.approx(3.25) and summary["warnings"] == []
    rows = {(row["ablation"], row["part"]): row for row in ablate.rows(samples, found, "fp32")}
    assert rows.keys() == {(ALL_ON, part) for part in (*PARTS, "total")} | {("decoder", DECODE), ("decoder", "total")}
    assert rows["decoder", DECODE]["over_all_on"] == pytest.approx((1.6 + 9.5 / 6) / 2, rel=1e-3)


def test_a_gain_that_noise_explains_is_said(product):
    found = {ALL_ON: ablate.Variant(ON, PARTS, BITWISE)}
    found["decoder"] = ablate.Variant(ABLATIONS["fused decoder"], (DECODE,), BITWISE)
    times = {ablate.label(ALL_ON, part): [[1.0] * 6] for part in PARTS}
    times[ablate.label("decoder", DECODE)] = [[0.5, 1.6, 0.7, 1.5, 1.1, 0.8]]
    assert "decoder" in ablate.summarise(measure.Samples(times), found)["warnings"][0]


def test_the_clock_runs_under_the_ablation_only_for_the_part(product, monkeypatch):
    inside = []
    monkeypatch.setattr(plain, "swiglu", lambda x: inside.append(1) or fused.swiglu(x))
    ablation = Ablation("", put(dit={"swiglu": plain.swiglu}), BITWISE, only(STEPS))
    timed = ablate.timer(product, ablation, STEPS, CPU)
    inside.clear()
    assert timed() > 0 and inside
    assert module_of("dit").swiglu is fused.swiglu


def test_on_cuda_everything_is_replayed_but_the_ablation_of_the_graph(product, monkeypatch):
    """The device is only a name here: what the branch would call is faked."""
    made = []
    for name in ("graph_timer", "event_timer"):
        monkeypatch.setattr(cuda, name, lambda call, name=name: made.append(name) or (lambda part: 1.0))
    monkeypatch.setattr(cuda, "warm_up", lambda call: None)
    device = torch.device("cuda")
    for name in ("seam fusion", "graph", "modulation cache"):
        assert ablate.timer(product, ABLATIONS[name], STEPS, device)() == 1.0
    assert made == ["graph_timer", "event_timer", "graph_timer"]


def test_the_prologue_is_there_where_its_kernel_runs(product, monkeypatch):
    library = torch.library.Library("bench_test", "DEF")
    library.define("attention_qk_norm_rope_fake(Tensor q) -> Tensor")
    library.impl("attention_qk_norm_rope_fake", lambda q: q.clone(), "CPU")
    assert "not used here" in ABLATIONS["attention prologue"].missing(product)

    def prologue(q, k, v, *tables, **weights):
        return torch.ops.bench_test.attention_qk_norm_rope_fake(q)

    monkeypatch.setattr(module_of("dit"), "qk_norm_rope_attention", prologue)
    assert ABLATIONS["attention prologue"].missing(product) is None


@pytest.mark.parametrize("arguments", ["--steps 0", "--only nonsense", "--checkpoint no/such/thing-here"])
def test_bad_options(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["ablate", "--config", "tiny", "--device", "cpu", *arguments.split()])
    assert stopped.value.code == 2


def test_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file, plot = tmp_path / "ablate.json", tmp_path / "ablate.svg"
    command = "ablate --config tiny --dtype fp32 --device cpu --steps 2 --seconds 0"
    assert main([*command.split(), "--json", str(file), "--plot", str(plot)]) == 0
    report = schema.read(file)
    assert report.summary["not_here"].keys() == {"attention prologue", "graph"}
    assert {row["ablation"] for row in report.rows} == {ALL_ON, *HERE}
    assert {row["implementation"] for row in report.rows if row["ablation"] == ALL_OFF} == {"reference"}
    assert all(row["rounds"] == 3 and row["over_all_on"] > 0 for row in report.rows)
    assert {row["part"] for row in report.rows if row["ablation"] == "modulation cache"} == {PREPARE, STEPS, "total"}
    assert any("part" in row and row["key"].count("/") >= 3 for row in report.rows)
    output = capsys.readouterr().out
    assert "not applicable on a CPU" in output and max(map(len, output.splitlines())) <= 100
    assert plot.stat().st_size > 5_000

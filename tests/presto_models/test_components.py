"""Checkpoints that share components: the same music as one that stands alone, and what is said where it cannot be."""

import hashlib
import shutil
from dataclasses import replace

import pytest
import torch
from small_pipeline import WordEncoder, small_pipeline

from presto_models.autoencoders import load_autoencoder
from presto_models.checkpoint import SHIPPED, CheckpointError, load_config, load_weights, save_weights
from presto_models.components import component, component_files, find_component, lender
from presto_models.pipeline import PrestoPipeline

AUTOENCODER, DIFFUSION, STEREO = ALL = ("autoencoder.safetensors", "diffusion.safetensors", "stereo.safetensors")
MAKE = {"prompt": "slow organ", "seconds": 0.2, "seed": 4, "stereo": True}


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr("presto_models.text.conditioner.load_text_encoder", lambda *_, **__: WordEncoder())


@pytest.fixture
def teacher(tmp_path):
    return small_pipeline().save_pretrained(tmp_path / "teacher")


def make_student(**changes):
    """The teacher's autoencoder and stereo module around another transformer."""
    student = small_pipeline(sampler="pingpong", steps=4, guidance=1.0, guidance_baked=2.0, **changes)
    with torch.no_grad():
        student.dit.proj_out.weight.mul_(0.9)
    return student


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def load(folder, **how):
    return PrestoPipeline.from_pretrained(folder, device="cpu", **how)


def rebase(folder, base):
    """Rewrite what the checkpoint in ``folder`` says its base is."""
    weights, config = load_weights(folder / DIFFUSION, kind="diffusion")
    save_weights(folder / DIFFUSION, weights, kind="diffusion", config={**config, "base": base})


def test_a_shared_checkpoint_plays_what_one_that_stands_alone_plays(tmp_path, teacher):
    student = make_student()
    shared = student.save_pretrained(tmp_path / "student", base=teacher)
    alone = student.save_pretrained(tmp_path / "alone")
    assert files(shared) == [DIFFUSION] and files(alone) == list(ALL)
    music = [load(folder)(**MAKE).waveform for folder in (shared, alone)]
    assert torch.equal(*music) and torch.equal(music[0], student(**MAKE).waveform)
    loaded = load(shared)
    assert loaded.config == replace(student.config, base=str(teacher))
    # Saved again without a base it is the one that stands alone.
    again = loaded.save_pretrained(tmp_path / "again")
    for name in ALL:
        (there, config), (here, same) = (load_weights(f / name, kind=name.split(".")[0]) for f in (alone, again))
        assert config == same and there.keys() == here.keys()
        assert all(torch.equal(there[key], here[key]) for key in there)


def test_a_base_beside_it_moves_with_it(tmp_path, teacher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = make_student().save_pretrained("deep/student", base="teacher")
    assert load_config(shared / DIFFUSION, kind="diffusion")["base"] == "../../teacher"
    expected = load("deep/student")(**MAKE).waveform
    (tmp_path / "elsewhere").mkdir()
    for name in ("deep", "teacher"):
        shutil.move(name, f"elsewhere/{name}")
    monkeypatch.chdir(tmp_path / "elsewhere" / "deep")
    assert torch.equal(load("student")(**MAKE).waveform, expected)


def test_what_is_shared_is_found_and_identified(tmp_path, teacher):
    shared = make_student().save_pretrained(tmp_path / "student", base=teacher)
    assert component_files(shared) == (teacher / AUTOENCODER, shared / DIFFUSION, teacher / STEREO)
    assert component_files(teacher) == tuple(teacher / name for name in ALL)
    assert component(shared, AUTOENCODER) == teacher / AUTOENCODER
    own, there = (load_autoencoder(folder).state_dict() for folder in (shared, teacher))
    assert all(torch.equal(own[name], there[name]) for name in there)
    # Its own file stands before the base's.
    shutil.copy(teacher / STEREO, shared)
    assert find_component(shared, STEREO) == shared / STEREO


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_what_differs_is_written(tmp_path, teacher, dtype):
    pipeline = load(teacher, audio_dtype=dtype)
    assert files(pipeline.save_pretrained(tmp_path / "same", base=teacher)) == [DIFFUSION]
    pipeline.stereo.head.weight.mul_(1.5)
    folder = pipeline.save_pretrained(tmp_path / "other", base=teacher)
    assert files(folder) == [DIFFUSION, STEREO]
    assert torch.equal(load(folder).stereo.head.weight, pipeline.stereo.head.weight.float())
    next(pipeline.autoencoder.parameters()).mul_(1.5)
    folder = pipeline.save_pretrained(tmp_path / "all", base=teacher)
    assert files(folder) == list(ALL) and load(folder).config.base is None  # nothing is shared


def test_what_was_there_before_does_not_stand_in_the_way(tmp_path, teacher):
    old = load(teacher)
    old.stereo.head.weight.mul_(1.5)
    next(old.autoencoder.parameters()).mul_(1.5)
    folder, student = old.save_pretrained(tmp_path / "student"), make_student()
    student.save_pretrained(folder, base=teacher)
    assert files(folder) == [DIFFUSION]
    assert torch.equal(load(folder)(**MAKE).waveform, student(**MAKE).waveform)
    mono = make_student(stereo=False)
    assert files(mono.save_pretrained(teacher)) == [AUTOENCODER, DIFFUSION]


def test_a_base_from_the_hub(tmp_path, teacher, monkeypatch):
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        if name != "someone/teacher":
            raise OSError("404")
        return str(teacher)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    student = make_student()
    folder = student.save_pretrained(tmp_path / "student", base="someone/teacher")
    assert load_config(folder / DIFFUSION, kind="diffusion")["base"] == "someone/teacher"
    asked.clear()
    assert torch.equal(load(folder)(**MAKE).waveform, student(**MAKE).waveform)
    assert asked and all(patterns == [AUTOENCODER, STEREO] for _, patterns in asked)  # not the teacher's transformer
    rebase(folder, "someone/else")
    with pytest.raises(CheckpointError, match=r"its base 'someone/else'.*404.*put the base there"):
        load(folder)


def test_a_shipped_base_whatever_the_folder_one_stands_in(tmp_path, monkeypatch):
    folder = tmp_path / "student"
    weights, config = load_weights(SHIPPED / "presto-tiny" / DIFFUSION, kind="diffusion")
    save_weights(folder / DIFFUSION, weights, kind="diffusion", config={**config, "base": "presto-tiny"})
    (tmp_path / "presto-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    shipped = SHIPPED / "presto-tiny"
    assert component_files(folder) == (shipped / AUTOENCODER, folder / DIFFUSION, shipped / STEREO)


def test_the_shipped_checkpoints_identity_is_its_files():
    """What evaluations are kept under: name to hash of every safetensors file."""
    folder = SHIPPED / "presto-tiny"
    assert list(component_files(folder)) == sorted(folder.glob("*.safetensors"))
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in component_files(folder)}
    assert list(hashes) == list(ALL)


def test_a_base_that_is_not_there(tmp_path, teacher):
    folder = make_student().save_pretrained(tmp_path / "student", base=teacher)
    shutil.rmtree(teacher)
    with pytest.raises(FileNotFoundError, match=rf"{folder} shares.*{teacher}.*copy its .* into {folder}"):
        load(folder)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        make_student().save_pretrained(tmp_path / "two", base=teacher)


def test_a_base_without_what_is_asked_of_it(tmp_path, teacher):
    folder = make_student().save_pretrained(tmp_path / "student", base=teacher)
    (teacher / STEREO).unlink()
    assert load(folder).stereo is None
    (teacher / AUTOENCODER).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no autoencoder at {folder}.*nor in its base {teacher}"):
        load(folder)
    (folder / DIFFUSION).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no autoencoder at {folder / AUTOENCODER}$"):
        load_autoencoder(folder)


def test_bases_of_bases_are_refused(tmp_path, teacher):
    student = make_student()
    first = student.save_pretrained(tmp_path / "first", base=teacher)
    with pytest.raises(ValueError, match="itself shares components with"):
        student.save_pretrained(tmp_path / "second", base=first)
    second = student.save_pretrained(tmp_path / "second", base=teacher)
    rebase(second, str(first))
    with pytest.raises(CheckpointError, match=rf"{second}.*its base '{first}'.*'{teacher}'.*as its base"):
        load(second)
    rebase(second, ".")
    with pytest.raises(CheckpointError, match="names itself as its base"):
        load(second)


def test_who_lends_to_a_student_of_a_student(tmp_path, teacher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student = make_student()
    assert lender("teacher") == lender(teacher) == str(teacher.resolve())
    assert lender("presto-tiny") == "presto-tiny"
    for base in ("teacher", teacher):
        assert lender(student.save_pretrained("student", base=base)) == str(teacher.resolve())
    rebase(tmp_path / "student", "presto-tiny")
    assert lender("student") == "presto-tiny"
    # One that has components of its own is not passed over.
    shutil.copy(teacher / AUTOENCODER, "student")
    assert lender("student") == str((tmp_path / "student").resolve())


def test_bases_that_cannot_be_shared_with(tmp_path, teacher):
    before = {name: (teacher / name).read_bytes() for name in ALL}
    with pytest.raises(ValueError, match="another checkpoint than the one that is written"):
        load(teacher).save_pretrained(teacher, base=teacher)
    with pytest.raises(ValueError, match="this pipeline has none"):
        make_student(stereo=False).save_pretrained(tmp_path / "mono", base=teacher)
    assert not (tmp_path / "mono").exists()
    assert before == {name: (teacher / name).read_bytes() for name in ALL}

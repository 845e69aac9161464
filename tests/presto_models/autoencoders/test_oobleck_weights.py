"""Checkpoints of diffusers and stable-audio-tools are read, and what is no whole Oobleck is refused by name."""

import json
import re

import pytest
import torch
from oobleck_models import TINY, ToolsModel, diffusers_model
from safetensors.torch import save_file

from presto_models.autoencoders import (
    OobleckConfig,
    load_autoencoder,
    load_stable_audio_vae,
    oobleck_from_state_dict,
    save_autoencoder,
)
from presto_models.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def diffusers():
    return diffusers_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def tools():
    return ToolsModel()


@pytest.fixture
def latents():
    return torch.randn(1, 9, TINY.latent_channels, generator=torch.Generator().manual_seed(3))


def decodes_as(model, plain, latents):
    with torch.no_grad():
        expected = plain.decode(latents.mT).sample if hasattr(plain, "decode") else plain.decoder(latents.mT)
        torch.testing.assert_close(model.decode(latents), expected, rtol=1e-4, atol=1e-5)
        mean, scale = plain.encoder(expected).chunk(2, dim=1)
        got_mean, got_std = model.posterior(expected)
        torch.testing.assert_close(got_mean, mean.mT, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got_std, (torch.nn.functional.softplus(scale) + 1e-4).mT, rtol=1e-4, atol=1e-5)


def test_a_folder_of_diffusers(tmp_path, diffusers, latents):
    diffusers.register_to_config(sampling_rate=32000)
    diffusers.save_pretrained(tmp_path / "pipeline" / "vae")
    for folder in (tmp_path / "pipeline", tmp_path / "pipeline" / "vae"):
        model = load_stable_audio_vae(folder)
        assert model.config == OobleckConfig.from_dict(TINY.to_dict() | {"sample_rate": 32000})
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        decodes_as(model, diffusers, latents)


def test_the_dtype_is_that_of_the_weights_folded_in_fp32(tmp_path, diffusers):
    diffusers.save_pretrained(tmp_path)
    ours, wide = load_stable_audio_vae(tmp_path, dtype=torch.bfloat16), load_stable_audio_vae(tmp_path)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, wide.state_dict()[name].bfloat16())


def test_weight_norm_by_its_new_names_and_folded_already(diffusers, latents):
    old = diffusers.state_dict()
    new = {
        key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for key, tensor in old.items()
    }
    folded = {key: tensor for key, tensor in old.items() if not key.endswith(("_g", "_v"))}
    for key in [key for key in old if key.endswith("_v")]:
        v = old[key]
        folded[key[: -len("_v")]] = v * old[key[:-1] + "g"] / v.norm(dim=(1, 2), keepdim=True)
    for weights in (new, folded):
        decodes_as(oobleck_from_state_dict(weights), diffusers, latents)


def test_a_checkpoint_of_stable_audio_tools(tmp_path, tools, latents):
    """A training checkpoint holds the model twice, and the averaged copy is the one to use."""
    averaged = ToolsModel(seed=5)
    state = {f"autoencoder.{key}": tensor for key, tensor in tools.state_dict().items()}
    state |= {f"autoencoder_ema.ema_model.{key}": tensor for key, tensor in averaged.state_dict().items()}
    state |= {"discriminator.convs.0.weight": torch.zeros(3)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.ckpt")
    model = load_stable_audio_vae(tmp_path)
    assert model.config == TINY
    decodes_as(model, averaged, latents)


def test_the_autoencoder_of_a_whole_stable_audio_tools_model(tmp_path, tools, latents):
    state = {f"pretransform.model.{key}": tensor for key, tensor in tools.state_dict().items()}
    save_file(state | {"model.model.to_q.weight": torch.zeros(4)}, tmp_path / "model.safetensors")
    vae = {"model": {"pretransform": {"config": {"decoder": decoder_config(final_tanh=False)}}}, "sample_rate": 16000}
    (tmp_path / "model_config.json").write_text(json.dumps(vae))
    model = load_stable_audio_vae(tmp_path / "model.safetensors")
    assert model.sample_rate == 16000
    decodes_as(model, tools, latents)


def decoder_config(**changes):
    return {"type": "oobleck", "config": {"latent_dim": 4, **changes}}


@pytest.mark.parametrize("changes", [{"final_tanh": True}, {}])  # stable-audio-tools has the tanh where nothing is said
def test_a_decoder_that_ends_in_tanh_is_refused(tmp_path, tools, changes):
    save_file(tools.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "model_config.json").write_text(json.dumps({"model": {"decoder": decoder_config(**changes)}}))
    with pytest.raises(CheckpointError, match="final_tanh"):
        load_stable_audio_vae(tmp_path)


def test_what_is_missing_or_too_much_is_named(diffusers, tools):
    weights = diffusers.state_dict()
    for gone in ("encoder.block.1.res_unit2.conv1.weight_v", "decoder.snake1.beta", "decoder.conv1.bias"):
        with pytest.raises(CheckpointError, match=re.escape(gone.replace("weight_v", "weight"))):
            oobleck_from_state_dict({key: tensor for key, tensor in weights.items() if key != gone})
    with pytest.raises(CheckpointError, match=r"not expected.*decoder\.conv2\.bias"):
        oobleck_from_state_dict(weights | {"decoder.conv2.bias": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"vae: .*missing \['x\.encoder\.layers\.0\.bias'\]"):
        names = {f"x.{key}": tensor for key, tensor in tools.state_dict().items() if key != "encoder.layers.0.bias"}
        oobleck_from_state_dict(names, source="vae: it")
    decoder = {key: tensor for key, tensor in weights.items() if key.startswith("decoder")}
    with pytest.raises(CheckpointError, match=r"missing encoder\.conv1\.weight"):
        oobleck_from_state_dict(decoder)
    with pytest.raises(CheckpointError, match=r"missing decoder\.block\.0\.conv_t1\.weight"):
        oobleck_from_state_dict({k: v for k, v in weights.items() if k != "decoder.block.0.conv_t1.weight_v"})


def test_another_size_is_named(diffusers):
    weights = diffusers.state_dict() | {"decoder.block.1.res_unit1.conv1.bias": torch.zeros(7)}
    with pytest.raises(CheckpointError, match=r"decoder\.2\.2\.conv1\.bias has shape \(7,\), the model wants"):
        oobleck_from_state_dict(weights)
    with pytest.raises(CheckpointError, match=r"does not belong to"):
        oobleck_from_state_dict(diffusers.state_dict() | {"decoder.conv1.weight_g": torch.zeros(3, 1, 1)})


def test_strides_that_cannot_be_are_refused():
    model = diffusers_model(OobleckConfig(8, 8, (1, 2), (2, 4), 4), dtype=torch.float32)
    weights = model.state_dict()
    weights["decoder.block.0.conv_t1.weight_v"] = weights["decoder.block.0.conv_t1.weight_v"][..., :6]
    with pytest.raises(CheckpointError, match="strides must be even"):
        oobleck_from_state_dict(weights)


def test_files_that_are_cut_short_or_foreign(tmp_path, diffusers):
    diffusers.save_pretrained(tmp_path / "good")
    whole = (tmp_path / "good" / "diffusion_pytorch_model.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a whole safetensors"):
        load_stable_audio_vae(cut)
    torch.save(diffusers.state_dict(), tmp_path / "cut.ckpt")
    data = (tmp_path / "cut.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_stable_audio_vae(tmp_path / "cut.ckpt")
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no Oobleck of diffusers.*'a\.weight'"):
        load_stable_audio_vae(tmp_path / "foreign.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"diffusion_pytorch_model\.safetensors"):
        load_stable_audio_vae(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_stable_audio_vae(tmp_path / "nowhere")
    (tmp_path / "good" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_stable_audio_vae(tmp_path / "good")


def test_nothing_pickled_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return print, ("boom",)

    torch.save({"state_dict": {"decoder.block.0.conv_t1.weight": Bomb()}}, tmp_path / "bomb.ckpt")
    with pytest.raises(CheckpointError, match="not a whole checkpoint of tensors"):
        load_stable_audio_vae(tmp_path / "bomb.ckpt")


def test_it_is_saved_and_loaded_as_presto_does(tmp_path, diffusers, latents):
    model = oobleck_from_state_dict(diffusers.state_dict(), sample_rate=48000)
    save_autoencoder(tmp_path, model)
    again = load_autoencoder(tmp_path)
    assert again.config == model.config and again.sample_rate == 48000
    with torch.no_grad():
        assert torch.equal(again.decode(latents), model.decode(latents))

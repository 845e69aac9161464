"""Stable Audio Open from diffusers, accelerated: `python examples/diffusers_pipeline.py --model stabilityai/stable-audio-open-1.0`.

Without --model the pipeline is a small one of random weights: noise, but everything runs, without a download.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import soundfile
import torch
import tyro
from diffusers import (
    AutoencoderOobleck,
    EDMDPMSolverMultistepScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)

import presto_kernels


@dataclass(frozen=True)
class Options:
    """Text to sound by diffusers' Stable Audio pipeline, before and after accelerate."""

    model: str | None = None  # on the Hugging Face hub, or a folder; None: small and random
    prompt: str = "a slow church organ"
    seconds: float = 2.0
    steps: int = 20
    seed: int = 0
    out: str = "diffusers.wav"


def main(options: Options) -> None:
    pipeline: Any = StableAudioPipeline.from_pretrained(options.model) if options.model else small_pipeline()
    if torch.cuda.is_available():
        pipeline.to("cuda", torch.float16)
    audio, before = generate(pipeline, options)

    presto_kernels.accelerate(pipeline.transformer)
    presto_kernels.accelerate(pipeline.vae)
    print(presto_kernels.accelerate_report(pipeline.transformer))
    with presto_kernels.prompt_cache(pipeline.transformer):
        faster, after = generate(pipeline, options)

    print(
        f"{before:.2f} s untouched, {after:.2f} s accelerated; they differ by {(audio - faster).abs().max():.1e} at most"
    )
    soundfile.write(options.out, faster.T.numpy(), pipeline.vae.config.sampling_rate)
    print(options.out)


def generate(pipeline: Any, options: Options) -> tuple[torch.Tensor, float]:
    """Audio [channels, samples], and the seconds it took."""
    began = time.perf_counter()
    audio = pipeline(
        options.prompt,
        audio_end_in_s=options.seconds,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(options.seed),
    ).audios
    return audio[0].float().cpu(), time.perf_counter() - began


def small_pipeline() -> Any:
    """The same classes with few and random weights; its words are those of one sentence."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = {word: index for index, word in enumerate("<pad> <unk> a slow church organ".split())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    return StableAudioPipeline(
        vae=AutoencoderOobleck(encoder_hidden_size=8, decoder_channels=8, decoder_input_channels=8),
        text_encoder=T5EncoderModel(
            T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
        ),
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=32, conditioning_dim=32, min_value=0, max_value=32
        ),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=16),
        transformer=StableAudioDiTModel(
            sample_size=64,
            in_channels=8,
            out_channels=8,
            num_layers=4,
            attention_head_dim=32,
            num_attention_heads=4,
            num_key_value_attention_heads=2,
            cross_attention_dim=64,
            cross_attention_input_dim=32,
            global_states_input_dim=64,
        ),
        scheduler=EDMDPMSolverMultistepScheduler(prediction_type="v_prediction"),
    )


if __name__ == "__main__":
    main(tyro.cli(Options))

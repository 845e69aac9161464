"""CLAP (Wu et al. 2023, 2211.06687) as a scorer of music against text, through transformers.

    log-mel   STFT 1024, hop 480, Hann, mirrored ends -> mel power -> 10 log10(max(., 1e-10))   as the checkpoint says
    music     [B, samples] -> 48 kHz -> pieces of 10 s -> log-mel -> audio tower, projection -> mean over the pieces

transformers' own feature extractor is numpy and so has no gradient; this one is the same in torch.  Where it cuts one
piece out of longer music at random, or joins three with a shrunken whole ("fusion"), we take the mean of embeddings of
pieces side by side, so that an optimisation hears all of the music and always the same [O].
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_models.metrics.mel import resample
from presto_models.text.encoder import find_model
from presto_models.text.transformers_encoder import silent

POWER_FLOOR = 1e-10


class ClapScorer:
    """A :class:`presto_models.ditto.AudioTextScorer`; make one with :meth:`from_pretrained`.

    Args:
        model: transformers' ``ClapModel``; it is frozen and put into ``eval()``.
        tokenizer: of its text tower.
        extractor: its ``ClapFeatureExtractor``, of which the numbers are taken.
    """

    def __init__(self, model: Any, tokenizer: Any, extractor: Any) -> None:
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.device = next(model.parameters()).device
        # Music is given in whole pieces, which the fusion of long music does not touch; without its question to the
        # device, whether any piece is long, the same is computed.
        encoder = self.model.audio_model.audio_encoder
        encoder.enable_fusion = encoder.patch_embed.enable_fusion = False
        self.sample_rate, self.piece = extractor.sampling_rate, int(extractor.nb_max_samples)
        self.n_fft, self.hop, self.padding = extractor.fft_window_size, extractor.hop_length, extractor.padding
        if self.padding not in ("repeatpad", "repeat", "pad"):
            raise ValueError(f"extractor must pad by 'repeatpad', 'repeat' or 'pad', got {self.padding!r}")
        fused = extractor.truncation == "fusion"
        filters = extractor.mel_filters if fused else extractor.mel_filters_slaney
        self.filters = torch.as_tensor(filters, dtype=torch.float32, device=self.device)
        self.window = torch.hann_window(self.n_fft, device=self.device)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *, device: torch.device | str | None = None) -> ClapScorer:
        """The CLAP in a folder, or on the Hugging Face hub (``owner/name``), fp32.

        For music: ``laion/larger_clap_music``.  Weights must be safetensors.

        Raises:
            FileNotFoundError: no such folder.  OSError: it, or the hub, does not give a whole CLAP.  ValueError:
            another kind of model.  ImportError: no transformers.
        """
        folder = find_model(os.fspath(source), "CLAP")
        try:
            import transformers
        except ImportError as error:
            raise ImportError("CLAP needs transformers: pip install 'presto-kernels[models]'") from error
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"no CLAP in {folder}: it holds no config.json")
        load: Any = transformers.ClapModel.from_pretrained  # typed without output_loading_info's second result
        try:
            with silent(transformers.utils.logging):
                kind = transformers.AutoConfig.from_pretrained(folder).model_type
                if kind == "clap":
                    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="right")
                    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
                    model, report = load(folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
        except Exception as error:  # transformers, tokenizers and safetensors each raise their own
            raise OSError(f"{folder} does not hold a whole CLAP, as save_pretrained writes it: {error}") from error
        if kind != "clap":
            raise ValueError(f"{folder} holds a {kind} model, wanted a clap one with both towers")
        if report["missing_keys"]:  # transformers would go on with random weights in their place
            raise OSError(f"{folder} lacks weights of CLAP: {sorted(report['missing_keys'])[:3]} ...")
        return cls(model.to("cpu" if device is None else device), tokenizer, extractor)

    @torch.no_grad()
    def embed_text(self, texts: list[str]) -> Tensor:
        """B texts to ``[B, D]``, of length 1; what does not fit the text tower is cut."""
        config = self.model.config.text_config
        longest = config.max_position_embeddings - config.pad_token_id - 1  # RoBERTa counts from behind the padding's
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        inputs = inputs.to(self.device)
        pooled = self.model.text_model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=-1)

    def embed_audio(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Mono audio ``[B, samples]`` to ``[B, D]``, of length 1, fp32; differentiable."""
        if audio.dim() != 2:
            raise ValueError(f"audio must be mono, [B, samples], got {tuple(audio.shape)}")
        pieces = self.pieces(resample(audio, sample_rate, self.sample_rate))
        features = self.log_mel(pieces.flatten(0, 1))[:, None]
        pooled = self.model.audio_model(input_features=features).pooler_output
        embedded = F.normalize(self.model.audio_projection(pooled).float(), dim=-1)
        return F.normalize(embedded.unflatten(0, pieces.shape[:2]).mean(1), dim=-1)

    def pieces(self, audio: Tensor) -> Tensor:
        """``[B, samples]`` at the model's rate to ``[B, pieces, piece]``: as many, evenly over it, as hold all of it;
        shorter music is repeated and padded as the checkpoint says."""
        samples = audio.shape[1]
        if samples < self.piece:
            if self.padding != "pad":
                audio = audio.repeat(1, self.piece // samples + (self.padding == "repeat"))[:, : self.piece]
            return F.pad(audio, (0, self.piece - audio.shape[1]))[:, None]
        count = math.ceil(samples / self.piece)
        starts = [round(i * (samples - self.piece) / max(1, count - 1)) for i in range(count)]
        return torch.stack([audio[:, start : start + self.piece] for start in starts], 1)

    def log_mel(self, audio: Tensor) -> Tensor:
        """``[B, samples]`` at the model's rate to dB, ``[B, frames, mels]``."""
        spectrum = torch.stft(
            audio, self.n_fft, self.hop, window=self.window, center=True, pad_mode="reflect", return_complex=True
        )
        power = (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2) @ self.filters
        return 10 * power.clamp_min(POWER_FLOOR).log10()

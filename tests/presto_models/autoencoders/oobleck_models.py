"""Small Oobleck models of other projects, for tests: diffusers' own, and one built as stable-audio-tools' is."""

import math
import warnings

import torch
from torch import Tensor, nn

from presto_models.autoencoders import OobleckConfig

TINY = OobleckConfig.named("tiny")


def diffusers_model(config: OobleckConfig = TINY, seed: int = 0, dtype: torch.dtype = torch.float64):
    """diffusers' module with every parameter moved off its start, in values that fp32 holds."""
    from diffusers import AutoencoderOobleck

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's old weight_norm, which diffusers uses
        model = AutoencoderOobleck(
            encoder_hidden_size=config.encoder_channels,
            downsampling_ratios=list(config.strides),
            channel_multiples=list(config.multiples),
            decoder_channels=config.channels,
            decoder_input_channels=config.latent_channels,
            audio_channels=config.audio_channels,
            sampling_rate=config.sample_rate,
        )
    return _moved(model).to(dtype)


class SnakeBeta(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        return x + torch.sin(alpha * x) ** 2 / (beta + 1e-9)


class Sequence(nn.Module):
    """Layers in an attribute of that name, as stable-audio-tools' blocks have them."""

    def __init__(self, *layers: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.layers, self.residual = nn.Sequential(*layers), residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class ToolsModel(nn.Module):
    """The autoencoder of stable-audio-tools: the same names, the old weight norm."""

    def __init__(self, config: OobleckConfig = TINY, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)

        def conv(*args: int, kind: type = nn.Conv1d, **options) -> nn.Module:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                return nn.utils.weight_norm(kind(*args, **options))

        def units(channels: int) -> list[nn.Module]:
            return [
                Sequence(
                    SnakeBeta(channels),
                    conv(channels, channels, 7, dilation=dilation, padding=3 * dilation),
                    SnakeBeta(channels),
                    conv(channels, channels, 1),
                    residual=True,
                )
                for dilation in (1, 3, 9)
            ]

        def changed(stride: int) -> dict[str, int]:
            return {"stride": stride, "padding": math.ceil(stride / 2)}

        wide = config.widths(config.encoder_channels)
        levels = list(zip(wide, wide[1:], config.strides, strict=False))
        self.encoder = Sequence(
            conv(config.audio_channels, wide[0], 7, padding=3),
            *[Sequence(*units(a), SnakeBeta(a), conv(a, b, 2 * s, **changed(s))) for a, b, s in levels],
            SnakeBeta(wide[-1]),
            conv(wide[-1], 2 * config.latent_channels, 3, padding=1),
        )
        wide = config.widths(config.channels)
        levels = list(zip(wide, wide[1:], config.strides, strict=False))[::-1]
        self.decoder = Sequence(
            conv(config.latent_channels, wide[-1], 7, padding=3),
            *[
                Sequence(SnakeBeta(b), conv(b, a, 2 * s, kind=nn.ConvTranspose1d, **changed(s)), *units(a))
                for a, b, s in levels
            ],
            SnakeBeta(wide[0]),
            conv(wide[0], config.audio_channels, 7, padding=3, bias=False),
            nn.Identity(),
        )
        _moved(self)


def _moved(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.data += (0.3 if name.endswith(("alpha", "beta")) else 0.05) * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)

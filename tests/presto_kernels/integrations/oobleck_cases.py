"""Small encoders and decoders of diffusers and stable-audio-tools, every parameter moved off its start."""

import warnings

import peers
import torch

LATENTS, HOP = 4, 48
STRIDES, MULTIPLES = [2, 4, 6], [1, 2, 4]
CASES = [(project, side) for project in ("diffusers", "tools") for side in ("decoder", "encoder")]


def make(project, side, dtype=torch.float32, *, seed=0, strides=STRIDES, multiples=MULTIPLES, **options):
    """The same module whenever it is called with the same arguments: the old weight norm refuses deep copies."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's old weight_norm, which both use
        if project == "diffusers":
            from diffusers import AutoencoderOobleck

            coder = getattr(AutoencoderOobleck(8, strides, multiples, 12, LATENTS, 2), side)
        elif side == "decoder":
            options = {"use_snake": True, "final_tanh": False, **options}
            decoder = peers.stable_audio_tools().autoencoders.OobleckDecoder
            coder = decoder(2, 12, LATENTS, multiples, strides, **options)
        else:
            encoder = peers.stable_audio_tools().autoencoders.OobleckEncoder
            coder = encoder(2, 8, 2 * LATENTS, multiples, strides, **{"use_snake": True, **options})
    move(coder)
    return coder.to(dtype).eval()


def move(module):
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_((0.3 if name.endswith(("alpha", "beta")) else 0.05) * torch.randn_like(parameter))


def signal(side, batch=2, length=7, dtype=torch.float32, seed=1):
    """Latents, or audio of so many latents and some samples more."""
    channels, positions = (LATENTS, length) if side == "decoder" else (2, HOP * length + 5)
    return torch.randn(batch, channels, positions, generator=torch.Generator().manual_seed(seed)).to(dtype)

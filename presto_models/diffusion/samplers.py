"""Samplers: plain functions of one signature, from noise at sigma_0 to clean latents.

    sample_*(denoise, x, sigmas, *, seed=None, ...) -> x0

``denoise(x, sigma) -> D``: the denoiser, sigma a host number (:class:`presto_models.ScheduledDenoiser` is one);
``sample_ctm`` calls ``denoise(x, sigma, sigma_to)``.
``x``: ``[B, N, C]``, fp32 or float64, already times sigmas[0].
``sigmas``: falling host numbers, the last usually 0 (:func:`presto_models.karras_sigmas`); where it is not 0, the
solvers return x at that noise level.
``seed``: an int, or one per sample (ints, or an int64 tensor on x's device), for those that add noise; the
deterministic ones take it and need none.

The loop asks the device nothing, and gradients flow through all of it.  In EDM's terms the ODE they solve is
dx/dsigma = (x - D(x; sigma)) / sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from presto_kernels import renoise
from presto_models.diffusion.noise import Seed, seed_for

Denoise = Callable[[Tensor, float], Tensor]
DenoiseTo = Callable[[Tensor, float, float], Tensor]


def sample_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    seed: Seed | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """EDM's Algorithm 2: Heun's second-order step, with churn; 2n - 1 denoiser calls for n steps down to 0.

    Without churn it is deterministic (Algorithm 1).  With it, step i first raises sigma by the factor
    1 + min(s_churn / n, sqrt(2) - 1) where sigma lies in [s_tmin, s_tmax], with noise of offset i + 1 and standard
    deviation s_noise, and needs ``seed``.
    """
    levels = _levels(x, sigmas)
    churn = min(s_churn / (len(levels) - 1), math.sqrt(2) - 1)
    add_noise = _renoiser(x, seed)
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        if churn > 0 and s_tmin <= sigma <= s_tmax:
            raised = sigma * (1 + churn)
            x = add_noise(x, s_noise * math.sqrt(raised**2 - sigma**2), step)
            sigma = raised
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_ahead = (ahead - denoise(ahead, sigma_next)) / sigma_next
            ahead = x + (sigma_next - sigma) * 0.5 * (slope + slope_ahead)
        x = ahead
    return x


def dpmpp_2s_sigmas(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Every noise level :func:`sample_dpmpp_2s` calls the denoiser at, in order: each step's own and its middle one."""
    calls: list[float] = []
    for sigma, sigma_next in pairwise(sigmas):
        calls += [sigma, math.sqrt(sigma * sigma_next)] if sigma_next > 0 else [sigma]
    return tuple(calls)


def sample_dpmpp_2s(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, seed: Seed | None = None) -> Tensor:
    """DPM-Solver++(2S) (Lu et al. 2022, 2211.01095, Algorithm 1) in EDM's terms, r = 1/2; 2n - 1 calls down to 0.

    With lambda = -ln sigma, h = lambda' - lambda and the middle sigma_m = sqrt(sigma sigma'):
    u = (sigma_m / sigma) x - (e^(-h/2) - 1) D(x; sigma);   x' = (sigma' / sigma) x - (e^(-h) - 1) D(u; sigma_m).
    Since e^(-h) = sigma' / sigma, each line moves x towards D by that ratio.  The step to 0 returns D(x; sigma).
    """
    for sigma, sigma_next in pairwise(_levels(x, sigmas)):
        denoised = denoise(x, sigma)
        if sigma_next > 0:
            middle = math.sqrt(sigma * sigma_next)
            denoised = denoise(_towards(denoised, x, middle / sigma), middle)
        x = _towards(denoised, x, sigma_next / sigma)
    return x


def sample_ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    seed: Seed | None = None,
    x_max: float | None = None,
    quantile: float = 0.995,
) -> Tensor:
    """DDIM (Song et al. 2021, 2010.02502): x' = x0 + (sigma' / sigma)(x - x0), x0 = D(x; sigma); n calls.

    ``x_max`` switches on :func:`dynamic_threshold`; the thresholded x0 then stands in both places.
    """
    for sigma, sigma_next in pairwise(_levels(x, sigmas)):
        x0 = denoise(x, sigma)
        if x_max is not None:
            x0 = dynamic_threshold(x0, x_max, quantile=quantile)
        x = _towards(x0, x, sigma_next / sigma)
    return x


def dynamic_threshold(x0: Tensor, x_max: float, *, quantile: float = 0.995) -> Tensor:
    """clip(x0, +-s) x_max / s with s = max(quantile of |x0| in each sample, x_max).

    Imagen's dynamic thresholding (Saharia et al. 2022, 2205.11487, section 2.3) is for data in [-1, 1]; ours carries
    it to latents, ``x_max`` being their largest magnitude measured on real music.
    """
    if not x_max > 0:
        raise ValueError(f"x_max must be positive, got {x_max}")
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], got {quantile}")
    magnitudes = x0.abs().flatten(1)
    s = magnitudes.quantile(quantile, dim=1).clamp(min=x_max).view(-1, *[1] * (x0.dim() - 1))
    return x0.clamp(-s, s) * (x_max / s)


def sample_pingpong(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    seed: Seed | None = None,
    noise: Sequence[Tensor] | None = None,
    sigma_min: float = 0.0,
) -> Tensor:
    """For few-step students: x0 = D(x; sigma_i), then x = x0 + sigma_{i+1} eps; n calls, the last x0 is the result.

    Args:
        seed: of the noise added after step i, which has offset i + 1; needed with more than one step.
        noise: instead of a seed, the eps themselves, one ``[B, N, C]`` for each step but the last: for a CUDA graph
            that reads them from fixed memory, and for two runs that share them.
        sigma_min: of a consistency model, whose D is clean down to that noise level: what is added has the standard
            deviation :func:`added_sigma`.

    Source: multistep sampling of consistency models (2303.01469, Algorithm 1), as Presto-S uses it (2410.05167).
    """
    levels = _levels(x, sigmas)
    if noise is not None and seed is not None:
        raise ValueError("seed and noise exclude each other: give one of them")
    if noise is not None and len(noise) < len(levels) - 2:
        raise ValueError(f"noise must hold a tensor for each step but the last, {len(levels) - 2}, got {len(noise)}")
    add_noise = _renoiser(x, seed)
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        x0 = denoise(x, sigma)
        if step < len(levels) - 2:
            added = added_sigma(sigma_next, sigma_min)
            x = add_noise(x0, added, step) if noise is None else x0 + added * noise[step]
    return x0


def added_sigma(sigma: float, sigma_min: float = 0.0) -> float:
    """sqrt(sigma^2 - sigma_min^2): the noise that brings x at ``sigma_min`` to ``sigma`` (2303.01469, Algorithm 1)."""
    if sigma_min == 0:
        return sigma  # exactly, which a square and a root need not give back
    if not 0 < sigma_min <= sigma:
        raise ValueError(f"sigma_min must be from 0 to the noise level {sigma}, got {sigma_min}")
    return math.sqrt(sigma * sigma - sigma_min * sigma_min)


def ctm_jump(denoise: Callable[..., Tensor], x: Tensor, sigma: float | Tensor, sigma_to: float | Tensor) -> Tensor:
    """G(x, t -> s) = (s / t) x + (1 - s / t) g(x, t, s): from noise level t = ``sigma`` to s = ``sigma_to``.

    Args:
        denoise: g(x, sigma, sigma_to), the EDM denoiser of a network that is told both noise levels.  At s = 0 it is
            the guess of the clean latents, at s = t that of their mean (a denoiser like any other).
        sigma, sigma_to: host numbers for the whole batch, or ``[B]`` both.

    s = 0 gives g itself, exactly, and s = t gives x, at 0 too.

    Source: consistency trajectory models (Kim et al. 2024, 2310.02279), section 3.
    """
    x0 = denoise(x, sigma, sigma_to)
    if isinstance(sigma, Tensor):
        ratio = torch.where(sigma > 0, sigma_to / sigma, 1.0)
        return torch.lerp(x0, x, ratio.to(x.dtype)[:, None, None])
    return _towards(x0, x, float(sigma_to) / sigma)


def ctm_levels(sigma_next: float, gamma: float) -> tuple[float, float]:
    """(sqrt(1 - gamma^2) s', gamma s'): where a jump goes, and the noise that brings it from there to s'."""
    return math.sqrt(1 - gamma * gamma) * sigma_next, gamma * sigma_next


def sample_ctm(
    denoise: DenoiseTo, x: Tensor, sigmas: Sequence[float], *, gamma: float = 0.0, seed: Seed | None = None
) -> Tensor:
    """Gamma-sampling of a consistency trajectory model: jump to sqrt(1 - gamma^2) s', add gamma s' eps; n calls.

    Args:
        denoise: g, see :func:`ctm_jump`.
        gamma: 0 adds no noise and follows the ODE; 1 jumps to the clean latents each time, as ping-pong does.
        seed: of the noise added after step i, which has offset i + 1; needed with gamma above 0 and more than one
            step.

    The last jump is to 0: a student must have been trained with that target among its others.

    Source: the gamma-sampling of 2310.02279.
    """
    check_gamma(gamma)
    add_noise = _renoiser(x, seed)
    for step, (sigma, sigma_next) in enumerate(pairwise(_levels(x, sigmas))):
        target, added = ctm_levels(sigma_next, gamma)
        x = ctm_jump(denoise, x, sigma, target)
        if added > 0:
            x = add_noise(x, added, step)
    return x


def check_gamma(gamma: float) -> None:
    """ValueError or TypeError where ``gamma`` is no number from 0 to 1."""
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)):
        raise TypeError(f"gamma must be a number, got {type(gamma).__name__}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be from 0 to 1, got {gamma}")


def _levels(x: Tensor, sigmas: Sequence[float]) -> tuple[float, ...]:
    if isinstance(sigmas, Tensor):
        raise TypeError(
            "sigmas must be host numbers, got a tensor: karras_sigmas gives them (or tensor.tolist(), once)"
        )
    if not x.is_floating_point() or x.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(f"x must be float32 or float64 (only the network runs in half precision), got {x.dtype}")
    levels = tuple(float(s) for s in sigmas)
    if len(levels) < 2 or levels[-1] < 0 or any(a <= b for a, b in pairwise(levels)):
        raise ValueError(f"sigmas must be at least two, falling, none below 0, got {levels}")
    return levels


def _towards(x0: Tensor, x: Tensor, ratio: float) -> Tensor:
    """x0 + ratio (x - x0): what is left of the noise when sigma is multiplied by ratio."""
    return x0 if ratio == 0 else torch.lerp(x0, x, ratio)


def _renoiser(x: Tensor, seed: Seed | None) -> Callable[[Tensor, float, int], Tensor]:
    """(x0, sigma, step) -> x0 + sigma eps, eps of offset step + 1.  What the seed needs of the device is done here."""
    each = None if seed is None else seed_for(x, seed)

    def add_noise(x0: Tensor, sigma: float, step: int) -> Tensor:
        if each is None:
            raise ValueError("seed must be given: this sampler adds noise between steps")
        return renoise(x0, sigma, seed=each, offset=step + 1)

    return add_noise

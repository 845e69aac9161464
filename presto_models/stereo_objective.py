"""What a mono-to-stereo module is trained on, and judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_models.stereo import FLOOR, MonoToStereo, delayed, stft


@dataclass(frozen=True)
class SideStatistics:
    """All of a stereo signal that the loss needs, by band b and frame t: X the mid's spectrum, S the side's.

    A sine of full scale has power 1.

    Args:
        taps: R_jk = sum over the band of X(t - d_j) X*(t - d_k), complex ``[B, frames, bands, taps, taps]``.
        side_taps: C_k = sum X(t - d_k) S*, complex ``[B, frames, bands, taps]``.
        side: sum |S|^2, ``[B, frames, bands]``.
    """

    taps: Tensor
    side_taps: Tensor
    side: Tensor


def stereo_loss(module: MonoToStereo, audio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """How far the module's stereo is from the truth, given the truth's down-mix: :func:`statistics_loss` of it.

    Args:
        audio: the truth ``[B, 2, T]``, T >= 1.

    Returns:
        The loss, a scalar with gradient, and its parts by name, detached.

    Raises:
        ValueError: ``audio`` is not floating point ``[B, 2, T]``.
    """
    return statistics_loss(module, side_statistics(module, audio))


@torch.no_grad()
def side_statistics(module: MonoToStereo, audio: Tensor) -> SideStatistics:
    """The statistics of audio ``[B, 2, T]`` for the module's frames, bands and taps; they do not depend on its weights.

    Raises:
        ValueError: ``audio`` is not floating point ``[B, 2, T]`` with T >= 1.
    """
    config = module.config
    mid, side = (stft(signal[:, 0].float(), config.n_fft) * (4 / config.n_fft) for signal in mid_side(audio))
    copies = [delayed(mid, delay) for delay in config.taps]

    def cross(a: Tensor, b: Tensor) -> Tensor:
        product = a * b.conj()
        return torch.complex(module.band_sums(product.real), module.band_sums(product.imag))

    return SideStatistics(
        taps=torch.stack([torch.stack([cross(a, b) for b in copies], -1) for a in copies], -2),
        side_taps=torch.stack([cross(a, side) for a in copies], -1),
        side=module.band_sums(side.real.square() + side.imag.square()),
    )


def statistics_loss(module: MonoToStereo, truth: SideStatistics) -> tuple[Tensor, dict[str, Tensor]]:
    """With P the power in a band and frame; M, S, L, R the truth's signals, S', L', R' the module's:

        loss = 10 complex + channels + side
        complex   sum P_{S'-S} / (P_M + P_S)^(3/4)  /  sum (P_M + P_S)^(1/4)     sign and phase, loud and quiet alike
        channels  mean |log P_L' - log P_L| + |log P_R' - log P_R|               levels, hence where a sound is
        side      mean |log(P_S' + P_M / 32) - log(P_S + P_M / 32)|              width, where phase cannot be known

    The share of P_M in the last keeps a side 15 dB below the mid from ruling the gradient, which would leave the sign
    unlearned.

    Gains are constant in a band, so the powers follow from the statistics, and no bin needs a gradient:

        P_S' = sum_jk g_j g*_k R_jk             P_{S'-S} = P_S' + P_S - 2 Re sum_k g_k C_k
        P_L', P_R' = P_M + P_S' +- 2 Re sum_k g_k R_k0

    On a CPU a step costs about a tenth of one with auraloss' multi-resolution STFT loss of L, R and S, which takes the
    angle of every bin whether it is wanted or not, and whose spectral convergence divides by S, silent in mono music.
    """
    r, c = truth.taps, truth.side_taps
    p_mid, p_side, both = r[..., 0, 0].real, truth.side, 2 * c[..., 0].real
    level = p_mid + p_side + FLOOR
    g = module.gains(p_mid)
    made = (g[..., :, None] * g.conj()[..., None, :] * r).sum((-2, -1)).real
    made_both = 2 * (g * r[..., 0]).sum(-1).real
    error = made + p_side - 2 * (g * c).sum(-1).real
    left = _log_distance(p_mid + made + made_both, p_mid + p_side + both)
    right = _log_distance(p_mid + made - made_both, p_mid + p_side - both)
    parts = {
        "complex": (error / level**0.75).sum() / level.pow(0.25).sum(),
        "channels": left + right,
        "side": _log_distance(made + p_mid / 32, p_side + p_mid / 32),
    }
    loss = 10 * parts["complex"] + parts["channels"] + parts["side"]
    return loss, {name: part.detach() for name, part in parts.items()}


@torch.no_grad()
def stereo_figures(made: Tensor, truth: Tensor) -> dict[str, float]:
    """How near stereo audio is to the truth it was made from, one clip ``[1, 2, T]`` each, with the same down-mix.

    In 32 bands of equal width in log frequency over frames of 2048 samples; dB are differences of levels.

    - ``side_sdr``: 10 log10(|S|^2 / |S' - S|^2), dB.  Dual mono (S' = 0) has 0.
    - ``side_correlation``: <S', S> / (|S'| |S|); 0 where S' = 0.
    - ``level_error``: mean difference of L/R level from the truth's, dB, by frame and band, each weighted by the fourth
      root of its power.  ``level_correlation``: of the same L/R levels, likewise weighted; 0 where S' = 0.
    - ``width_error``: difference of S/M level over the clip, dB, the mean of the bands.
    - ``coherence_error``: difference of |<L, R>| / (|L| |R|) over 16 frames, the mean of such blocks and bands.

    Raises:
        ValueError: the two differ in shape, are not ``[1, 2, T]``, or T is below 8192.
    """
    if made.shape != truth.shape or truth.shape[:2] != (1, 2) or truth.shape[-1] < 8192:
        raise ValueError(
            f"made and truth must both be stereo audio [1, 2, T] with T >= 8192, "
            f"got {tuple(made.shape)} and {tuple(truth.shape)}"
        )
    spectra = [torch.cat([stft(audio[:, c].double(), 2048) / 512 for c in (0, 1)]) for audio in (truth, made)]
    edges = torch.logspace(math.log10(2), 10 * math.log10(2), 33).round().long().unique()

    def sums(values: Tensor) -> Tensor:
        total = torch.nn.functional.pad(values.cumsum(-1), (1, 0))
        return total[..., edges[1:]] - total[..., edges[:-1]]

    def blocks(values: Tensor) -> Tensor:
        return values[: len(values) // 16 * 16].unflatten(0, (-1, 16)).sum(1)

    levels: list[Tensor] = []
    widths: list[Tensor] = []
    coherences: list[Tensor] = []
    weight = torch.ones(())
    for left, right in spectra:
        power = sums(torch.stack([left, right]).abs().square())
        if not levels:
            weight = power.sum(0) ** 0.25 + 1e-12
        levels.append(10 * ((power[0] + FLOOR) / (power[1] + FLOOR)).log10())
        side, mid = (sums((left + sign * right).abs().square()).mean(0) for sign in (-1, 1))
        widths.append(10 * ((side + 1e-4 * mid + FLOOR) / (mid + FLOOR)).log10())
        both = blocks(sums(left * right.conj())).abs()
        coherences.append((both + FLOOR) / ((blocks(power[0]) * blocks(power[1])).sqrt() + FLOOR))

    def mean(values: Tensor) -> Tensor:
        return (values * weight).sum() / weight.sum()

    one, two = (level - mean(level) for level in levels)
    (_, side), (_, made_side) = mid_side(truth.double()), mid_side(made.double())
    error = (made_side - side).square().sum()
    figures = {
        "side_sdr": 10 * ((side.square().sum() + 1e-9) / (error + 1e-9)).log10(),
        "side_correlation": (made_side * side).sum() / (made_side.norm() * side.norm() + 1e-9),
        "level_error": mean((levels[1] - levels[0]).abs()),
        "level_correlation": mean(one * two) / (mean(one * one) * mean(two * two) + 1e-12).sqrt(),
        "width_error": (widths[1] - widths[0]).abs().mean(),
        "coherence_error": (coherences[1] - coherences[0]).abs().mean(),
    }
    return {name: value.item() for name, value in figures.items()}


def mid_side(audio: Tensor) -> tuple[Tensor, Tensor]:
    """M and S, each ``[B, 1, T]``, of L and R ``[B, 2, T]``.

    Raises:
        ValueError: ``audio`` is not floating point ``[B, 2, T]`` with T >= 1.
    """
    if audio.dim() != 3 or audio.shape[1] != 2 or audio.shape[2] < 1 or not audio.is_floating_point():
        raise ValueError(
            f"audio must be floating-point stereo [B, 2, T] with T >= 1, got {audio.dtype} {tuple(audio.shape)}"
        )
    left, right = audio[:, :1], audio[:, 1:]
    return (left + right) / 2, (left - right) / 2


def _log_distance(made: Tensor, truth: Tensor) -> Tensor:
    # a difference of sums may round below zero where the truth is silent
    return ((made.relu() + FLOOR).log() - (truth.relu() + FLOOR).log()).abs().mean()

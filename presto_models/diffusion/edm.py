"""EDM (Karras et al. 2022, 2206.00364): preconditioning, loss, noise levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from presto_kernels import edm_denoise
from presto_models.conditioning import Conditioning
from presto_models.precomputed import Step

_LOWEST_RHO, _HIGHEST_RHO = 0.1, 1e6  # beyond them a power overflows, or its roots cannot be told apart
Level = TypeVar("Level", float, Tensor)


def edm_coefficients(sigma: Level, sigma_data: float = 0.5) -> tuple[Level, Level, Level]:
    """(c_skip, c_out, c_in) of EDM's Table 1, for a number or a tensor of noise levels.

    c_skip = sd^2 / (s^2 + sd^2),   c_out = s sd / sqrt(s^2 + sd^2),   c_in = 1 / sqrt(s^2 + sd^2)
    """
    total = sigma * sigma + sigma_data * sigma_data
    root = total**0.5
    return sigma_data * sigma_data / total, sigma * sigma_data / root, 1 / root


def edm_loss_weight(sigma: Level, sigma_data: float = 0.5) -> Level:
    """lambda = (s^2 + sd^2) / (s sd)^2 = 1 / c_out^2, EDM's Table 1: the network's output has weight 1 at every s."""
    return (sigma * sigma + sigma_data * sigma_data) / (sigma * sigma_data) ** 2


class EDM(nn.Module):
    """The denoiser D(x; sigma) = c_skip x + c_out F(c_in x; sigma): the network's guess of the clean latents.

    Args:
        dit: F, called as :meth:`presto_models.DiT.forward` is (which embeds c_noise = ln(sigma) / 4 itself).
        sigma_data: standard deviation of the latents.
        boundary_sigma: above 0 it is a consistency model's (Song et al. 2023, 2303.01469, appendix C), whose D is x
            itself at that noise level, its lowest:  c_skip = sd^2 / ((s - b)^2 + sd^2),  c_out = sd (s - b) /
            sqrt(s^2 + sd^2).

    x, sigma and D are fp32 whatever the network's dtype (float64 stays float64): only F is in half precision.
    """

    def __init__(self, dit: nn.Module, sigma_data: float = 0.5, *, boundary_sigma: float = 0.0) -> None:
        super().__init__()
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        if not 0 <= boundary_sigma < math.inf:
            raise ValueError(f"boundary_sigma must be at least 0 and finite, got {boundary_sigma}")
        self.dit = dit
        self.sigma_data, self.boundary_sigma = float(sigma_data), float(boundary_sigma)

    def forward(
        self,
        x: Tensor,
        sigma: float | Tensor,
        conditioning: Conditioning,
        *,
        blocks: Sequence[int] | None = None,
        budgets: Sequence[int] | None = None,
        precomputed: Step | None = None,
        sigma_to: float | Tensor | None = None,
        guidance: float | Tensor | None = None,
    ) -> Tensor:
        """D ``[B, N, C]``, fp32 or float64.

        Args:
            x: ``[B, N, C]``, noisy latents.
            sigma: a host number for the whole batch, or ``[B]``.
            conditioning, blocks, budgets, precomputed, sigma_to, guidance: go to the network; a host number stands for
                the whole batch.

        Raises:
            ValueError: ``precomputed`` was made for another noise level.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        x = x.to(dtype)

        def per_sample(value: float | Tensor) -> Tensor:
            if isinstance(value, Tensor):
                return value.to(dtype)
            return torch.full((x.shape[0],), value, dtype=dtype, device=x.device)

        c_in: float | Tensor
        if isinstance(sigma, Tensor):
            c_in = edm_coefficients(sigma.to(dtype)[:, None, None], self.sigma_data)[2]
        else:
            c_in = edm_coefficients(float(sigma), self.sigma_data)[2]
            if precomputed is not None and precomputed.sigma != sigma:
                raise ValueError(f"precomputed is for sigma {precomputed.sigma}, got sigma {sigma}")
        extras: dict[str, object] = {
            "blocks": blocks,
            "budgets": budgets,
            "precomputed": precomputed,
            "sigma_to": None if sigma_to is None else per_sample(sigma_to),
            "guidance": None if guidance is None else per_sample(guidance),
        }
        # Only what is given is passed, so that a network without (say) mixed budgets can stand here too.
        given = {name: value for name, value in extras.items() if value is not None}
        sigmas = per_sample(sigma)
        output = self.dit(c_in * x, sigmas, conditioning, **given)
        return edm_denoise(output, x, sigmas, sigma_data=self.sigma_data, sigma_min=self.boundary_sigma)

    def hidden(
        self,
        x: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        after: Sequence[int],
        *,
        blocks: Sequence[int] | None = None,
    ) -> tuple[Tensor, ...]:
        """The network's hidden states ``[B, N, dim]`` behind the blocks ``after``, at noise levels ``[B]``.

        Nothing behind the last of them is computed.  ``blocks``: those that run; None: all.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        sigma = sigma.to(x.dtype)
        c_in = edm_coefficients(sigma[:, None, None], self.sigma_data)[2]
        given = {} if blocks is None else {"blocks": blocks}
        return self.dit(c_in * x, sigma, conditioning, hidden_after=after, **given)


def edm_loss(
    edm: EDM,
    x0: Tensor,
    conditioning: Conditioning,
    *,
    sigma: Tensor,
    noise: Tensor,
    blocks: Sequence[int] | None = None,
    budgets: Sequence[int] | None = None,
    sigma_to: Tensor | None = None,
    guidance: Tensor | None = None,
) -> Tensor:
    """EDM's denoising loss of each sample: lambda(sigma) mean (D(x0 + sigma noise; sigma) - x0)^2.

    Args:
        x0: ``[B, N, C]``, clean latents.
        sigma: ``[B]``, see :class:`TrainingSigmas`.
        noise: ``[B, N, C]``, standard normal.
        conditioning, blocks, budgets, sigma_to, guidance: as in :meth:`EDM.forward`.

    Returns:
        ``[B]``, fp32 or float64; the mean over the batch is the loss.  The paper's ||.||^2 is a sum; ours is a mean
        over positions and channels, so that the learning rate does not depend on the length.
    """
    dtype = torch.promote_types(x0.dtype, torch.float32)
    x0, sigma = x0.to(dtype), sigma.to(dtype)
    noisy = x0 + sigma[:, None, None] * noise.to(dtype)
    denoised = edm(noisy, sigma, conditioning, blocks=blocks, budgets=budgets, sigma_to=sigma_to, guidance=guidance)
    return edm_loss_weight(sigma, edm.sigma_data) * (denoised - x0).square().mean(dim=(1, 2))


@dataclass(frozen=True)
class TrainingSigmas:
    """EDM's training distribution: ln(sigma) ~ Normal(p_mean, p_std^2), clipped to [sigma_min, sigma_max].

    The defaults are the paper's for data of standard deviation 0.5; :meth:`for_sigma_data` shifts them all for another.
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not self.p_std > 0:
            raise ValueError(f"p_std must be positive, got {self.p_std}")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"0 < sigma_min < sigma_max must hold, got {self.sigma_min} and {self.sigma_max}")

    def for_sigma_data(self, sigma_data: float) -> TrainingSigmas:
        """The same distribution of sigma / sigma_data.  Our choice; the paper fixes sigma_data at 0.5."""
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        factor = sigma_data / 0.5
        return replace(
            self,
            p_mean=self.p_mean + math.log(factor),
            sigma_min=self.sigma_min * factor,
            sigma_max=self.sigma_max * factor,
        )

    def sample(self, batch: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``[batch]``, fp32 on the CPU, where layer budgets are chosen from it."""
        normal = torch.randn(batch, generator=generator)
        return (self.p_mean + self.p_std * normal).exp().clamp(self.sigma_min, self.sigma_max)


def karras_sigmas(
    n: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    spacing: str = "endpoint",
) -> tuple[float, ...]:
    """Karras' noise levels, falling, then 0: n + 1 host numbers, so n steps.

        sigma_i = (sigma_max^(1/rho) + u_i (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    ``spacing="endpoint"``: u_i = i / (n - 1), EDM's eq. 5, for solvers.  ``"interval"``: u_i = i / n, our choice for
    few-step students, whose last call at sigma_min would otherwise do nothing: 80, 17.5, 2.52, 0.17 at n = 4.
    n = 1 gives (sigma_max, 0) either way.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be an int of at least 1, got {n!r}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"0 < sigma_min < sigma_max must hold, got {sigma_min} and {sigma_max}")
    if not _LOWEST_RHO <= rho <= _HIGHEST_RHO:
        raise ValueError(f"rho must be from {_LOWEST_RHO:g} to {_HIGHEST_RHO:g}, got {rho}")
    if spacing not in ("endpoint", "interval"):
        raise ValueError(f"spacing must be 'endpoint' or 'interval', got {spacing!r}")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    count = max(n - 1, 1) if spacing == "endpoint" else n
    # The ends are exact: a root and a power need not undo each other.
    inner = [(high + i / count * (low - high)) ** rho for i in range(1, n)]
    if spacing == "endpoint" and n > 1:
        inner[-1] = float(sigma_min)
    return (float(sigma_max), *inner, 0.0)

"""The sampler family in plain PyTorch: what the others are measured against, and what runs when there is no other.

    edm_denoise   c_skip x + c_out F,   r = sigma - sigma_min,
                  c_skip = sd^2 / (r^2 + sd^2),   c_out = sd r / sqrt(sigma^2 + sd^2)
                  (EDM, 2206.00364, Table 1; with sigma_min consistency models, 2303.01469, appendix C)
    renoise       signal x0 + sigma eps

eps is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") and Box-Muller.  For the
element e of a sample, counted in row-major order, all words of 32 bits:

    counter   c0 = e // 4,   c1 = offset,   c2 = sample,   c3 = 0
    key       k0 = the seed's low word,   k1 = its high word
    sample    b where one int is the seed of the batch; 0 where each sample has a seed of its own

so that a sample has at most 2^34 elements.  Of a counter's four words w0 ... w3

    u_j = (floor(w_j / 2^8) + 1/2) 2^-24
    eps[4i], eps[4i + 1]     = sqrt(-2 ln u0) (cos, sin)(2 pi u1)
    eps[4i + 2], eps[4i + 3] = sqrt(-2 ln u2) (cos, sin)(2 pi u3)

rounded to fp32.  The words are the same on every device and implementation, the normals to within 4 ulp of the radius
(here they are computed in float64 and rounded, so within half an ulp).  |eps| is below 5.9.

Arithmetic is fp32, or float64 as soon as one input is float64; the noise is fp32 then too, only widened.  Autograd
differentiates both as they stand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_SAMPLE = 2**34  # elements of a sample: four for each value of c0
_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def per_sample(t: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], to stand beside x."""
    return t.view(-1, *[1] * (x.dim() - 1))


def denoise(model_output: Tensor, x: Tensor, sigma: Tensor, sigma_data: float, sigma_min: float) -> Tensor:
    """c_skip x + c_out F, in x's dtype."""
    dtype = _compute_dtype(model_output, x, sigma)
    sigma = per_sample(sigma.to(dtype), x)
    reach = sigma - sigma_min
    c_skip = sigma_data**2 / (reach * reach + sigma_data**2)
    c_out = sigma_data * reach / torch.sqrt(sigma * sigma + sigma_data**2)
    return (c_skip * x.to(dtype) + c_out * model_output.to(dtype)).to(x.dtype)


def _multiply(word: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """(high word, low word) of a product of two words, without a sum that int64 cannot hold."""
    low = by * (word & 0xFFFF)
    high = by * (word >> 16) + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | low & 0xFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The four words of Philox4x32-10, all in int64 tensors of 32-bit values that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _column(value: int | Tensor, device: torch.device) -> Tensor:
    """An int or [B] -> int64 [1, 1] or [B, 1]."""
    if isinstance(value, Tensor):
        return value.unsqueeze(1)
    return torch.full((1, 1), value, dtype=torch.int64, device=device)


def words(shape: torch.Size, seed: int | Tensor, offset: int | Tensor, device: torch.device) -> list[Tensor]:
    """w0 ... w3 of every counter of every sample: [B, elements / 4 rounded up] each."""
    batch, elements = shape[0], math.prod(shape[1:])
    key, zero = _column(seed, device), torch.zeros((1, 1), dtype=torch.int64, device=device)
    sample = zero if isinstance(seed, Tensor) else torch.arange(batch, device=device).unsqueeze(1)
    count = torch.arange((elements + 3) // 4, device=device).unsqueeze(0)
    counter = count, _column(offset, device) & _LOW, sample, zero
    return [word.expand(batch, -1) for word in philox(counter, (key & _LOW, key >> 32 & _LOW))]


def normal(shape: torch.Size, seed: int | Tensor, offset: int | Tensor, device: torch.device) -> Tensor:
    """eps of this shape, in float64: not yet rounded to fp32."""
    u0, u1, u2, u3 = (((word >> 8).double() + 0.5) * 2.0**-24 for word in words(shape, seed, offset, device))
    parts = []
    for radius, turn in ((u0, u1), (u2, u3)):
        radius, angle = torch.sqrt(-2 * torch.log(radius)), 2 * math.pi * turn
        parts += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(parts, dim=-1).flatten(1)[:, : math.prod(shape[1:])].reshape(shape)


def renoise(x0: Tensor, sigma: float | Tensor, seed: int | Tensor, offset: int | Tensor, signal: float) -> Tensor:
    """signal x0 + sigma eps, in x0's dtype."""
    tensor = sigma if isinstance(sigma, Tensor) else None
    dtype = _compute_dtype(x0, tensor)
    eps = normal(x0.shape, seed, offset, x0.device).float().to(dtype)
    scale = sigma if tensor is None else per_sample(tensor.to(dtype), x0)
    return (signal * x0.to(dtype) + scale * eps).to(x0.dtype)

"""Sampler steps: how they are called here, eager PyTorch beside them, and what they must do.

The state of a sampler is fp32 whatever the network runs in, so x, x0 and sigma are fp32 in every case.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import presto_kernels
from bench.counting import Count
from bench.op_cases.op import Normal, Op, Outputs, Shape

SHAPES = ("1x1379x64", "8x1379x64", "1x324x256")
SIGMA_DATA = 0.5


def _make_denoise(shape: Shape, normal: Normal) -> Outputs:
    return normal(*shape), normal(*shape, dtype=torch.float32)


def _denoise_constants(shape: Shape, device: torch.device) -> dict[str, Any]:
    """No sampler and no loss asks for sigma's gradient."""
    return {"sigma": torch.linspace(0.5, 5, shape[0], device=device)}


def _eager_denoise(model_output: Tensor, x: Tensor, sigma: Tensor) -> Outputs:
    sigma = sigma[:, None, None]
    total = sigma.square() + SIGMA_DATA**2
    return (SIGMA_DATA**2 / total * x + sigma * SIGMA_DATA * total.rsqrt() * model_output,)


def _presto_denoise(model_output: Tensor, x: Tensor, sigma: Tensor) -> Outputs:
    return (presto_kernels.edm_denoise(model_output, x, sigma, sigma_data=SIGMA_DATA),)


def _denoise(shape: Shape, itemsize: int) -> Count:
    size = shape[0] * shape[1] * shape[2]
    return Count(
        size * (itemsize + 8) + 4 * shape[0],
        3 * size + 7 * shape[0],
        "read F: BND s; read x, write D in fp32: 8 BND; read sigma: 4 B",
        "two products and a sum: 3 BND; the coefficients: 7 B",
    )


def _denoise_backward(shape: Shape, itemsize: int) -> Count:
    size = shape[0] * shape[1] * shape[2]
    return Count(
        size * (itemsize + 8) + 4 * shape[0],
        2 * size + 7 * shape[0],
        "read dD, write dx in fp32: 8 BND; write dF: BND s; read sigma: 4 B",
        "dF 1, dx 1: 2 BND; the coefficients: 7 B",
    )


def _make_renoise(shape: Shape, normal: Normal) -> Outputs:
    return normal(*shape, dtype=torch.float32), normal(shape[0], dtype=torch.float32).exp()


def _renoise_constants(shape: Shape, device: torch.device) -> dict[str, Any]:
    return {"seed": 11, "offset": 2}


def _eager_renoise(x0: Tensor, sigma: Tensor, seed: int, offset: int) -> Outputs:
    return (x0 + sigma[:, None, None] * torch.randn_like(x0),)


def _presto_renoise(x0: Tensor, sigma: Tensor, seed: int, offset: int) -> Outputs:
    return (presto_kernels.renoise(x0, sigma, seed=seed, offset=offset),)


def _reference_renoise(x0: Tensor, sigma: Tensor, seed: int, offset: int) -> Outputs:
    with presto_kernels.use_backend("reference"):
        return _presto_renoise(x0, sigma, seed, offset)


def _renoise(shape: Shape, itemsize: int) -> Count:
    size = shape[0] * shape[1] * shape[2]
    return Count(
        8 * size + 4 * shape[0],
        32 * size,
        "read x0, write x in fp32: 8 BND; read sigma: 4 B",
        "Philox, ten rounds of 8 integer operations for 4 numbers 20, uniform 3, logarithm, root, sine, cosine and "
        "their products 7, times sigma and add 2: 32 BND",
    )


OPS = (
    Op(
        "edm_denoise",
        "BxNxC",
        SHAPES,
        ("model_output", "x"),
        ("D",),
        _eager_denoise,
        _presto_denoise,
        _denoise,
        _denoise_backward,
        _make_denoise,
        _denoise_constants,
    ),
    Op(
        "renoise",
        "BxNxC",
        SHAPES,
        ("x0", "sigma"),
        ("x",),
        _eager_renoise,
        _presto_renoise,
        _renoise,
        None,
        _make_renoise,
        _renoise_constants,
        oracle=_reference_renoise,
        unchecked=("eager", "compile"),
    ),
)

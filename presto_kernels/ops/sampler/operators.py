"""The operator boundary of the sampler family; formulas: :mod:`presto_kernels.ops.sampler.reference`.

``presto_kernels::edm_denoise`` and ``renoise`` are implemented by the C++ library on CPU and CUDA tensors,
``..._triton`` by the Triton kernels, with one schema and one fake.

edm_denoise           -> c_skip x + c_out F
edm_denoise_backward  -> (dF, dx, dsigma), dF in the dtype that ``output_dtype`` is the code of; bit i of ``needs`` asks
                         for output i, and one not asked for is a tensor of shape [0].  model_output and x are read for
                         dsigma alone and need not be given without it.
renoise               -> signal x0 + sigma eps
renoise_backward      -> dsigma; the noise is drawn again.  (dx0 is signal times the gradient.)

A level, seed or offset is one number for the batch, or, where the tensor is given, one a sample: a schema knows no
union.  Seeds are int64 and stand for their bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from presto_kernels._ops import ops
from presto_kernels.ops.operators import define

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}

# SymInt: an int would be compiled in, and every seed compile anew.
_DRAW = "Tensor? seeds, SymInt seed, Tensor? offsets, SymInt offset"


def _edm_denoise_fake(model_output, x, sigma, sigma_data, sigma_min):
    return x.new_empty(x.shape)


def _edm_denoise_backward_fake(grad, model_output, x, sigma, sigma_data, sigma_min, output_dtype, needs):
    owners = ((grad.shape, _DTYPES[output_dtype]), (grad.shape, grad.dtype), (sigma.shape, sigma.dtype))
    return tuple(
        grad.new_empty(shape if needs >> bit & 1 else 0, dtype=dtype) for bit, (shape, dtype) in enumerate(owners)
    )


def _renoise_fake(x0, sigmas, sigma, seeds, seed, offsets, offset, signal):
    return x0.new_empty(x0.shape)


def _renoise_backward_fake(grad, sigma, seeds, seed, offsets, offset) -> Tensor:
    return sigma.new_empty(sigma.shape)


define(
    "edm_denoise",
    "(Tensor model_output, Tensor x, Tensor sigma, float sigma_data, float sigma_min) -> Tensor",
    _edm_denoise_fake,
)
define(
    "edm_denoise_backward",
    "(Tensor grad, Tensor? model_output, Tensor? x, Tensor sigma, float sigma_data, float sigma_min, int output_dtype,"
    " int needs) -> (Tensor, Tensor, Tensor)",
    _edm_denoise_backward_fake,
)
define(
    "renoise",
    f"(Tensor x0, Tensor? sigmas, float sigma, {_DRAW}, float signal) -> Tensor",
    _renoise_fake,
)
define("renoise_backward", f"(Tensor grad, Tensor sigma, {_DRAW}) -> Tensor", _renoise_backward_fake)


def operator(backend: str, name: str):
    """The operator of this name that carries ``backend`` ("cpu", "cuda" or "triton")."""
    if backend == "triton":
        # Registers its operators when it is first imported, so that nobody pays for Triton who does not use it.
        from presto_kernels.ops.sampler import triton_kernels  # noqa: F401

        name = f"{name}_triton"
    return getattr(ops, name).default

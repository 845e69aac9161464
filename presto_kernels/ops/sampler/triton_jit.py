"""The sampler family in Triton: device code.  Launched by :mod:`presto_kernels.ops.sampler.triton_kernels`.

    edm_denoise   D = c_skip x + c_out F,   r = sigma - sigma_min,
                  c_skip = sd^2 / (r^2 + sd^2),   c_out = sd r / sqrt(sigma^2 + sd^2)
    renoise       y = signal x0 + sigma eps;   eps, its counters and its polynomials: csrc/normal.h and
                  :mod:`presto_kernels.ops.sampler.reference`

and backward, with q = r^2 + sd^2, t = sigma^2 + sd^2:

    dF = c_out g,   dx = c_skip g,   dsigma = sum g (c_skip' x + c_out' F) over a sample,
    c_skip' = -2 r sd^2 / q^2,   c_out' = sd (sd^2 + sigma_min sigma) / t^(3/2);      renoise: dsigma = sum g eps

Rounded: each result once, to its dtype; everything else is fp32.  A sum over a sample is added up by programs of a
fixed number of elements, then by one program in their order: no atomics, the same bits on every run.

Bytes per element of s bytes: edm_denoise 3 s (reads x, F; writes D), backward 2 s to 5 s; renoise 2 s, backward s.

Limits: [B, ...] with any number of elements; fewer than 2^31 programs.

Elements are counted within a sample.  Where a sample is dense in every tensor its elements are neighbours (FLAT), and
with VECTOR they are accessed 16 bytes at a time; else it is rows of `dim` elements.  A kernel is compiled once per
dtypes, options and which tensors are given, never for a length.
"""

# No `from __future__ import annotations`: Triton reads the annotations themselves.  Loops over a run-time count are
# `while`: see modulation/triton_jit.py.
import triton
import triton.language as tl

from presto_kernels.ops.triton_common import kernel, round_to, sin_cos_quarters

MULTIPLY_0, MULTIPLY_1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
WEYL_0, WEYL_1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)
LN2 = tl.constexpr(float.fromhex("0x1.62e430p-1"))
L0, L1, L2, L3, L4, L5, L6, L7, L8 = (
    tl.constexpr(float.fromhex(c))
    for c in (
        "-0x1.fffff8p-2", "0x1.555550p-2", "-0x1.000436p-2", "0x1.99a426p-3", "-0x1.5424aep-3", "0x1.226bc8p-3",
        "-0x1.0f4804p-3", "0x1.08767ep-3", "-0x1.3854c2p-4",
    )
)  # fmt: skip
TO_UNIT = tl.constexpr(2.0**-24)
TO_QUARTER = tl.constexpr(2.0**-22)


@triton.jit
def _addresses(pointer, b, element, batch_stride, row_stride, dim, FLAT: tl.constexpr, VECTOR: tl.constexpr):
    """Where elements of sample b are: 64-bit, so that 2^31 elements are no limit."""
    start = pointer + b.to(tl.int64) * batch_stride
    at = start + element
    if not FLAT:
        at = start + (element // dim) * row_stride + element % dim
    if VECTOR:
        at = tl.multiple_of(at, 16)
    return at


@triton.jit
def _load(pointer, b, element, batch_stride, row_stride, dim, mask, FLAT: tl.constexpr, VECTOR: tl.constexpr):
    at = _addresses(pointer, b, element, batch_stride, row_stride, dim, FLAT, VECTOR)
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, b, element, value, size, mask, VECTOR: tl.constexpr):
    """Write elements of a contiguous result."""
    at = pointer + b.to(tl.int64) * size + element
    if VECTOR:
        at = tl.multiple_of(at, 16)
    tl.store(at, round_to(value, pointer.dtype.element_ty), mask=mask)


@triton.jit
def _elements(programs, size, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """(sample, elements, mask) of this program; `programs` of them make a sample."""
    b = tl.program_id(0) // programs
    part = tl.program_id(0) % programs
    element = part.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    if VECTOR:  # then a sample is whole vectors of 16 elements
        mask = tl.max_constancy(mask, 16)
    return b, element, mask


@triton.jit
def _edm_coefficients(sigma, sigma_data, sigma_min):
    square = sigma_data * sigma_data
    r = sigma - sigma_min
    return tl.div_rn(square, r * r + square), tl.div_rn(sigma_data * r, tl.sqrt_rn(sigma * sigma + square))


@triton.jit
def _edm_slopes(sigma, sigma_data, sigma_min):
    """In float64: every term of a sum has the same rounding error of a slope, so it would not average out."""
    sigma = sigma.to(tl.float64)
    zero = tl.full([], 0.0, tl.float64)  # widens what has no type of its own where it is interpreted
    sigma_data = zero + sigma_data
    sigma_min = zero + sigma_min
    square = sigma_data * sigma_data
    r = sigma - sigma_min
    q = r * r + square
    t = sigma * sigma + square
    skip = -2.0 * r * square / (q * q)
    out = sigma_data * (square + sigma_min * sigma) / (t * tl.sqrt(t))
    return skip.to(tl.float32), out.to(tl.float32)


@kernel
def edm_denoise(
    model_output,
    x,
    sigma,
    out,
    programs: tl.int32,
    size: tl.int64,
    dim: tl.int64,
    model_output_batch: tl.int64,
    model_output_row: tl.int64,
    x_batch: tl.int64,
    x_row: tl.int64,
    sigma_stride: tl.int64,
    sigma_data: tl.float32,
    sigma_min: tl.float32,
    BLOCK: tl.constexpr,
    FLAT: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: BLOCK elements of a sample."""
    b, element, mask = _elements(programs, size, BLOCK, VECTOR)
    value = _load(x, b, element, x_batch, x_row, dim, mask, FLAT, VECTOR)
    update = _load(model_output, b, element, model_output_batch, model_output_row, dim, mask, FLAT, VECTOR)
    level = tl.load(sigma + b * sigma_stride).to(tl.float32)
    c_skip, c_out = _edm_coefficients(level, sigma_data, sigma_min)
    _store(out, b, element, tl.fma(update, c_out, c_skip * value), size, mask, VECTOR)


@kernel
def edm_denoise_backward(
    grad,
    model_output,
    x,
    sigma,
    dmodel_output,
    dx,
    sums,
    programs: tl.int32,
    size: tl.int64,
    dim: tl.int64,
    grad_batch: tl.int64,
    grad_row: tl.int64,
    model_output_batch: tl.int64,
    model_output_row: tl.int64,
    x_batch: tl.int64,
    x_row: tl.int64,
    sigma_stride: tl.int64,
    sigma_data: tl.float32,
    sigma_min: tl.float32,
    BLOCK: tl.constexpr,
    FLAT: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: BLOCK elements of a sample, and their part of dsigma into `sums`."""
    b, element, mask = _elements(programs, size, BLOCK, VECTOR)
    g = _load(grad, b, element, grad_batch, grad_row, dim, mask, FLAT, VECTOR)
    level = tl.load(sigma + b * sigma_stride).to(tl.float32)
    c_skip, c_out = _edm_coefficients(level, sigma_data, sigma_min)
    if dx is not None:
        _store(dx, b, element, c_skip * g, size, mask, VECTOR)
    if dmodel_output is not None:
        _store(dmodel_output, b, element, c_out * g, size, mask, VECTOR)
    if sums is not None:
        value = _load(x, b, element, x_batch, x_row, dim, mask, FLAT, VECTOR)
        update = _load(model_output, b, element, model_output_batch, model_output_row, dim, mask, FLAT, VECTOR)
        skip, out = _edm_slopes(level, sigma_data, sigma_min)
        tl.store(sums + tl.program_id(0), tl.sum(g * (skip * value + out * update), axis=0))


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """The four words of Philox4x32-10."""
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, tl.full(c0.shape, MULTIPLY_0, tl.uint32))
        high1 = tl.umulhi(c2, tl.full(c2.shape, MULTIPLY_1, tl.uint32))
        low0 = c0 * tl.full(c0.shape, MULTIPLY_0, tl.uint32)
        low1 = c2 * tl.full(c2.shape, MULTIPLY_1, tl.uint32)
        c0 = high1 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low1
        c3 = low0
        k0 = k0 + tl.full(k0.shape, WEYL_0, tl.uint32)
        k1 = k1 + tl.full(k1.shape, WEYL_1, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _box_muller(of_radius, of_angle):
    """A (cos, sin) pair of normals; the steps are explained in csrc/normal.h."""
    t = of_radius.to(tl.int32, bitcast=True) >> 8
    a = tl.fma(t.to(tl.float32), TO_UNIT, 0.5 * TO_UNIT)
    one = tl.where(t < 0, 1.0, 0.0)
    e = ((a + one).to(tl.int32, bitcast=True) - 0x3F3504F3) >> 23
    scale = (0x3F800000 - (e << 23)).to(tl.float32, bitcast=True)
    f = tl.fma(a, scale, tl.fma(one, scale, -1.0))
    p = tl.fma(f, L8, L7)
    p = tl.fma(p, f, L6)
    p = tl.fma(p, f, L5)
    p = tl.fma(p, f, L4)
    p = tl.fma(p, f, L3)
    p = tl.fma(p, f, L2)
    p = tl.fma(p, f, L1)
    p = tl.fma(p, f, L0)
    logarithm = tl.fma(e.to(tl.float32), LN2, tl.fma(f * f, p, f))
    radius = tl.sqrt_rn(-2.0 * logarithm)

    turn = of_angle.to(tl.int32, bitcast=True) >> 8
    quadrant = (turn + 0x200000) >> 22
    z = tl.fma((turn - (quadrant << 22)).to(tl.float32), TO_QUARTER, 0.5 * TO_QUARTER)
    sine, cosine = sin_cos_quarters(quadrant, z)
    return radius * cosine, radius * sine


@triton.jit
def _normal(b, part, seeds, seeds_stride, seed, offsets, offsets_stride, offset, BLOCK: tl.constexpr):
    """eps of elements [part BLOCK, (part + 1) BLOCK) of sample b, in order."""
    counter = (part.to(tl.int64) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    sample = b
    if seeds is not None:
        seed = tl.load(seeds + b * seeds_stride)
        sample = b * 0
    if offsets is not None:
        offset = tl.load(offsets + b * offsets_stride)
    zero = counter * 0
    seed = seed.to(tl.int64)  # the interpreter gives a small number 32 bits
    k0 = zero + seed.to(tl.uint32)
    k1 = zero + (seed >> 32).to(tl.uint32)
    c1 = zero + offset.to(tl.int64).to(tl.uint32)
    c2 = zero + sample.to(tl.uint32)
    w0, w1, w2, w3 = _philox(counter, c1, c2, zero, k0, k1)
    n0, n1 = _box_muller(w0, w1)
    n2, n3 = _box_muller(w2, w3)
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [BLOCK])


@kernel
def renoise(
    x0,
    sigmas,
    seeds,
    offsets,
    out,
    programs: tl.int32,
    size: tl.int64,
    dim: tl.int64,
    x0_batch: tl.int64,
    x0_row: tl.int64,
    sigmas_stride: tl.int64,
    seeds_stride: tl.int64,
    offsets_stride: tl.int64,
    sigma: tl.float32,
    seed: tl.int64,
    offset: tl.int64,
    signal: tl.float32,
    BLOCK: tl.constexpr,
    FLAT: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: BLOCK elements of a sample."""
    b, element, mask = _elements(programs, size, BLOCK, VECTOR)
    value = _load(x0, b, element, x0_batch, x0_row, dim, mask, FLAT, VECTOR)
    part = tl.program_id(0) % programs
    eps = _normal(b, part, seeds, seeds_stride, seed, offsets, offsets_stride, offset, BLOCK)
    level = sigma
    if sigmas is not None:
        level = tl.load(sigmas + b * sigmas_stride).to(tl.float32)
    _store(out, b, element, tl.fma(eps, level, signal * value), size, mask, VECTOR)


@kernel
def renoise_backward(
    grad,
    seeds,
    offsets,
    sums,
    programs: tl.int32,
    size: tl.int64,
    dim: tl.int64,
    grad_batch: tl.int64,
    grad_row: tl.int64,
    seeds_stride: tl.int64,
    offsets_stride: tl.int64,
    seed: tl.int64,
    offset: tl.int64,
    BLOCK: tl.constexpr,
    FLAT: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: the part of dsigma that BLOCK elements of a sample give, into `sums`."""
    b, element, mask = _elements(programs, size, BLOCK, VECTOR)
    g = _load(grad, b, element, grad_batch, grad_row, dim, mask, FLAT, VECTOR)
    part = tl.program_id(0) % programs
    eps = _normal(b, part, seeds, seeds_stride, seed, offsets, offsets_stride, offset, BLOCK)
    tl.store(sums + tl.program_id(0), tl.sum(g * eps, axis=0))


@kernel
def sample_sums(sums, out, programs: tl.int32, TERMS: tl.constexpr):
    """One program: out[b] = the sum of sample b's `programs` terms."""
    b = tl.program_id(0)
    total = tl.zeros([TERMS], tl.float32)
    start = sums + b.to(tl.int64) * programs
    done = 0
    while done < programs:
        i = done + tl.arange(0, TERMS)
        total += tl.load(start + i, mask=i < programs, other=0.0)
        done += TERMS
    tl.store(out + b, round_to(tl.sum(total, axis=0), out.dtype.element_ty))

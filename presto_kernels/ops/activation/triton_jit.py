"""Gated activations and Snake in Triton: device code.  Launched by
:mod:`presto_kernels.ops.activation.triton_kernels`.

    glu     y = value * act(gate)                        x [B, N, 2 D] = (value, gate), or (gate, value)
            dvalue = grad * act(gate)                    dgate = grad * value * act'(gate)
            act(g) = g sigmoid(g),    g (1 + erf(g / sqrt 2)) / 2    or    sin(pi g)
    snake   y = x + sin(alpha x)^2 * k                   x [B, C, T], k = 1 / (beta + 1e-9)
            dx = grad * (1 + 2 alpha k sin cos)          sin, cos of alpha x
            dalpha = k sum grad * x * 2 sin cos          dbeta = -k^2 sum grad * sin^2       over B and T

Everything is fp32 and each result is rounded once, to the dtype of what it belongs to.  Sine and cosine of snake are
those of libdevice, of the gate those of triton_common; all are right for any argument.  Sums are added in an order that
the shape alone fixes: a program sums CHUNK elements of one row, a second kernel the programs' sums of one channel.
There are no atomics.

Bytes for each element of y, of s bytes: glu 3 s, backward 5 s; snake 2 s, backward 3 s (and 8 bytes for each chunk of
a row, written and read).

Limits: fewer than 2^31 rows; D and T below 2^31 - 2^16; fewer than 2^31 programs; any number of elements.

A kernel is compiled once per dtypes, options and VECTOR, and never again for another length or width: nothing is
specialised on a value.  VECTOR says that every row of every tensor begins and ends at a multiple of 16 bytes.
"""

# No `from __future__ import annotations`: Triton reads the annotations themselves.  Loops over a run-time count are
# `while`, because Triton 3.6's interpreter cannot give one to range() under numpy >= 2.4.
import triton
import triton.language as tl

from presto_kernels.ops.triton_common import kernel, round_to, sin_cos_pi


@triton.jit
def _length(length, UNIT: tl.constexpr, VECTOR: tl.constexpr):
    """`length` itself; with VECTOR in a form that tells the compiler that a mask never cuts 16 bytes in two."""
    if VECTOR:
        length = (length // UNIT) * UNIT
    return length


@triton.jit
def _address(start, cols, VECTOR: tl.constexpr):
    """Columns of the rows that begin at `start`.  What is known of an address has to be said where it is computed."""
    at = start + cols
    if VECTOR:
        at = tl.multiple_of(at, 16) if len(at.shape) == 1 else tl.multiple_of(at, [1, 16])
    return at


@triton.jit
def _load(start, cols, mask, VECTOR: tl.constexpr):
    return tl.load(_address(start, cols, VECTOR), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(start, cols, value, mask, VECTOR: tl.constexpr):
    tl.store(_address(start, cols, VECTOR), round_to(value, start.dtype.element_ty), mask=mask)


@triton.jit
def _gelu_cdf(gate):
    return 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))


@triton.jit
def _tile(rows, tokens, D, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, UNIT: tl.constexpr, VECTOR: tl.constexpr):
    """(sample, token, row in all, columns, mask) of this program's GROUP rows and BLOCK_D columns."""
    row = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)[:, None]
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    mask = (row < rows) & (cols < _length(D, UNIT, VECTOR))
    return row // tokens, row % tokens, row, cols, mask


@kernel
def glu_forward(
    x,
    y,
    rows: tl.int32,
    tokens: tl.int32,
    D: tl.int32,
    value_at: tl.int32,
    gate_at: tl.int32,
    x_batch: tl.int64,
    x_row: tl.int64,
    ACT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    UNIT: tl.constexpr,
    VECTOR: tl.constexpr,
):
    b, n, row, cols, mask = _tile(rows, tokens, D, BLOCK_D, GROUP, UNIT, VECTOR)
    of_row = x + (b * x_batch + n * x_row)
    value = _load(of_row + value_at, cols, mask, VECTOR)
    gate = _load(of_row + gate_at, cols, mask, VECTOR)
    if ACT == 0:
        gate *= tl.sigmoid(gate)
    elif ACT == 1:
        gate *= _gelu_cdf(gate)
    else:
        gate, _ = sin_cos_pi(gate)
    _store(y + row * D, cols, value * gate, mask, VECTOR)


@kernel
def glu_backward(
    grad,
    x,
    dx,
    rows: tl.int32,
    tokens: tl.int32,
    D: tl.int32,
    value_at: tl.int32,
    gate_at: tl.int32,
    grad_batch: tl.int64,
    grad_row: tl.int64,
    x_batch: tl.int64,
    x_row: tl.int64,
    ACT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    UNIT: tl.constexpr,
    VECTOR: tl.constexpr,
):
    b, n, row, cols, mask = _tile(rows, tokens, D, BLOCK_D, GROUP, UNIT, VECTOR)
    of_row = x + (b * x_batch + n * x_row)
    d = _load(grad + (b * grad_batch + n * grad_row), cols, mask, VECTOR)
    value = _load(of_row + value_at, cols, mask, VECTOR)
    gate = _load(of_row + gate_at, cols, mask, VECTOR)
    if ACT == 0:
        part = tl.sigmoid(gate)
        slope = part * (1.0 + gate * (1.0 - part))
        gate *= part
    elif ACT == 1:
        part = _gelu_cdf(gate)
        slope = part + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
        gate *= part
    else:
        gate, slope = sin_cos_pi(gate)
        slope *= 3.141592653589793
    to_row = dx + row * 2 * D
    _store(to_row + value_at, cols, d * gate, mask, VECTOR)
    _store(to_row + gate_at, cols, d * value * slope, mask, VECTOR)


@triton.jit
def _factor(beta, c, beta_stride):
    return 1.0 / (tl.load(beta + c.to(tl.int64) * beta_stride).to(tl.float32) + 1e-9)


@kernel
def snake_forward(
    x,
    alpha,
    beta,
    y,
    channels: tl.int32,
    length: tl.int32,
    blocks: tl.int32,
    x_batch: tl.int64,
    x_row: tl.int64,
    alpha_stride: tl.int64,
    beta_stride: tl.int64,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: BLOCK elements of one row; `blocks` programs a row."""
    row = tl.program_id(0) // blocks
    cols = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = cols < _length(length, UNIT, VECTOR)
    b = (row // channels).to(tl.int64)
    c = row % channels
    value = _load(x + (b * x_batch + c.to(tl.int64) * x_row), cols, mask, VECTOR)
    s = tl.sin(tl.load(alpha + c.to(tl.int64) * alpha_stride).to(tl.float32) * value)
    _store(y + row.to(tl.int64) * length, cols, value + s * s * _factor(beta, c, beta_stride), mask, VECTOR)


@kernel
def snake_backward(
    grad,
    x,
    alpha,
    beta,
    dx,
    products,
    squares,
    channels: tl.int32,
    length: tl.int32,
    chunks: tl.int32,
    terms: tl.int32,
    grad_batch: tl.int64,
    grad_row: tl.int64,
    x_batch: tl.int64,
    x_row: tl.int64,
    alpha_stride: tl.int64,
    beta_stride: tl.int64,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: CHUNK elements of one row, BLOCK at a time; `chunks` programs a row.

    Its sums of grad * x * sin cos and grad * sin^2 go to term b * chunks + chunk of its channel, of `terms`.
    """
    row = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    b = (row // channels).to(tl.int64)
    c = row % channels
    a = tl.load(alpha + c.to(tl.int64) * alpha_stride).to(tl.float32)
    slope = 2.0 * a * _factor(beta, c, beta_stride)
    of_x = x + (b * x_batch + c.to(tl.int64) * x_row)
    of_grad = grad + (b * grad_batch + c.to(tl.int64) * grad_row)
    product = tl.zeros([BLOCK], tl.float32)
    square = tl.zeros([BLOCK], tl.float32)
    for start in range(0, CHUNK, BLOCK):
        cols = chunk * CHUNK + start + tl.arange(0, BLOCK)
        mask = cols < _length(length, UNIT, VECTOR)
        value = _load(of_x, cols, mask, VECTOR)
        d = _load(of_grad, cols, mask, VECTOR)
        s = tl.sin(a * value)
        sc = s * tl.cos(a * value)
        product += d * value * sc
        square += d * s * s
        if dx is not None:
            _store(dx + row.to(tl.int64) * length, cols, d + d * slope * sc, mask, VECTOR)
    if products is not None:
        term = c.to(tl.int64) * terms + b * chunks + chunk
        tl.store(products + term, tl.sum(product))
        tl.store(squares + term, tl.sum(square))


@kernel
def snake_backward_sums(
    products, squares, beta, dalpha, dbeta, terms: tl.int32, beta_stride: tl.int64, TERMS: tl.constexpr
):
    """One program: the gradients of one channel, from its `terms` sums, TERMS at a time."""
    c = tl.program_id(0)
    first = c.to(tl.int64) * terms
    product = tl.zeros([TERMS], tl.float32)
    square = tl.zeros([TERMS], tl.float32)
    done = 0
    while done < terms:  # not range(): see the top of the file
        i = done + tl.arange(0, TERMS)
        product += tl.load(products + first + i, mask=i < terms, other=0.0)
        square += tl.load(squares + first + i, mask=i < terms, other=0.0)
        done += TERMS
    # In fp32 the factor's roundings alone are 2 ulp of a large dbeta, all that is allowed.
    factor = 1.0 / (tl.load(beta + c.to(tl.int64) * beta_stride).to(tl.float64) + 1e-9)
    if dalpha is not None:
        gradient = (2.0 * factor * tl.sum(product)).to(tl.float32)
        tl.store(dalpha + c, round_to(gradient, dalpha.dtype.element_ty))
    if dbeta is not None:
        gradient = (-factor * factor * tl.sum(square)).to(tl.float32)
        tl.store(dbeta + c, round_to(gradient, dbeta.dtype.element_ty))

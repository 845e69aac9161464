"""The AdaLN family in Triton: device code.  Launched by :mod:`presto_kernels.ops.modulation.triton_kernels`.

Formula, for row (b, n) of ``[B, N, D]`` (g is the identity or sigmoid(1 - gate)):

    x'   = x + g(gate) * branch + residual2                     rounded to x's dtype, stored
    h    = (norm(x') * weight + bias) * (1 + scale) + shift     norm of x' as stored; rounded once
    norm = (x' - mean) * rstd   (layer)   or   x' * rstd   (rms)   or   tanh(alpha x')   (dyt)

and backward, with y = norm(x'), dy = grad_h * weight * (1 + scale):

    dx      = grad_x + rstd * (dy - mean(dy) - y * mean(dy * y))        (rms: without mean(dy))
    dbranch = g(gate) * dx                        dgate  = sum g'(gate) * branch * dx
    dscale  = sum grad_h * (y * weight + bias)    dshift = sum grad_h
    dweight = sum grad_h * (1 + scale) * y        dbias  = sum grad_h * (1 + scale)
    dresidual2 = sum dx

    dyt:  dx = grad_x + alpha * (1 - y^2) * dy    dalpha = sum dy * (1 - y^2) * x'    over all elements

Rounded: x' and h to x's dtype, every gradient once to the dtype of what it belongs to; dx enters dbranch, dgate and
dresidual2 unrounded.  Everything else is fp32: the row stays in registers, so the variance is taken of the centred row
at no cost in memory traffic.  Sums over rows are added in an order that the shape and the number of multiprocessors
fix: a program walks its rows in order, a second kernel adds the programs' sums in order.  There are no atomics.

Bytes per row of D elements of s bytes (modulation of a sample stays in L1; the statistics are 8 bytes more):
    forward   4 D s  (reads x, branch; writes x', h)          2 D s for adaln_modulate, 3 D s for gated_residual
    backward  6 D s  (reads grad_x, grad_h, x', branch; writes dx, dbranch), and for each summed gradient 8 D bytes
              a program: written by the first kernel, read by the second, out of L2 (dalpha: 4 bytes).
A residual2 by token is one row more to read, and its gradient, unless it is dx itself, one more to write.

Limits: D at most 8192 (a row must fit the registers of one program; above 1024 the backward with weight and bias spills
24 bytes a thread, above 4096 some hundreds); fewer than 2^31 rows; any number of elements.

A kernel is compiled once per dtypes, D, options and which tensors are given, and never again for another length:
nothing is specialised on a value, and what code generation may know of alignment is one flag, VECTOR.
"""

# No `from __future__ import annotations`: Triton reads the annotations themselves.  Loops over a run-time count are
# `while`, because Triton 3.6's interpreter cannot give one to range() under numpy >= 2.4, and a constexpr count would
# compile for every length.
import triton
import triton.language as tl

from presto_kernels.ops.triton_common import kernel, round_to, tanh, tanh_slope


@triton.jit
def _addresses(pointer, b, n, batch_stride, row_stride, cols, VECTOR: tl.constexpr):
    """Where columns `cols` of rows (b, n) are: 64-bit, so that 2^31 elements are no limit."""
    at = pointer + (b.to(tl.int64) * batch_stride + n.to(tl.int64) * row_stride) + cols
    if VECTOR:
        at = tl.multiple_of(at, [1, 16])
    return at


@triton.jit
def _load(pointer, b, n, batch_stride, row_stride, cols, mask, VECTOR: tl.constexpr):
    at = _addresses(pointer, b, n, batch_stride, row_stride, cols, VECTOR)
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, row, value, cols, mask, D: tl.constexpr, VECTOR: tl.constexpr):
    """Write rows of a contiguous [rows, D] tensor."""
    at = _addresses(pointer, row, row, D, 0, cols, VECTOR)
    tl.store(at, round_to(value, pointer.dtype.element_ty), mask=mask)


@triton.jit
def _gate(gate, GATE_FN: tl.constexpr):
    if GATE_FN == 1:
        gate = tl.sigmoid(1.0 - gate)
    return gate


@kernel
def seam_forward(
    x,
    branch,
    gate,
    scale,
    shift,
    weight,
    bias,
    alpha,
    residual2,
    x_new,
    h,
    stats,
    rows: tl.int32,
    tokens: tl.int32,
    eps: tl.float32,
    x_batch: tl.int64,
    x_row: tl.int64,
    branch_batch: tl.int64,
    branch_row: tl.int64,
    gate_batch: tl.int64,
    gate_row: tl.int64,
    scale_batch: tl.int64,
    scale_row: tl.int64,
    shift_batch: tl.int64,
    shift_row: tl.int64,
    weight_batch: tl.int64,
    weight_row: tl.int64,
    bias_batch: tl.int64,
    bias_row: tl.int64,
    residual2_batch: tl.int64,
    residual2_row: tl.int64,
    NORM: tl.constexpr,
    GATE_FN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: GROUP rows of the B * N."""
    row = tl.program_id(0) * GROUP + tl.arange(0, GROUP)[:, None]
    b = row // tokens
    n = row % tokens
    cols = tl.arange(0, BLOCK_D)[None, :]
    mask = (row < rows) & (cols < D)
    value = _load(x, b, n, x_batch, x_row, cols, mask, VECTOR)
    if branch is not None:
        update = _load(branch, b, n, branch_batch, branch_row, cols, mask, VECTOR)
        if gate is not None:
            update *= _gate(_load(gate, b, n, gate_batch, gate_row, cols, mask, VECTOR), GATE_FN)
        if residual2 is not None:
            update += _load(residual2, b, n, residual2_batch, residual2_row, cols, mask, VECTOR)
        # The next kernel will read x' rounded, so the norm is that of the rounded x'.
        value = round_to(value + update, x_new.dtype.element_ty).to(tl.float32)
        _store(x_new, row, value, cols, mask, D, VECTOR)
    if NORM != 0:
        if NORM == 3:
            value = tanh(value * tl.load(alpha).to(tl.float32))
        else:
            mean = tl.zeros([GROUP, 1], tl.float32)
            if NORM == 1:
                mean = tl.sum(value, axis=1, keep_dims=True) / D
                value = tl.where(mask, value - mean, 0.0)
            rstd = tl.rsqrt(tl.sum(value * value, axis=1, keep_dims=True) / D + eps)
            value *= rstd
            of_row = stats + row.to(tl.int64) * 2
            tl.store(of_row, mean, mask=row < rows)
            tl.store(of_row + 1, rstd, mask=row < rows)
        if weight is not None:
            value *= _load(weight, b, n, weight_batch, weight_row, cols, mask, VECTOR)
        if bias is not None:
            value += _load(bias, b, n, bias_batch, bias_row, cols, mask, VECTOR)
        if scale is not None:
            value *= 1.0 + _load(scale, b, n, scale_batch, scale_row, cols, mask, VECTOR)
        if shift is not None:
            value += _load(shift, b, n, shift_batch, shift_row, cols, mask, VECTOR)
        _store(h, row, value, cols, mask, D, VECTOR)


@triton.jit
def _collect(total, value, out, row, cols, mask, D: tl.constexpr, PER_TOKEN: tl.constexpr, VECTOR: tl.constexpr):
    """Take a gradient's rows: written where it has a row per token, else added to its column sums."""
    if out is not None:
        if PER_TOKEN:
            _store(out, row, value, cols, mask, D, VECTOR)
        else:
            total += value
    return total


@triton.jit
def _store_total(total, out, slot, cols, D: tl.constexpr, PER_TOKEN: tl.constexpr, VECTOR: tl.constexpr):
    if out is not None and not PER_TOKEN:
        _store(out, slot, tl.sum(total, axis=0, keep_dims=True), cols, cols < D, D, VECTOR)


@kernel
def seam_backward_rows(
    grad_x,
    grad_h,
    x,
    stats,
    branch,
    gate,
    scale,
    weight,
    bias,
    alpha,
    dx,
    dbranch,
    dgate,
    dscale,
    dshift,
    dweight,
    dbias,
    dalpha,
    dresidual2,
    tokens: tl.int32,
    chunk: tl.int32,
    chunks: tl.int32,
    grad_x_batch: tl.int64,
    grad_x_row: tl.int64,
    grad_h_batch: tl.int64,
    grad_h_row: tl.int64,
    x_batch: tl.int64,
    x_row: tl.int64,
    branch_batch: tl.int64,
    branch_row: tl.int64,
    gate_batch: tl.int64,
    gate_row: tl.int64,
    scale_batch: tl.int64,
    scale_row: tl.int64,
    weight_batch: tl.int64,
    weight_row: tl.int64,
    bias_batch: tl.int64,
    bias_row: tl.int64,
    NORM: tl.constexpr,
    GATE_FN: tl.constexpr,
    GATE_PER_TOKEN: tl.constexpr,
    SCALE_PER_TOKEN: tl.constexpr,
    SHIFT_PER_TOKEN: tl.constexpr,
    RESIDUAL2_PER_TOKEN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: `chunk` rows of one sample (a multiple of GROUP), GROUP at a time.

    A gradient with a row per token is written to its output [B, N, D]; of the others the program's column sums are
    written to row `slot` of fp32 [B * chunks, D], which seam_backward_sums adds; of alpha's, one sum.
    """
    slot = tl.program_id(0)
    b = slot // chunks
    first = (slot % chunks) * chunk
    cols = tl.arange(0, BLOCK_D)[None, :]
    gate_sum = tl.zeros([GROUP, BLOCK_D], tl.float32)
    scale_sum = tl.zeros([GROUP, BLOCK_D], tl.float32)
    shift_sum = tl.zeros([GROUP, BLOCK_D], tl.float32)
    weight_sum = tl.zeros([GROUP, BLOCK_D], tl.float32)
    bias_sum = tl.zeros([GROUP, BLOCK_D], tl.float32)
    alpha_sum = tl.zeros([GROUP, BLOCK_D // 4], tl.float32)
    residual2_sum = tl.zeros([GROUP, BLOCK_D], tl.float32)
    done = 0
    while done < chunk:  # not range(): see the top of the file
        n = first + done + tl.arange(0, GROUP)[:, None]
        row = b.to(tl.int64) * tokens + n
        mask = (n < tokens) & (cols < D)
        d = tl.zeros([GROUP, BLOCK_D], tl.float32)
        if grad_x is not None:
            d = _load(grad_x, b, n, grad_x_batch, grad_x_row, cols, mask, VECTOR)
        if NORM != 0:
            dh = _load(grad_h, b, n, grad_h_batch, grad_h_row, cols, mask, VECTOR)
            y = _load(x, b, n, x_batch, x_row, cols, mask, VECTOR)
            if NORM == 3:
                a = tl.load(alpha).to(tl.float32)
                value = y
                y = tanh(value * a)
            else:
                rstd = tl.load(stats + row * 2 + 1, mask=n < tokens, other=0.0)
                if NORM == 1:
                    y -= tl.load(stats + row * 2, mask=n < tokens, other=0.0)
                y *= rstd
            shift_sum = _collect(shift_sum, dh, dshift, row, cols, mask, D, SHIFT_PER_TOKEN, VECTOR)
            affine = y
            if weight is not None:
                w = _load(weight, b, n, weight_batch, weight_row, cols, mask, VECTOR)
                affine = y * w
            if dscale is not None:
                if bias is not None:
                    affine += _load(bias, b, n, bias_batch, bias_row, cols, mask, VECTOR)
                scale_sum = _collect(scale_sum, dh * affine, dscale, row, cols, mask, D, SCALE_PER_TOKEN, VECTOR)
            if scale is not None:
                dh *= 1.0 + _load(scale, b, n, scale_batch, scale_row, cols, mask, VECTOR)
            bias_sum = _collect(bias_sum, dh, dbias, row, cols, mask, D, False, VECTOR)
            weight_sum = _collect(weight_sum, dh * y, dweight, row, cols, mask, D, False, VECTOR)
            if weight is not None:
                dh *= w
            if NORM == 3:
                inner = dh * tanh_slope(value * a)
                if dalpha is not None:  # four columns, which a thread has, as one: the registers of the rest are spared
                    alpha_sum += tl.sum(tl.reshape(inner * value, (GROUP, BLOCK_D // 4, 4)), axis=2)
                d += a * inner
            else:
                inner = dh - y * (tl.sum(dh * y, axis=1, keep_dims=True) / D)
                if NORM == 1:
                    inner -= tl.sum(dh, axis=1, keep_dims=True) / D
                d += rstd * inner
        if dx is not None:
            _store(dx, row, d, cols, mask, D, VECTOR)
        residual2_sum = _collect(residual2_sum, d, dresidual2, row, cols, mask, D, RESIDUAL2_PER_TOKEN, VECTOR)
        g = tl.full([GROUP, BLOCK_D], 1.0, tl.float32)
        if gate is not None:
            g = _gate(_load(gate, b, n, gate_batch, gate_row, cols, mask, VECTOR), GATE_FN)
        if dbranch is not None:
            _store(dbranch, row, g * d, cols, mask, D, VECTOR)
        if dgate is not None:
            dg = d * _load(branch, b, n, branch_batch, branch_row, cols, mask, VECTOR)
            if GATE_FN == 1:
                dg *= g * (g - 1.0)  # d/dgate sigmoid(1 - gate) = -s (1 - s)
            gate_sum = _collect(gate_sum, dg, dgate, row, cols, mask, D, GATE_PER_TOKEN, VECTOR)
        done += GROUP
    _store_total(gate_sum, dgate, slot, cols, D, GATE_PER_TOKEN, VECTOR)
    _store_total(scale_sum, dscale, slot, cols, D, SCALE_PER_TOKEN, VECTOR)
    _store_total(shift_sum, dshift, slot, cols, D, SHIFT_PER_TOKEN, VECTOR)
    _store_total(weight_sum, dweight, slot, cols, D, False, VECTOR)
    _store_total(bias_sum, dbias, slot, cols, D, False, VECTOR)
    _store_total(residual2_sum, dresidual2, slot, cols, D, RESIDUAL2_PER_TOKEN, VECTOR)
    if dalpha is not None:
        tl.store(dalpha + slot, tl.sum(alpha_sum))


@triton.jit
def _sum_terms(rows, out, terms, step, D: tl.constexpr, TERMS: tl.constexpr, COLS: tl.constexpr, VECTOR: tl.constexpr):
    """out[i] = rows[i * step] + rows[i * step + 1] + ..., `terms` of them, over this program's columns."""
    if out is not None:
        i = tl.program_id(0)
        cols = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]
        total = tl.zeros([TERMS, COLS], tl.float32)
        done = 0
        while done < terms:
            k = done + tl.arange(0, TERMS)[:, None]
            total += _load(rows, i, k, step * D, D, cols, (k < terms) & (cols < D), VECTOR)
            done += TERMS
        _store_total(total, out, i, cols, D, False, VECTOR)


@kernel
def seam_backward_sums(
    gate_rows,
    scale_rows,
    shift_rows,
    weight_rows,
    bias_rows,
    alpha_rows,
    residual2_rows,
    dgate,
    dscale,
    dshift,
    dweight,
    dbias,
    dalpha,
    dresidual2,
    terms: tl.int32,
    step: tl.int64,
    D: tl.constexpr,
    TERMS: tl.constexpr,
    COLS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: row program_id(0) of every gradient given, COLS columns of it."""
    _sum_terms(gate_rows, dgate, terms, step, D, TERMS, COLS, VECTOR)
    _sum_terms(scale_rows, dscale, terms, step, D, TERMS, COLS, VECTOR)
    _sum_terms(shift_rows, dshift, terms, step, D, TERMS, COLS, VECTOR)
    _sum_terms(weight_rows, dweight, terms, step, D, TERMS, COLS, VECTOR)
    _sum_terms(bias_rows, dbias, terms, step, D, TERMS, COLS, VECTOR)
    _sum_terms(alpha_rows, dalpha, terms, step, D, TERMS, COLS, VECTOR)
    _sum_terms(residual2_rows, dresidual2, terms, step, D, TERMS, COLS, VECTOR)

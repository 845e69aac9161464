"""Head norm and rotary in Triton: device code.  Launched by :mod:`presto_kernels.ops.rotary.triton_kernels`.

Formula, for every head of q ``[B, N, H, Dh]`` and of k ``[B, Nk, Hkv, Dh]``:

    y   = norm(x) * weight + bias
    out = [y1 cos - y2 sin, y2 cos + y1 sin, rest of y]          (y1, y2): halves, or even and odd, of the first R

and backward, with dy = the incoming gradient turned by -sin, n = norm(x), dn = dy * weight:

    dx      = rstd * (dn - mean(dn) - n * mean(dn * n))    (rms: without mean(dn); l2: the sum where |x| >= eps, else 0)
    dweight = sum dy * n              dbias = sum dy       over samples, tokens and heads

and where norm is tanh(alpha x):  dx = alpha * dn * (1 - n^2),  dalpha = sum x * dn * (1 - n^2).

Rounded: out and dx once to their dtype, dweight, dbias and dalpha once to that of what they belong to.  Everything
else is fp32, in registers; the statistics are computed anew in the backward.  A program walks its groups of heads in
order, and a second kernel adds the programs' sums in order; both depend on the shape alone.  There are no atomics.

Bytes per head of Dh elements of s bytes: forward 2 Dh s, backward 3 Dh s (2 without norm and weight); cos and sin, 4 R
a token, come out of L1 for all heads of a token but the first.  Sums: 4 Dh bytes a program for each of dweight and
dbias and 4 for dalpha, written, and read again out of L2.

Limits: Dh at most 2048 (a group of heads must fit the registers of a program); fewer than 2^31 heads of q and of k; any
number of elements.  Heads whose halves are no multiple of 16 bytes are read narrowly.

A kernel is compiled once per dtypes, Dh, R, numbers of heads, options and which tensors are given, and never again for
another length.  One launch serves q and k: the first programs are q's.
"""

# No `from __future__ import annotations`: Triton reads the annotations themselves.  Loops over a run-time count are
# `while`, because Triton 3.6's interpreter cannot give one to range() under numpy >= 2.4, and a constexpr count would
# compile for every length.
import triton
import triton.language as tl

from presto_kernels.ops.triton_common import kernel, round_to, tanh, tanh_slope


@triton.jit
def _addresses(at, cols, VECTOR: tl.constexpr):
    """at + cols.  What is known of it is said of the sum made here: said of an argument it would be lost."""
    at = at + cols
    if VECTOR:
        at = tl.multiple_of(at, [1, 16])
    return at


@triton.jit
def _load(at, cols, mask, VECTOR: tl.constexpr):
    return tl.load(_addresses(at, cols, VECTOR), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(at, cols, value, mask, VECTOR: tl.constexpr):
    tl.store(_addresses(at, cols, VECTOR), round_to(value, at.dtype.element_ty), mask=mask)


@triton.jit
def _load_pairs(
    at, inside, ROWS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """First and second elements of the HALF pairs of ROWS heads, which begin at `at` [ROWS, 1]: [ROWS, BLOCK] each."""
    if INTERLEAVED:
        cols = tl.arange(0, 2 * BLOCK)[None, :]
        both = _load(at, cols, inside & (cols < 2 * HALF), VECTOR)
        first, second = tl.split(tl.reshape(both, (ROWS, BLOCK, 2)))
    else:
        cols = tl.arange(0, BLOCK)[None, :]
        mask = inside & (cols < HALF)
        first = _load(at, cols, mask, VECTOR)
        second = _load(at + HALF, cols, mask, VECTOR)
    return first, second


@triton.jit
def _store_pairs(
    at, first, second, inside, ROWS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    if INTERLEAVED:
        cols = tl.arange(0, 2 * BLOCK)[None, :]
        both = tl.reshape(tl.join(first, second), (ROWS, 2 * BLOCK))
        _store(at, cols, both, inside & (cols < 2 * HALF), VECTOR)
    else:
        cols = tl.arange(0, BLOCK)[None, :]
        mask = inside & (cols < HALF)
        _store(at, cols, first, mask, VECTOR)
        _store(at + HALF, cols, second, mask, VECTOR)


@triton.jit
def _statistics(
    first, second, rest, inside, eps, NORM: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    REST: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """(centred parts, scale, factor of sum(dn * n) in the gradient); without REST `rest` is not looked at."""
    reach = tl.full(inside.shape, 1.0 / DIM, tl.float32)
    if NORM == 1:
        total = tl.sum(first + second, axis=1, keep_dims=True)
        if REST > 0:
            total += tl.sum(rest, axis=1, keep_dims=True)
        mean = total / DIM
        mask = inside & (tl.arange(0, BLOCK)[None, :] < HALF)
        first = tl.where(mask, first - mean, 0.0)
        second = tl.where(mask, second - mean, 0.0)
        if REST > 0:
            rest = tl.where(inside & (tl.arange(0, BLOCK_REST)[None, :] < REST), rest - mean, 0.0)
    squares = tl.sum(first * first + second * second, axis=1, keep_dims=True)
    if REST > 0:
        squares += tl.sum(rest * rest, axis=1, keep_dims=True)
    if NORM == 3:
        length = tl.sqrt(squares)
        scale = 1.0 / tl.where(length < eps, eps, length)  # NaN stays
        reach = tl.where(length >= eps, 1.0, 0.0)
    else:
        scale = tl.rsqrt(squares / DIM + eps)
    return first, second, rest, scale, reach


@triton.jit
def _forward_side(
    program, x, out, cos, sin, weight, bias, alpha, rows, tokens, eps, x_batch, x_token, x_head, cos_row, sin_row,
    HEADS: tl.constexpr, NORM: tl.constexpr, INTERLEAVED: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_REST: tl.constexpr, GROUP: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    REST: tl.constexpr = DIM - 2 * HALF
    row = program * GROUP + tl.arange(0, GROUP)[:, None]
    inside = row < rows
    token = row // HEADS
    n = token % tokens
    # 64-bit, so that 2^31 elements are no limit
    at = x + ((token // tokens).to(tl.int64) * x_batch + n.to(tl.int64) * x_token + (row % HEADS).to(tl.int64) * x_head)
    to = out + row.to(tl.int64) * DIM
    first, second = _load_pairs(at, inside, GROUP, HALF, BLOCK, INTERLEAVED, VECTOR)
    rest = first
    if REST > 0:
        rest_cols = tl.arange(0, BLOCK_REST)[None, :]
        rest_mask = rest_cols < REST
        rest = _load(at + 2 * HALF, rest_cols, inside & rest_mask, VECTOR)
    if NORM == 4:
        a = tl.load(alpha).to(tl.float32)
        first = tanh(a * first)
        second = tanh(a * second)
        if REST > 0:
            rest = tanh(a * rest)
    elif NORM != 0:
        first, second, rest, scale, _ = _statistics(
            first, second, rest, inside, eps, NORM, DIM, HALF, BLOCK, REST, BLOCK_REST
        )
        first *= scale
        second *= scale
        if REST > 0:
            rest *= scale
    one = tl.full([1, 1], 1, tl.int1)
    if weight is not None:
        w1, w2 = _load_pairs(weight + tl.zeros([1, 1], tl.int32), one, 1, HALF, BLOCK, INTERLEAVED, VECTOR)
        first *= w1
        second *= w2
        if REST > 0:
            rest *= _load(weight + 2 * HALF, rest_cols, rest_mask, VECTOR)
    if bias is not None:
        b1, b2 = _load_pairs(bias + tl.zeros([1, 1], tl.int32), one, 1, HALF, BLOCK, INTERLEAVED, VECTOR)
        first += b1
        second += b2
        if REST > 0:
            rest += _load(bias + 2 * HALF, rest_cols, rest_mask, VECTOR)
    if cos is not None:
        cols = tl.arange(0, BLOCK)[None, :]
        mask = inside & (cols < HALF)
        c = _load(cos + n.to(tl.int64) * cos_row, cols, mask, VECTOR)
        s = _load(sin + n.to(tl.int64) * sin_row, cols, mask, VECTOR)
        turned = first * c - second * s
        second = second * c + first * s
        first = turned
    _store_pairs(to, first, second, inside, GROUP, HALF, BLOCK, INTERLEAVED, VECTOR)
    if REST > 0:
        _store(to + 2 * HALF, rest_cols, rest, inside & rest_mask, VECTOR)


@kernel
def rotary_forward(
    q,
    k,
    cos,
    sin,
    k_cos,
    k_sin,
    q_weight,
    k_weight,
    q_bias,
    k_bias,
    q_alpha,
    k_alpha,
    q_out,
    k_out,
    q_programs: tl.int32,
    q_rows: tl.int32,
    k_rows: tl.int32,
    q_tokens: tl.int32,
    k_tokens: tl.int32,
    eps: tl.float32,
    q_batch: tl.int64,
    q_token: tl.int64,
    q_head: tl.int64,
    k_batch: tl.int64,
    k_token: tl.int64,
    k_head: tl.int64,
    cos_row: tl.int64,
    sin_row: tl.int64,
    k_cos_row: tl.int64,
    k_sin_row: tl.int64,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    GROUP: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: GROUP neighbouring heads, of q in the first `q_programs` and of k in the others."""
    program = tl.program_id(0)
    if program < q_programs:
        _forward_side(
            program, q, q_out, cos, sin, q_weight, q_bias, q_alpha, q_rows, q_tokens, eps, q_batch, q_token, q_head,
            cos_row, sin_row, Q_HEADS, NORM, INTERLEAVED, DIM, HALF, BLOCK, BLOCK_REST, GROUP, VECTOR,
        )  # fmt: skip
    elif k is not None:
        _forward_side(
            program - q_programs, k, k_out, k_cos, k_sin, k_weight, k_bias, k_alpha, k_rows, k_tokens, eps, k_batch,
            k_token, k_head, k_cos_row, k_sin_row, K_HEADS, NORM, INTERLEAVED, DIM, HALF, BLOCK, BLOCK_REST, GROUP,
            VECTOR,
        )  # fmt: skip


@triton.jit
def _store_sums(
    out, program, first, second, rest, HALF: tl.constexpr, BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr,
    DIM: tl.constexpr, REST: tl.constexpr, BLOCK_REST: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Row `program` of fp32 [programs, Dh]: the sums over the rows of the three parts."""
    at = out + (program.to(tl.int64) * DIM + tl.zeros([1, 1], tl.int64))
    first = tl.sum(first, axis=0, keep_dims=True)
    second = tl.sum(second, axis=0, keep_dims=True)
    _store_pairs(at, first, second, tl.full([1, 1], 1, tl.int1), 1, HALF, BLOCK, INTERLEAVED, VECTOR)
    if REST > 0:
        cols = tl.arange(0, BLOCK_REST)[None, :]
        _store(at + 2 * HALF, cols, tl.sum(rest, axis=0, keep_dims=True), cols < REST, VECTOR)


@triton.jit
def _backward_side(
    program, grad, x, cos, sin, weight, alpha, dx, dweight, dbias, dalpha, rows, tokens, chunk, eps, grad_batch,
    grad_token, grad_head, x_batch, x_token, x_head, cos_row, sin_row, HEADS: tl.constexpr, NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, BLOCK_REST: tl.constexpr,
    GROUP: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    REST: tl.constexpr = DIM - 2 * HALF
    cols = tl.arange(0, BLOCK)[None, :]
    rest_cols = tl.arange(0, BLOCK_REST)[None, :]
    rest_mask = rest_cols < REST
    weight1 = tl.zeros([GROUP, BLOCK], tl.float32)
    weight2 = tl.zeros([GROUP, BLOCK], tl.float32)
    weight3 = tl.zeros([GROUP, BLOCK_REST], tl.float32)
    bias1 = tl.zeros([GROUP, BLOCK], tl.float32)
    bias2 = tl.zeros([GROUP, BLOCK], tl.float32)
    bias3 = tl.zeros([GROUP, BLOCK_REST], tl.float32)
    alphas = tl.zeros([GROUP, 1], tl.float32)
    done = 0
    while done < chunk:  # not range(): see the top of the file
        row = program * chunk + done + tl.arange(0, GROUP)[:, None]
        inside = row < rows
        token = row // HEADS
        n = token % tokens
        b = (token // tokens).to(tl.int64)
        h = (row % HEADS).to(tl.int64)
        at = grad + (b * grad_batch + n.to(tl.int64) * grad_token + h * grad_head)
        d1, d2 = _load_pairs(at, inside, GROUP, HALF, BLOCK, INTERLEAVED, VECTOR)
        d3 = d1
        if REST > 0:
            d3 = _load(at + 2 * HALF, rest_cols, inside & rest_mask, VECTOR)
        if cos is not None:
            mask = inside & (cols < HALF)
            c = _load(cos + n.to(tl.int64) * cos_row, cols, mask, VECTOR)
            s = _load(sin + n.to(tl.int64) * sin_row, cols, mask, VECTOR)
            turned = d1 * c + d2 * s
            d2 = d2 * c - d1 * s
            d1 = turned
        if dbias is not None:
            bias1 += d1
            bias2 += d2
            if REST > 0:
                bias3 += d3
        if x is not None:
            at = x + (b * x_batch + n.to(tl.int64) * x_token + h * x_head)
            y1, y2 = _load_pairs(at, inside, GROUP, HALF, BLOCK, INTERLEAVED, VECTOR)
            y3 = y1
            if REST > 0:
                y3 = _load(at + 2 * HALF, rest_cols, inside & rest_mask, VECTOR)
            if NORM == 4:
                a = tl.load(alpha).to(tl.float32)
                x1, x2, x3 = y1, y2, y3
                y1 = tanh(a * y1)
                y2 = tanh(a * y2)
                if REST > 0:
                    y3 = tanh(a * y3)
            elif NORM != 0:
                y1, y2, y3, scale, reach = _statistics(
                    y1, y2, y3, inside, eps, NORM, DIM, HALF, BLOCK, REST, BLOCK_REST
                )
                y1 *= scale
                y2 *= scale
                if REST > 0:
                    y3 *= scale
            if dweight is not None:
                weight1 += d1 * y1
                weight2 += d2 * y2
                if REST > 0:
                    weight3 += d3 * y3
        if weight is not None:
            one = tl.full([1, 1], 1, tl.int1)
            w1, w2 = _load_pairs(weight + tl.zeros([1, 1], tl.int32), one, 1, HALF, BLOCK, INTERLEAVED, VECTOR)
            d1 *= w1
            d2 *= w2
            if REST > 0:
                d3 *= _load(weight + 2 * HALF, rest_cols, rest_mask, VECTOR)
        if NORM == 4:
            d1 *= tanh_slope(a * x1)
            d2 *= tanh_slope(a * x2)
            if REST > 0:
                d3 *= tanh_slope(a * x3)
            if dalpha is not None:
                alphas += tl.sum(d1 * x1 + d2 * x2, axis=1, keep_dims=True)
                if REST > 0:
                    alphas += tl.sum(d3 * x3, axis=1, keep_dims=True)
            d1 *= a
            d2 *= a
            if REST > 0:
                d3 *= a
        if dx is not None:
            if NORM != 0 and NORM != 4:
                along = tl.sum(d1 * y1 + d2 * y2, axis=1, keep_dims=True)
                total = tl.sum(d1 + d2, axis=1, keep_dims=True)
                if REST > 0:
                    along += tl.sum(d3 * y3, axis=1, keep_dims=True)
                    total += tl.sum(d3, axis=1, keep_dims=True)
                along *= reach
                if NORM != 1:
                    total = tl.zeros_like(total)
                mean = total * reach
                d1 = scale * (d1 - y1 * along - mean)
                d2 = scale * (d2 - y2 * along - mean)
                if REST > 0:
                    d3 = scale * (d3 - y3 * along - mean)
            to = dx + row.to(tl.int64) * DIM
            _store_pairs(to, d1, d2, inside, GROUP, HALF, BLOCK, INTERLEAVED, VECTOR)
            if REST > 0:
                _store(to + 2 * HALF, rest_cols, d3, inside & rest_mask, VECTOR)
        done += GROUP
    if dweight is not None:
        _store_sums(
            dweight, program, weight1, weight2, weight3, HALF, BLOCK, INTERLEAVED, DIM, REST, BLOCK_REST, VECTOR
        )
    if dbias is not None:
        _store_sums(dbias, program, bias1, bias2, bias3, HALF, BLOCK, INTERLEAVED, DIM, REST, BLOCK_REST, VECTOR)
    if dalpha is not None:
        tl.store(dalpha + program, tl.sum(alphas))


@kernel
def rotary_backward_rows(
    grad_q,
    grad_k,
    q,
    k,
    cos,
    sin,
    k_cos,
    k_sin,
    q_weight,
    k_weight,
    q_alpha,
    k_alpha,
    dq,
    dk,
    dq_weight,
    dk_weight,
    dq_bias,
    dk_bias,
    dq_alpha,
    dk_alpha,
    q_programs: tl.int32,
    q_chunk: tl.int32,
    k_chunk: tl.int32,
    q_rows: tl.int32,
    k_rows: tl.int32,
    q_tokens: tl.int32,
    k_tokens: tl.int32,
    eps: tl.float32,
    grad_q_batch: tl.int64,
    grad_q_token: tl.int64,
    grad_q_head: tl.int64,
    grad_k_batch: tl.int64,
    grad_k_token: tl.int64,
    grad_k_head: tl.int64,
    q_batch: tl.int64,
    q_token: tl.int64,
    q_head: tl.int64,
    k_batch: tl.int64,
    k_token: tl.int64,
    k_head: tl.int64,
    cos_row: tl.int64,
    sin_row: tl.int64,
    k_cos_row: tl.int64,
    k_sin_row: tl.int64,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    GROUP: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: `chunk` neighbouring heads (a multiple of GROUP) of q or of k, GROUP at a time.

    dq_weight, dk_weight, dq_bias, dk_bias are fp32 [programs of that side, Dh], dq_alpha and dk_alpha fp32 [programs of
    that side, 1], which rotary_backward_sums adds.
    """
    program = tl.program_id(0)
    if program < q_programs:
        if grad_q is not None:
            _backward_side(
                program, grad_q, q, cos, sin, q_weight, q_alpha, dq, dq_weight, dq_bias, dq_alpha, q_rows, q_tokens,
                q_chunk, eps, grad_q_batch, grad_q_token, grad_q_head, q_batch, q_token, q_head, cos_row, sin_row,
                Q_HEADS, NORM, INTERLEAVED, DIM, HALF, BLOCK, BLOCK_REST, GROUP, VECTOR,
            )  # fmt: skip
    elif grad_k is not None:
        _backward_side(
            program - q_programs, grad_k, k, k_cos, k_sin, k_weight, k_alpha, dk, dk_weight, dk_bias, dk_alpha, k_rows,
            k_tokens, k_chunk, eps, grad_k_batch, grad_k_token, grad_k_head, k_batch, k_token, k_head, k_cos_row,
            k_sin_row, K_HEADS, NORM, INTERLEAVED, DIM, HALF, BLOCK, BLOCK_REST, GROUP, VECTOR,
        )  # fmt: skip


@triton.jit
def _sum_terms(rows, out, terms, DIM: tl.constexpr, TERMS: tl.constexpr, COLS: tl.constexpr, VECTOR: tl.constexpr):
    """out[c] = rows[0, c] + rows[1, c] + ..., `terms` of them, over this program's columns."""
    if out is not None:
        cols = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]
        total = tl.zeros([TERMS, COLS], tl.float32)
        done = 0
        while done < terms:
            term = done + tl.arange(0, TERMS)[:, None]
            total += _load(rows + term * DIM, cols, (term < terms) & (cols < DIM), VECTOR)
            done += TERMS
        _store(out, cols, tl.sum(total, axis=0, keep_dims=True), cols < DIM, VECTOR)


@kernel
def rotary_backward_sums(
    q_weight_rows,
    k_weight_rows,
    q_bias_rows,
    k_bias_rows,
    q_alpha_rows,
    k_alpha_rows,
    dq_weight,
    dk_weight,
    dq_bias,
    dk_bias,
    dq_alpha,
    dk_alpha,
    q_terms: tl.int32,
    k_terms: tl.int32,
    DIM: tl.constexpr,
    TERMS: tl.constexpr,
    COLS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: COLS columns of the gradient that program_id(1) says; alpha's has one."""
    which = tl.program_id(1)
    if which == 0:
        _sum_terms(q_weight_rows, dq_weight, q_terms, DIM, TERMS, COLS, VECTOR)
    elif which == 1:
        _sum_terms(k_weight_rows, dk_weight, k_terms, DIM, TERMS, COLS, VECTOR)
    elif which == 2:
        _sum_terms(q_bias_rows, dq_bias, q_terms, DIM, TERMS, COLS, VECTOR)
    elif which == 3:
        _sum_terms(k_bias_rows, dk_bias, k_terms, DIM, TERMS, COLS, VECTOR)
    elif which == 4:
        _sum_terms(q_alpha_rows, dq_alpha, q_terms, 1, TERMS, COLS, False)
    else:
        _sum_terms(k_alpha_rows, dk_alpha, k_terms, 1, TERMS, COLS, False)

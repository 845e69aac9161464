"""Attention in Triton: device code.  Launched by :mod:`presto_kernels.ops.attention.triton_kernels`.

Formula, for batch b, query i, head h and kv head g = h // (H / Hkv), over the keys j that i sees:

    s_ij = scale q_i . k_j        lse_i = ln sum_j exp s_ij       p_ij = exp(s_ij - lse_i)       out_i = sum_j p_ij v_j

and backward, with D_i = out_i . grad_out_i:

    dv_j = sum_i p_ij grad_out_i              ds_ij = p_ij (grad_out_i . v_j - D_i)
    dq_i = scale sum_j ds_ij k_j              dk_j = scale sum_i ds_ij q_i        (sums over the group's heads too)

Shapes: q, out ``[B, Nq, H, Dh]``, k, v ``[B, Nk, Hkv, Dh]``, lse and D fp32 ``[B, H, Nq]``; innermost stride 1.  A key
is seen where j < key_lengths[b], clamped to [0, Nk], and i - left <= j <= i + right (-1: unbounded).

Rounded: p and ds to the dtype of q before they are multiplied (as every flash attention does), out and the gradients
once at the end.  Scores, maxima, sums and accumulators are fp32; fp32 inputs are multiplied as three TF32 products,
which is as good as fp32.  Exponentials are of base 2, with scale log2(e) multiplied into the scores.

One program has a block of queries (forward, dq) or of keys (dk and dv, whose loop goes over the group's heads in
order) and visits the blocks of the other kind that some of its rows see, no others: where the loop starts and ends
follows from the block, the window and the key length, which is loaded on the device.  Blocks that all rows see whole
go through a loop without masks.  No two programs write to one place: there are no atomics, and gradients are bitwise
the same on every run.

Bytes: q, out once; k and v once for every block of queries (out of L2 for the blocks of one head, which are neighbours
in the grid).  4 Dh flops for every pair of query and key forward, 14 Dh backward (scores are computed twice more).

Hidden is hidden: keys beyond the length are never loaded.  Under a window one row's hidden key is its neighbour's
visible one, in the same product, where 0 times NaN would be NaN: in masked blocks what is not finite is left out of the
product, and the rows that see it become NaN in every column.

Limits: Dh at most 128 (padded to a power of two, the padding neither read nor written), scale > 0, fewer than 2^31
programs; any number of elements.  A kernel is compiled once per dtype, Dh, kinds of mask and alignment, never for a
length.
"""

# No `from __future__ import annotations`: Triton reads the annotations themselves.  A loop over run-time bounds is a
# `for` when compiled (the software pipeline takes no other) and a `while` in the interpreter, because Triton 3.6's
# cannot give a run-time bound to range() under numpy >= 2.4.
import triton
import triton.language as tl

from presto_kernels.ops.triton_common import INTERPRETED, kernel, round_to

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """a @ b with fp32 sums."""
    if INTERPRETED:  # whose products of bf16 are garbage
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _dot_visible(weights, visible, values, PRECISION: tl.constexpr):
    """weights @ values, weights being 0 for what is not visible; what is not finite reaches only rows that see it."""
    wide = values.to(tl.float32)
    wrong = tl.where(tl.abs(wide) < float("inf"), 0, 1)
    total = _dot(weights, tl.where(wrong > 0, 0.0, wide).to(values.dtype), PRECISION)
    wrong = tl.max(wrong, axis=1)
    if tl.max(wrong, axis=0) > 0:
        seen = tl.max(tl.where(visible, wrong[None, :], 0), axis=1)
        total = tl.where((seen > 0)[:, None], float("nan"), total)
    return total


@triton.jit
def _rows(pointer, first, n, row_stride, cols, limit, D: tl.constexpr, MASKED: tl.constexpr, VECTOR: tl.constexpr):
    """Rows first + n of a matrix with this row stride, 0 in padding columns and (MASKED) from row `limit` on."""
    # 64-bit, so that 2^31 elements are no limit.
    at = pointer + first.to(tl.int64) * row_stride + (n.to(tl.int64)[:, None] * row_stride + cols[None, :])
    if VECTOR:
        at = tl.multiple_of(at, [1, 16])
    if MASKED:
        return tl.load(at, mask=((first + n) < limit)[:, None] & (cols < D)[None, :], other=0.0)
    if cols.shape[0] == D:
        return tl.load(at)
    return tl.load(at, mask=(cols < D)[None, :], other=0.0)


@triton.jit
def _store(pointer, first, n, row_stride, cols, limit, value, D: tl.constexpr, VECTOR: tl.constexpr):
    at = pointer + first.to(tl.int64) * row_stride + (n.to(tl.int64)[:, None] * row_stride + cols[None, :])
    if VECTOR:
        at = tl.multiple_of(at, [1, 16])
    mask = ((first + n) < limit)[:, None] & (cols < D)[None, :]
    tl.store(at, round_to(value, pointer.dtype.element_ty), mask=mask)


@triton.jit
def _length(key_lengths, b, keys):
    """How many keys sample b has."""
    length = keys
    if key_lengths is not None:
        # Compared at its own width: an int64 length may lie beyond 32 bits.
        given = tl.load(key_lengths + b)
        length = tl.minimum(tl.maximum(given, 0), keys).to(tl.int32)
    return length


@triton.jit
def _visible(i, j, length, left, right, WINDOW: tl.constexpr):
    """Which of queries i see which of keys j; i and j broadcast against each other."""
    seen = j < length
    if WINDOW:
        seen = seen & ((left < 0) | (i - j <= left)) & ((right < 0) | (j - i <= right))
    return seen


@triton.jit
def _bounds(first, last, behind, ahead, limit, BLOCK: tl.constexpr, WINDOW: tl.constexpr):
    """(start, whole from, whole to, blocks): which blocks of the other side rows first..last see.

    Row r sees r - behind .. r + ahead (-1: unbounded) of what is before `limit`.  Blocks of BLOCK begin at `start`;
    blocks [whole from, whole to) are seen whole by every row, those before and after in part.
    """
    start = first * 0
    stop = limit
    if WINDOW:
        if behind >= 0:
            start = tl.maximum(first - behind, 0)
        if ahead >= 0:
            stop = tl.minimum(last + 1 + ahead, limit)
    blocks = tl.maximum(stop - start + BLOCK - 1, 0) // BLOCK
    whole_from = first * 0
    whole_stop = limit
    if WINDOW:
        if behind >= 0:
            whole_from = tl.maximum(last - behind - start + BLOCK - 1, 0) // BLOCK
        if ahead >= 0:
            whole_stop = tl.minimum(first + 1 + ahead, limit)
    whole_to = tl.minimum(tl.maximum(whole_stop - start, 0) // BLOCK, blocks)
    whole_from = tl.minimum(whole_from, whole_to)
    return start, whole_from, whole_to, blocks


@triton.jit
def _partial_block(t, whole_from, whole_to):
    """The t-th of the blocks that are seen in part: those before the whole ones, then those after."""
    return tl.where(t < whole_from, t, t - whole_from + whole_to)


@triton.jit
def _attend(
    q,
    key,
    value,
    total,
    weight,
    top,
    i,
    j,
    length,
    left,
    right,
    to_base2,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(total, weight, top) with keys j: running sums of p v and of p, and the largest score, in base 2."""
    s = _dot(q, tl.trans(key), PRECISION)
    if MASKED:
        visible = _visible(i[:, None], j[None, :], length, left, right, WINDOW)
        s = tl.where(visible, s, float("-inf"))
    new_top = tl.maximum(top, tl.max(s, axis=1) * to_base2)
    shift = new_top
    if MASKED:  # a row that has seen nothing yet
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2(s * to_base2 - shift[:, None])
    decay = tl.exp2(top - shift)
    weight = weight * decay + tl.sum(p, axis=1)
    p = round_to(p, value.dtype)
    total = total * decay[:, None]
    if MASKED and WINDOW:
        total += _dot_visible(p, visible, value, PRECISION)
    else:
        total += _dot(p, value, PRECISION)
    return total, weight, new_top


@triton.jit
def _forward_block(
    q,
    k,
    v,
    total,
    weight,
    top,
    first,
    n,
    i,
    length,
    left,
    right,
    to_base2,
    k_row,
    v_row,
    cols,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """(total, weight, top) with the keys first + n."""
    key = _rows(k, first, n, k_row, cols, length, D, MASKED, VECTOR)
    value = _rows(v, first, n, v_row, cols, length, D, MASKED, VECTOR)
    return _attend(
        q, key, value, total, weight, top, i, first + n, length, left, right, to_base2, WINDOW, MASKED, PRECISION
    )


@kernel
def attention_forward(
    q,
    k,
    v,
    key_lengths,
    out,
    lse,
    queries: tl.int32,
    keys: tl.int32,
    heads: tl.int32,
    group: tl.int32,
    left: tl.int32,
    right: tl.int32,
    scale: tl.float32,
    q_batch: tl.int64,
    q_row: tl.int64,
    q_head: tl.int64,
    k_batch: tl.int64,
    k_row: tl.int64,
    k_head: tl.int64,
    v_batch: tl.int64,
    v_row: tl.int64,
    v_head: tl.int64,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: BLOCK_M queries of one head."""
    blocks_m = (queries + BLOCK_M - 1) // BLOCK_M
    bh = tl.program_id(0) // blocks_m
    m0 = (tl.program_id(0) % blocks_m) * BLOCK_M
    b, h = bh // heads, bh % heads
    q += b.to(tl.int64) * q_batch + h.to(tl.int64) * q_head
    k += b.to(tl.int64) * k_batch + (h // group).to(tl.int64) * k_head
    v += b.to(tl.int64) * v_batch + (h // group).to(tl.int64) * v_head
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_D)
    i = m0 + m
    length = _length(key_lengths, b, keys)
    query = _rows(q, m0, m, q_row, cols, queries, D, True, VECTOR)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    to_base2 = scale * LOG2_E

    last = tl.minimum(m0 + BLOCK_M, queries) - 1
    start, whole_from, whole_to, blocks = _bounds(m0, last, left, right, length, BLOCK_N, WINDOW)
    partial = whole_from + blocks - whole_to
    if INTERPRETED:
        t = whole_from
        while t < whole_to:
            total, weight, top = _forward_block(
                query, k, v, total, weight, top, start + t * BLOCK_N, n, i, length, left, right, to_base2,
                k_row, v_row, cols, D, WINDOW, False, PRECISION, VECTOR,
            )  # fmt: skip
            t += 1
        t = 0
        while t < partial:
            first = start + _partial_block(t, whole_from, whole_to) * BLOCK_N
            total, weight, top = _forward_block(
                query, k, v, total, weight, top, first, n, i, length, left, right, to_base2,
                k_row, v_row, cols, D, WINDOW, True, PRECISION, VECTOR,
            )  # fmt: skip
            t += 1
    else:
        for t in tl.range(whole_from, whole_to):
            total, weight, top = _forward_block(
                query, k, v, total, weight, top, start + t * BLOCK_N, n, i, length, left, right, to_base2,
                k_row, v_row, cols, D, WINDOW, False, PRECISION, VECTOR,
            )  # fmt: skip
        for t in tl.range(0, partial):
            first = start + _partial_block(t, whole_from, whole_to) * BLOCK_N
            total, weight, top = _forward_block(
                query, k, v, total, weight, top, first, n, i, length, left, right, to_base2,
                k_row, v_row, cols, D, WINDOW, True, PRECISION, VECTOR,
            )  # fmt: skip
    _finish_forward(out, lse, total, weight, top, bh, b, h, m0, m, cols, queries, heads, D, VECTOR)


@triton.jit
def _finish_forward(
    out, lse, total, weight, top, bh, b, h, m0, m, cols, queries, heads, D: tl.constexpr, VECTOR: tl.constexpr
):
    """Store total / weight and the logarithm of the sum; a row without keys has weight 0."""
    nothing = top == float("-inf")
    total = total / tl.where(nothing, 1.0, weight)[:, None]
    log_sum = tl.where(nothing, float("-inf"), (top + tl.log2(weight)) * LN_2)
    row = heads.to(tl.int64) * D
    out += b.to(tl.int64) * queries * row + h.to(tl.int64) * D
    _store(out, m0, m, row, cols, queries, total, D, VECTOR)
    if lse is not None:
        tl.store(lse + bh.to(tl.int64) * queries + m0 + m, log_sum, mask=m0 + m < queries)


@kernel
def attention_delta(
    out,
    grad_out,
    delta,
    queries: tl.int32,
    heads: tl.int32,
    rows: tl.int64,
    grad_out_batch: tl.int64,
    grad_out_row: tl.int64,
    grad_out_head: tl.int64,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """delta[b, h, i] = out . grad_out.  One program: ROWS of the B * Nq * H rows, in the order they lie in memory."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    h, i, b = r % heads, (r // heads) % queries, r // heads // queries
    mask = (r < rows)[:, None] & (cols < D)[None, :]
    out_at = out + (r * D)[:, None] + cols[None, :]
    grad_at = grad_out + (b * grad_out_batch + i * grad_out_row + h * grad_out_head)[:, None] + cols[None, :]
    if VECTOR:
        out_at, grad_at = tl.multiple_of(out_at, [1, 16]), tl.multiple_of(grad_at, [1, 16])
    product = tl.load(out_at, mask=mask, other=0.0).to(tl.float32) * tl.load(grad_at, mask=mask, other=0.0)
    tl.store(delta + (b * heads + h) * queries + i, tl.sum(product, axis=1), mask=r < rows)


@triton.jit
def _dq_block(
    q,
    grad,
    log_sum,
    d,
    k,
    v,
    dq,
    first,
    n,
    i,
    length,
    left,
    right,
    to_base2,
    k_row,
    v_row,
    cols,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """dq / scale with the keys first + n."""
    key = _rows(k, first, n, k_row, cols, length, D, MASKED, VECTOR)
    value = _rows(v, first, n, v_row, cols, length, D, MASKED, VECTOR)
    p = tl.exp2(_dot(q, tl.trans(key), PRECISION) * to_base2 - log_sum[:, None])
    ds = p * (_dot(grad, tl.trans(value), PRECISION) - d[:, None])
    if MASKED:
        visible = _visible(i[:, None], (first + n)[None, :], length, left, right, WINDOW)
        ds = tl.where(visible, ds, 0.0)
    ds = round_to(ds, key.dtype)
    if MASKED and WINDOW:
        dq += _dot_visible(ds, visible, key, PRECISION)
    else:
        dq += _dot(ds, key, PRECISION)
    return dq


@kernel
def attention_backward_dq(
    grad_out,
    q,
    k,
    v,
    lse,
    delta,
    key_lengths,
    dq,
    queries: tl.int32,
    keys: tl.int32,
    heads: tl.int32,
    group: tl.int32,
    left: tl.int32,
    right: tl.int32,
    scale: tl.float32,
    grad_out_batch: tl.int64,
    grad_out_row: tl.int64,
    grad_out_head: tl.int64,
    q_batch: tl.int64,
    q_row: tl.int64,
    q_head: tl.int64,
    k_batch: tl.int64,
    k_row: tl.int64,
    k_head: tl.int64,
    v_batch: tl.int64,
    v_row: tl.int64,
    v_head: tl.int64,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: dq of BLOCK_M queries of one head."""
    blocks_m = (queries + BLOCK_M - 1) // BLOCK_M
    bh = tl.program_id(0) // blocks_m
    m0 = (tl.program_id(0) % blocks_m) * BLOCK_M
    b, h = bh // heads, bh % heads
    q += b.to(tl.int64) * q_batch + h.to(tl.int64) * q_head
    k += b.to(tl.int64) * k_batch + (h // group).to(tl.int64) * k_head
    v += b.to(tl.int64) * v_batch + (h // group).to(tl.int64) * v_head
    grad_out += b.to(tl.int64) * grad_out_batch + h.to(tl.int64) * grad_out_head
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_D)
    i = m0 + m
    length = _length(key_lengths, b, keys)
    query = _rows(q, m0, m, q_row, cols, queries, D, True, VECTOR)
    grad = _rows(grad_out, m0, m, grad_out_row, cols, queries, D, True, VECTOR)
    of_row = bh.to(tl.int64) * queries + i
    log_sum = tl.load(lse + of_row, mask=i < queries, other=0.0) * LOG2_E
    d = tl.load(delta + of_row, mask=i < queries, other=0.0)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    to_base2 = scale * LOG2_E

    last = tl.minimum(m0 + BLOCK_M, queries) - 1
    start, whole_from, whole_to, blocks = _bounds(m0, last, left, right, length, BLOCK_N, WINDOW)
    partial = whole_from + blocks - whole_to
    if INTERPRETED:
        t = whole_from
        while t < whole_to:
            total = _dq_block(
                query, grad, log_sum, d, k, v, total, start + t * BLOCK_N, n, i, length, left, right, to_base2,
                k_row, v_row, cols, D, WINDOW, False, PRECISION, VECTOR,
            )  # fmt: skip
            t += 1
        t = 0
        while t < partial:
            first = start + _partial_block(t, whole_from, whole_to) * BLOCK_N
            total = _dq_block(
                query, grad, log_sum, d, k, v, total, first, n, i, length, left, right, to_base2,
                k_row, v_row, cols, D, WINDOW, True, PRECISION, VECTOR,
            )  # fmt: skip
            t += 1
    else:
        for t in tl.range(whole_from, whole_to):
            total = _dq_block(
                query, grad, log_sum, d, k, v, total, start + t * BLOCK_N, n, i, length, left, right, to_base2,
                k_row, v_row, cols, D, WINDOW, False, PRECISION, VECTOR,
            )  # fmt: skip
        for t in tl.range(0, partial):
            first = start + _partial_block(t, whole_from, whole_to) * BLOCK_N
            total = _dq_block(
                query, grad, log_sum, d, k, v, total, first, n, i, length, left, right, to_base2,
                k_row, v_row, cols, D, WINDOW, True, PRECISION, VECTOR,
            )  # fmt: skip
    row = heads.to(tl.int64) * D
    dq += b.to(tl.int64) * queries * row + h.to(tl.int64) * D
    _store(dq, m0, m, row, cols, queries, total * scale, D, VECTOR)


@triton.jit
def _dkdv_block(
    k,
    v,
    q,
    grad_out,
    lse,
    delta,
    dk,
    dv,
    first,
    m,
    j,
    queries,
    length,
    left,
    right,
    to_base2,
    q_row,
    grad_row,
    cols,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """(dk / scale, dv) with the queries first + m.  Scores stand on their side: keys down, queries across."""
    i = first + m
    query = _rows(q, first, m, q_row, cols, queries, D, MASKED, VECTOR)
    grad = _rows(grad_out, first, m, grad_row, cols, queries, D, MASKED, VECTOR)
    if MASKED:
        log_sum = tl.load(lse + i, mask=i < queries, other=0.0) * LOG2_E
        d = tl.load(delta + i, mask=i < queries, other=0.0)
    else:
        log_sum = tl.load(lse + i) * LOG2_E
        d = tl.load(delta + i)
    p = tl.exp2(_dot(k, tl.trans(query), PRECISION) * to_base2 - log_sum[None, :])
    if MASKED:
        visible = _visible(i[None, :], j[:, None], length, left, right, WINDOW) & (i < queries)[None, :]
        p = tl.where(visible, p, 0.0)
    if MASKED and WINDOW:
        dv += _dot_visible(round_to(p, grad.dtype), visible, grad, PRECISION)
    else:
        dv += _dot(round_to(p, grad.dtype), grad, PRECISION)
    ds = p * (_dot(v, tl.trans(grad), PRECISION) - d[None, :])
    if MASKED:
        ds = tl.where(visible, ds, 0.0)
    ds = round_to(ds, query.dtype)
    if MASKED and WINDOW:
        dk += _dot_visible(ds, visible, query, PRECISION)
    else:
        dk += _dot(ds, query, PRECISION)
    return dk, dv


@triton.jit
def _of_head(q, grad_out, lse, delta, bg, g, member, group, queries, q_head, grad_out_head):
    """Where the tensors of a kv head's member-th query head begin."""
    h = (g * group + member).to(tl.int64)
    row = (bg.to(tl.int64) * group + member) * queries
    return q + h * q_head, grad_out + h * grad_out_head, lse + row, delta + row


@kernel
def attention_backward_dkdv(
    grad_out,
    q,
    k,
    v,
    lse,
    delta,
    key_lengths,
    dk,
    dv,
    queries: tl.int32,
    keys: tl.int32,
    kv_heads: tl.int32,
    group: tl.int32,
    left: tl.int32,
    right: tl.int32,
    scale: tl.float32,
    grad_out_batch: tl.int64,
    grad_out_row: tl.int64,
    grad_out_head: tl.int64,
    q_batch: tl.int64,
    q_row: tl.int64,
    q_head: tl.int64,
    k_batch: tl.int64,
    k_row: tl.int64,
    k_head: tl.int64,
    v_batch: tl.int64,
    v_row: tl.int64,
    v_head: tl.int64,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One program: dk and dv of BLOCK_N keys of one kv head, over the queries of every head of its group."""
    blocks_n = (keys + BLOCK_N - 1) // BLOCK_N
    bg = tl.program_id(0) // blocks_n
    n0 = (tl.program_id(0) % blocks_n) * BLOCK_N
    b, g = bg // kv_heads, bg % kv_heads
    k += b.to(tl.int64) * k_batch + g.to(tl.int64) * k_head
    v += b.to(tl.int64) * v_batch + g.to(tl.int64) * v_head
    q += b.to(tl.int64) * q_batch
    grad_out += b.to(tl.int64) * grad_out_batch
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_D)
    j = n0 + n
    length = _length(key_lengths, b, keys)
    # Keys from `length` on are 0 here, and their gradients are set to 0 below, whatever the loop makes of them.
    key = _rows(k, n0, n, k_row, cols, length, D, True, VECTOR)
    value = _rows(v, n0, n, v_row, cols, length, D, True, VECTOR)
    dk_total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    to_base2 = scale * LOG2_E

    # Query i sees key j where j - right <= i <= j + left: the window the other way round.
    last = tl.minimum(n0 + BLOCK_N, length) - 1
    start, whole_from, whole_to, blocks = _bounds(n0, last, right, left, queries, BLOCK_M, WINDOW)
    partial = whole_from + blocks - whole_to
    if n0 >= length:
        whole_to = whole_from
        partial = partial * 0
    # One loop over heads and blocks, not two in one another: those held 30 registers more.
    whole = whole_to - whole_from
    if INTERPRETED:
        u = 0
        while u < group * whole:
            q_at, grad_at, lse_at, delta_at = _of_head(
                q, grad_out, lse, delta, bg, g, u // whole, group, queries, q_head, grad_out_head
            )
            dk_total, dv_total = _dkdv_block(
                key, value, q_at, grad_at, lse_at, delta_at, dk_total, dv_total,
                start + (whole_from + u % whole) * BLOCK_M, m, j, queries, length, left, right, to_base2,
                q_row, grad_out_row, cols, D, WINDOW, False, PRECISION, VECTOR,
            )  # fmt: skip
            u += 1
        u = 0
        while u < group * partial:
            q_at, grad_at, lse_at, delta_at = _of_head(
                q, grad_out, lse, delta, bg, g, u // partial, group, queries, q_head, grad_out_head
            )
            first = start + _partial_block(u % partial, whole_from, whole_to) * BLOCK_M
            dk_total, dv_total = _dkdv_block(
                key, value, q_at, grad_at, lse_at, delta_at, dk_total, dv_total,
                first, m, j, queries, length, left, right, to_base2,
                q_row, grad_out_row, cols, D, WINDOW, True, PRECISION, VECTOR,
            )  # fmt: skip
            u += 1
    else:
        for u in tl.range(0, group * whole):
            q_at, grad_at, lse_at, delta_at = _of_head(
                q, grad_out, lse, delta, bg, g, u // whole, group, queries, q_head, grad_out_head
            )
            dk_total, dv_total = _dkdv_block(
                key, value, q_at, grad_at, lse_at, delta_at, dk_total, dv_total,
                start + (whole_from + u % whole) * BLOCK_M, m, j, queries, length, left, right, to_base2,
                q_row, grad_out_row, cols, D, WINDOW, False, PRECISION, VECTOR,
            )  # fmt: skip
        for u in tl.range(0, group * partial):
            q_at, grad_at, lse_at, delta_at = _of_head(
                q, grad_out, lse, delta, bg, g, u // partial, group, queries, q_head, grad_out_head
            )
            first = start + _partial_block(u % partial, whole_from, whole_to) * BLOCK_M
            dk_total, dv_total = _dkdv_block(
                key, value, q_at, grad_at, lse_at, delta_at, dk_total, dv_total,
                first, m, j, queries, length, left, right, to_base2,
                q_row, grad_out_row, cols, D, WINDOW, True, PRECISION, VECTOR,
            )  # fmt: skip
    there = (j < length)[:, None]
    row = kv_heads.to(tl.int64) * D
    offset = b.to(tl.int64) * keys * row + g.to(tl.int64) * D
    _store(dk + offset, n0, n, row, cols, keys, tl.where(there, dk_total * scale, 0.0), D, VECTOR)
    _store(dv + offset, n0, n, row, cols, keys, tl.where(there, dv_total, 0.0), D, VECTOR)


@triton.jit
def _normed_rotated(
    x,
    first,
    n,
    row_stride,
    cols,
    limit,
    norm_weight,
    cos,
    sin,
    eps,
    D: tl.constexpr,
    ROTARY: tl.constexpr,
    MASKED: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Rows of q or k, divided by their root mean square, weighted, rotated and rounded to their dtype."""
    HALF: tl.constexpr = ROTARY // 2
    rows = _rows(x, first, n, row_stride, cols, limit, D, MASKED, VECTOR)
    wide = rows.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(wide * wide, axis=1) / D + eps)[:, None]
    wide *= rstd
    if norm_weight is not None:
        wide *= tl.load(norm_weight + cols, mask=cols < D, other=0.0).to(tl.float32)[None, :]
    if ROTARY > 0:
        # Column c turns with column c + HALF (c - HALF in the second half), which is loaded once more, out of L1.
        partner = tl.where(cols < HALF, cols + HALF, tl.where(cols < ROTARY, cols - HALF, cols))
        if HALF % 8 == 0:  # runs of 8 stay runs of 8
            partner = tl.max_contiguous(tl.multiple_of(partner, [8]), [8])
        other = _rows(x, first, n, row_stride, partner, limit, D, MASKED, VECTOR and HALF % 8 == 0).to(tl.float32)
        other *= rstd
        if norm_weight is not None:
            other *= tl.load(norm_weight + partner, mask=partner < D, other=0.0).to(tl.float32)[None, :]
        at = (first + n).to(tl.int64)[:, None] * HALF + (cols % HALF)[None, :]
        cos_at, sin_at = cos + at, sin + at
        if VECTOR:
            cos_at, sin_at = tl.multiple_of(cos_at, [1, 16]), tl.multiple_of(sin_at, [1, 16])
        turned = (cols < ROTARY)[None, :]
        if MASKED:
            turned = turned & ((first + n) < limit)[:, None]
        c = tl.load(cos_at, mask=turned, other=1.0)
        s = tl.load(sin_at, mask=turned, other=0.0)
        wide = wide * c + other * tl.where((cols < HALF)[None, :], -s, s)
    return round_to(wide, rows.dtype)


@triton.jit
def _normed_block(
    q,
    k,
    v,
    k_weight,
    cos,
    sin,
    eps,
    total,
    weight,
    top,
    first,
    n,
    i,
    length,
    left,
    right,
    to_base2,
    k_row,
    v_row,
    cols,
    D: tl.constexpr,
    ROTARY: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """(total, weight, top) with the keys first + n, normalised and rotated as they come."""
    key = _normed_rotated(k, first, n, k_row, cols, length, k_weight, cos, sin, eps, D, ROTARY, MASKED, VECTOR)
    value = _rows(v, first, n, v_row, cols, length, D, MASKED, VECTOR)
    return _attend(
        q, key, value, total, weight, top, i, first + n, length, left, right, to_base2, WINDOW, MASKED, PRECISION
    )


@kernel
def attention_qk_norm_rope_forward(
    q,
    k,
    v,
    cos,
    sin,
    q_weight,
    k_weight,
    key_lengths,
    out,
    queries: tl.int32,
    keys: tl.int32,
    heads: tl.int32,
    group: tl.int32,
    left: tl.int32,
    right: tl.int32,
    scale: tl.float32,
    eps: tl.float32,
    q_batch: tl.int64,
    q_row: tl.int64,
    q_head: tl.int64,
    k_batch: tl.int64,
    k_row: tl.int64,
    k_head: tl.int64,
    v_batch: tl.int64,
    v_row: tl.int64,
    v_head: tl.int64,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROTARY: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """attention_forward of rms-normed and rotated q and k, which are never stored.

    One program: BLOCK_M queries of one head.  Every program norms the keys anew, so it pays where there are few blocks
    of queries.  cos, sin: fp32 ``[N, ROTARY / 2]``, contiguous; weights ``[Dh]``.  Inference only.
    """
    blocks_m = (queries + BLOCK_M - 1) // BLOCK_M
    bh = tl.program_id(0) // blocks_m
    m0 = (tl.program_id(0) % blocks_m) * BLOCK_M
    b, h = bh // heads, bh % heads
    q += b.to(tl.int64) * q_batch + h.to(tl.int64) * q_head
    k += b.to(tl.int64) * k_batch + (h // group).to(tl.int64) * k_head
    v += b.to(tl.int64) * v_batch + (h // group).to(tl.int64) * v_head
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_D)
    i = m0 + m
    length = _length(key_lengths, b, keys)
    query = _normed_rotated(q, m0, m, q_row, cols, queries, q_weight, cos, sin, eps, D, ROTARY, True, VECTOR)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    to_base2 = scale * LOG2_E

    last = tl.minimum(m0 + BLOCK_M, queries) - 1
    start, whole_from, whole_to, blocks = _bounds(m0, last, left, right, length, BLOCK_N, WINDOW)
    partial = whole_from + blocks - whole_to
    if INTERPRETED:
        t = whole_from
        while t < whole_to:
            total, weight, top = _normed_block(
                query, k, v, k_weight, cos, sin, eps, total, weight, top, start + t * BLOCK_N, n, i, length, left,
                right, to_base2, k_row, v_row, cols, D, ROTARY, WINDOW, False, PRECISION, VECTOR,
            )  # fmt: skip
            t += 1
        t = 0
        while t < partial:
            first = start + _partial_block(t, whole_from, whole_to) * BLOCK_N
            total, weight, top = _normed_block(
                query, k, v, k_weight, cos, sin, eps, total, weight, top, first, n, i, length, left,
                right, to_base2, k_row, v_row, cols, D, ROTARY, WINDOW, True, PRECISION, VECTOR,
            )  # fmt: skip
            t += 1
    else:
        for t in tl.range(whole_from, whole_to):
            total, weight, top = _normed_block(
                query, k, v, k_weight, cos, sin, eps, total, weight, top, start + t * BLOCK_N, n, i, length, left,
                right, to_base2, k_row, v_row, cols, D, ROTARY, WINDOW, False, PRECISION, VECTOR,
            )  # fmt: skip
        for t in tl.range(0, partial):
            first = start + _partial_block(t, whole_from, whole_to) * BLOCK_N
            total, weight, top = _normed_block(
                query, k, v, k_weight, cos, sin, eps, total, weight, top, first, n, i, length, left,
                right, to_base2, k_row, v_row, cols, D, ROTARY, WINDOW, True, PRECISION, VECTOR,
            )  # fmt: skip
    _finish_forward(out, None, total, weight, top, bh, b, h, m0, m, cols, queries, heads, D, VECTOR)

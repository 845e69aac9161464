"""Bytes and operations of one DiT step, by kind of op; what one call of `DiT.forward(precomputed=...)` must do.

Text keys and values, modulation and rotary tables are computed before the first step and not counted. In the formulas T
= B N are the rows, D the width, H the heads, F the inner width of SwiGLU, L the text tokens, C the latent channels, R
the rotated dims of a head, s the bytes of one element.
"""

from __future__ import annotations

from bench.counting import Count
from presto_models.dit import DiTConfig

PRODUCTS = ("qkv", "self-attention", "out, cross q, cross out", "cross-attention", "mlp up", "mlp down", "proj in, out")
"""The kinds whose operations are matrix products: the ones model FLOPs are made of."""


def dit_step(
    config: DiTConfig, *, batch: int, length: int, text_tokens: int, blocks: int, itemsize: int
) -> dict[str, Count]:
    """One forward through `blocks` blocks: kind of op → what all its calls together must do."""
    rows, dim, heads, inner = batch * length, config.dim, config.num_heads, config.mlp_dim
    rotary = config.rotary_size

    def product(k: int, n: int) -> Count:
        return Count((rows * k + k * n + rows * n) * itemsize, 2 * rows * k * n, "(T k + k n + T n) s", "2 T k n")

    per_block = {
        "qkv": product(dim, 3 * dim),
        "qk norm, rotary": Count(
            6 * rows * dim * itemsize,
            3 * rows * (4 * dim + 3 * heads) + 6 * rows * heads * rotary,
            "read and write q, k and cross-attention's q: 6 TD s",
            "square and sum 2, times rstd 1, times weight 1 of three tensors: 12 TD; "
            "mean, eps and root of each head: 9 TH; rotation of q and k, 3 a dim: 6 T H R",
        ),
        "self-attention": Count(
            4 * rows * dim * itemsize,
            4 * rows * length * dim,
            "read q, k, v, write y: 4 TD s",
            "q k' and p v, 2 N each per row and dim: 4 T N D (softmax not counted)",
        ),
        "out, cross q, cross out": times(product(dim, dim), 3),
        "cross-attention": Count(
            (2 * rows * dim + 2 * batch * text_tokens * dim) * itemsize,
            4 * rows * text_tokens * dim,
            "read q, write y: 2 TD s; read k, v: 2 B L D s",
            "q k' and p v: 4 T L D (softmax not counted)",
        ),
        "seams": Count(
            (12 * rows * dim + 6 * batch * dim + dim) * itemsize,
            25 * rows * dim + 12 * rows + 2 * batch * dim,
            "three a block, each reads x, branch and writes x', h: 12 TD s; "
            "gate and weight, then scale and shift, then all three: 6 BD s + D s",
            "norm 5 each, and gate 2, weight 1; add 1, modulate 2; gate 2, modulate 2: 25 TD; "
            "mean, variance, eps and root of a row: 12 T; 1+scale: 2 BD",
        ),
        "mlp up": product(dim, 2 * inner),
        "swiglu": Count(
            3 * rows * inner * itemsize,
            5 * rows * inner,
            "read value, gate, write: 3 TF s",
            "negate, exp, add, divide, times value: 5 TF",
        ),
        "mlp down": product(inner, dim),
    }
    step = {kind: times(count, blocks) for kind, count in per_block.items()}
    opening = Count((2 * rows * dim + 2 * batch * dim) * itemsize, 7 * rows * dim + 4 * rows + batch * dim, "", "")
    step["seams"] = add(step["seams"], opening, " a block; and the opening adaln_modulate")
    ends = add(product(config.in_channels, dim), product(dim, config.in_channels), " twice")
    biases = Count((dim + config.in_channels) * itemsize, 0, "", "")  # added inside the product: no operations counted
    step["proj in, out"] = add(ends, biases, ", and (D + C) s")
    return step


def model_flops(step: dict[str, Count]) -> int:
    """Operations of the matrix products and attention alone, as model FLOP/s are usually given."""
    return sum(step[kind].flops for kind in PRODUCTS)


def times(count: Count, calls: int) -> Count:
    return Count(count.bytes * calls, count.flops * calls, count.bytes_formula, count.flops_formula)


def add(a: Count, b: Count, note: str) -> Count:
    return Count(a.bytes + b.bytes, a.flops + b.flops, a.bytes_formula + note, a.flops_formula + note)

"""Attention in plain PyTorch: what the others are measured against, and what runs when there is no other.

For batch b, query i and head h, with kv head g = h // (H / Hkv):

    out[b, i, h] = sum_j p_ij v[b, j, g],    p_ij = exp(scale q[b, i, h] . k[b, j, g] - lse[b, h, i])
    lse[b, h, i] = ln sum_j exp(scale q[b, i, h] . k[b, j, g])

j runs over the keys that query i sees: j < key_lengths[b] clamped to [0, Nk], and i - left <= j <= i + right where the
window bounds it.  A row that sees no key is 0, its lse -inf.  Backward, with dp_ij = grad_out_i . v_j
and D_i = sum_j p_ij dp_ij (= out_i . grad_out_i, which is what implementations that see a row's keys in parts take):

    dv_j = sum_i p_ij grad_out_i        ds_ij = p_ij (dp_ij - D_i)
    dq_i = scale sum_j ds_ij k_j      dk_j = scale sum_i ds_ij q_i

Everything is fp32, or float64 for float64 inputs, and rounded once to the dtype of q.  A hidden pair takes no part:
0 times a NaN would be NaN, so what is not finite is taken out of a product and put back, as NaN, in the rows that see
it.  Under a window the queries go in blocks, each beside the keys that its rows can see, so that memory grows with N
and not with its square (Dao et al. 2022, FlashAttention, for the blocks and the backward).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 256
"""Queries at a time under a window."""


def forward(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, left: int, right: int, scale: float
) -> tuple[Tensor, Tensor]:
    """(out, lse) as the operator gives them; lse is float64 for float64 inputs."""
    with _as_it_is(q):
        heads = _Heads(q, k, v, key_lengths, left, right)
        out, lse = heads.query.new_zeros(heads.query.shape), heads.query.new_empty(heads.query.shape[:-1])
        for rows, keys in _blocks(q.shape[1], k.shape[1], left, right):
            p, lse[..., rows], visible = heads.weights(rows, keys, scale, None)
            out[..., rows, :] = _product(p, visible, heads.value[..., keys, :])
        return heads.joined(out).to(q.dtype), lse.flatten(1, 2)


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    key_lengths: Tensor | None,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) as the operator gives them."""
    with _as_it_is(q):
        heads = _Heads(q, k, v, key_lengths, left, right)
        grad = heads.split(grad_out)
        lse = lse.unflatten(1, grad.shape[1:3])
        dq, dk, dv = (t.new_zeros(t.shape) for t in (heads.query, heads.key, heads.value))
        for rows, keys in _blocks(q.shape[1], k.shape[1], left, right):
            p, _, visible = heads.weights(rows, keys, scale, lse[..., rows])
            dp = grad[..., rows, :] @ heads.value[..., keys, :].mT
            seen_by = None
            if visible is not None:
                dp = dp.masked_fill(~visible, 0)
                seen_by = visible.mT
            ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
            dq[..., rows, :] = _product(ds, visible, heads.key[..., keys, :])
            dk[..., keys, :] += _product(ds.mT, seen_by, heads.query[..., rows, :]).sum(2, keepdim=True)
            dv[..., keys, :] += _product(p.mT, seen_by, grad[..., rows, :]).sum(2, keepdim=True)
        if heads.hidden is not None:
            dk, dv = (t.masked_fill(heads.hidden, 0) for t in (dk, dv))
        return tuple(heads.joined(t).to(q.dtype) for t in (dq, dk, dv))  # type: ignore[return-value]


class _Heads:
    """The tensors as [B, Hkv, H / Hkv, N, Dh] (1 in the third place for k and v) in the dtype of the arithmetic."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, left: int, right: int):
        self.kv_heads = k.shape[2]
        self.query, self.key, self.value = self.split(q), self.split(k), self.split(v)
        self.left, self.right = left, right
        self.hidden = None
        if key_lengths is not None:
            # No query sees them, so that they may as well be 0: then no product meets a NaN there.
            past = torch.arange(k.shape[1], device=k.device) >= key_lengths[:, None]
            self.hidden = past[:, None, None, :, None]
            self.key, self.value = (t.masked_fill(self.hidden, 0) for t in (self.key, self.value))

    def split(self, t: Tensor) -> Tensor:
        t = t.to(torch.float64 if t.dtype == torch.float64 else torch.float32)
        return t.unflatten(2, (self.kv_heads, t.shape[2] // self.kv_heads)).permute(0, 2, 3, 1, 4)

    def joined(self, t: Tensor) -> Tensor:
        return t.permute(0, 3, 1, 2, 4).flatten(2, 3).contiguous()

    def weights(
        self, rows: slice, keys: slice, scale: float, lse: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(p, lse, which pairs a window shows, None where there is no window) of these queries and keys."""
        visible = self._window(rows, keys)
        s = self.query[..., rows, :] @ self.key[..., keys, :].mT * scale
        if self.hidden is not None:
            s = s.masked_fill(self.hidden[..., keys, :].mT, -torch.inf)
        if visible is not None:
            s = s.masked_fill(~visible, -torch.inf)
        if lse is None:
            lse = torch.logsumexp(s, -1) if s.shape[-1] else s.new_full(s.shape[:-1], -torch.inf)
        # Where no key is seen every s is -inf: its weight is 0 whatever finite number is taken from it.
        p = (s - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp()
        return p, lse, visible

    def _window(self, rows: slice, keys: slice) -> Tensor | None:
        if self.left < 0 and self.right < 0:
            return None
        device = self.query.device
        behind = (
            torch.arange(rows.start, rows.stop, device=device)[:, None]
            - torch.arange(keys.start, keys.stop, device=device)
        )  # fmt: skip
        visible = torch.ones_like(behind, dtype=torch.bool)
        if self.left >= 0:
            visible &= behind <= self.left
        if self.right >= 0:
            visible &= -behind <= self.right
        if self.hidden is not None:
            visible = visible & ~self.hidden[..., keys, :].mT
        return visible


def _product(weights: Tensor, visible: Tensor | None, values: Tensor) -> Tensor:
    """weights @ values; with ``visible``, what is not finite reaches the rows that see it and no others."""
    if visible is None:
        return weights @ values
    wrong = ~values.isfinite()
    reached = visible.to(values.dtype) @ wrong.to(values.dtype) > 0
    # A row of weights is not finite where its own query or gradient is not; a hidden pair's weight must be 0 even so.
    weights = weights.masked_fill(~visible, 0)
    return (weights @ values.masked_fill(wrong, 0)).masked_fill(reached, torch.nan)


def _blocks(queries: int, keys: int, left: int, right: int) -> Iterator[tuple[slice, slice]]:
    """Which queries go together, and the keys that some of them see."""
    if left < 0 and right < 0:
        yield slice(0, queries), slice(0, keys)
        return
    for start in range(0, queries, ROWS):
        stop = min(start + ROWS, queries)
        first = max(start - left, 0) if left >= 0 else 0
        last = min(stop + right, keys) if right >= 0 else keys
        yield slice(start, stop), slice(first, last)


def _as_it_is(t: Tensor) -> contextlib.AbstractContextManager[object]:
    """Autocast would run the products in half precision."""
    if t.device.type in ("cpu", "cuda"):
        return torch.autocast(t.device.type, enabled=False)
    return contextlib.nullcontext()

"""Attention with decomposed relative positions a chunk of the scores at a time, for CPUs.

A CPU gains nothing from widening queries and keys (see `harness.models.attention`): it pays the wider products in
full. Here a chunk of scores small enough for its cache is made, biased, normalised and used at once, and made again
in backward; what is kept from forward to backward is q, k, v and the relative terms, never a matrix of scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 20
"""Scores a chunk: 4 MiB in float32."""


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, *, scale: float) -> Tensor:
    """softmax(scale·q·kᵀ + rows + columns)·v without the matrix of scores.

    Args:
        q: (B, heads, N, d) queries, N = h·w.
        k, v: (B, heads, M, d), the N places first, then tokens without a place.
        rows, columns: (B, heads, N, h) and (B, heads, N, w), each query's terms for every row and column of keys.
        scale: of the scores.

    Returns:
        (B, heads, N, d).
    """
    return _ChunkedAttention.apply(q, k, v, rows, columns, scale)


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v, rows, columns)
        ctx.scale = scale
        # Laid out as (B, N, heads, d) in memory, which is how the output projection reads it.
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        for keys, chunks in _chunks(q, k):
            transposed_k, values = (k[keys] * scale).transpose(-2, -1).contiguous(), v[keys].contiguous()
            for at in chunks:
                out[at] = _weights(q[at], transposed_k, rows[at], columns[at]) @ values
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rows, columns = ctx.saved_tensors
        grad_q, grad_rows, grad_columns = torch.empty_like(q), torch.empty_like(rows), torch.empty_like(columns)
        grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
        height, width = rows.shape[-1], columns.shape[-1]
        for keys, chunks in _chunks(q, k):
            scaled_k = k[keys] * ctx.scale
            transposed_k, transposed_v = scaled_k.transpose(-2, -1).contiguous(), v[keys].transpose(-2, -1).contiguous()
            # Several chunks of queries add to the same keys; in half precision their sum is kept in float32. The small
            # factor of each product is the one transposed, because half-precision kernels copy what is transposed.
            sum_k, sum_v = (
                torch.zeros_like(transposed, dtype=torch.float32) for transposed in (transposed_k, transposed_v)
            )
            for at in chunks:
                weights = _weights(q[at], transposed_k, rows[at], columns[at])
                sum_v += grad[at].transpose(-2, -1) @ weights
                grad_scores = torch._softmax_backward_data(grad[at] @ transposed_v, weights, -1, weights.dtype)
                grad_q[at] = grad_scores @ scaled_k
                sum_k += q[at].transpose(-2, -1) @ grad_scores
                placed = grad_scores[..., : height * width].unflatten(-1, (height, width))
                grad_rows[at] = placed.sum(dim=-1)
                grad_columns[at] = placed.sum(dim=-2)
            grad_k[keys] = sum_k.mul_(ctx.scale).transpose(-2, -1)
            grad_v[keys] = sum_v.transpose(-2, -1)
        return grad_q, grad_k, grad_v, grad_rows, grad_columns, None


def _weights(q: Tensor, transposed_k: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    scores = q @ transposed_k
    height, width = rows.shape[-1], columns.shape[-1]
    placed = scores[..., : height * width].unflatten(-1, (height, width))
    placed.add_(rows.unsqueeze(-1)).add_(columns.unsqueeze(-2))
    return scores.softmax(dim=-1)


_Slices = tuple[slice, ...]


def _chunks(q: Tensor, k: Tensor) -> Iterator[tuple[_Slices, list[_Slices]]]:
    """Slices of (batch, heads), each with the slices of (batch, heads, queries) whose scores number about `CHUNK`."""
    batch, heads, length, _ = q.shape
    keys = k.shape[2]
    images = max(CHUNK // (heads * length * keys), 1)
    together = min(max(CHUNK // (length * keys), 1), heads)
    step = min(max(CHUNK // (together * keys), 1), length)
    for image in range(0, batch, images):
        for head in range(0, heads, together):
            at = (slice(image, image + images), slice(head, head + together))
            yield at, [(*at, slice(start, start + step)) for start in range(0, length, step)]

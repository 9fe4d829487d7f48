"""SAM's attention with decomposed relative positions, without ever building the (N, N) matrix of scores.

SAM adds to each score a row term and a column term that depend on the query (MViTv2, 2112.01526):
``s_ij = scale·q_i·k_j + q_i·R_h[y_i - y_j] + q_i·R_w[x_i - x_j]``. With ``H_i = (q_i·R_h[y_i - y])_y`` and ``W_i``
likewise, this is the plain dot product of ``[scale·q_i, H_i, W_i]`` with ``[k_j, onehot(y_j), onehot(x_j)]``. Any
fused kernel computes it exactly, at 2.6 to 3 times the FLOPs of a global block (`widened_attention`).
The terms may also be a mask that the kernel adds (`biased_attention`, as in transformers); the mask is as large as the scores.
Which of the two is faster depends on GPU, shape and precision: `harness.models.attention_choice` times them.

On a CPU, scores are computed in chunks small enough for its cache. Each is biased, normalised and used at once, and recomputed in
the backward pass. So only q, k, v and the relative terms are kept, never a matrix of scores. The terms are added to the scores:
wider products cost as much or more in float32, and in bf16 for large maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention


class RelativeAttention(nn.Module):
    """Multi-head attention over a map, with the parameters and names of segment_anything's ``Attention``.

    Args:
        dim: width of a token.
        heads: attention heads.
        side: side of the map that the relative-position tables are made for; for other sizes they are interpolated as
            in segment_anything.
        fused: never build the score matrix; False builds it as segment_anything does.

    ``kind`` names one of `KERNELS`; ``auto`` means chunks on a CPU and `widened_attention` elsewhere.
    """

    def __init__(self, *, dim: int, heads: int, side: int, fused: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = (dim // heads) ** -0.5
        self.fused = fused
        self.kind = "auto"
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Attend within each map.

        Args:
            x: (B', h, w, C), one window or one whole image per entry, already normalised.
            prefix: (B' or 1, n, C) further tokens, already normalised, that the map attends to with zero
                relative-position bias; they have no output of their own (deep prompts, 2203.12119).

        Returns:
            (B', h, w, C).
        """
        batch, height, width, _ = x.shape
        q, k, v = self._heads(self.qkv(x))
        rows, columns = self._relative_scores(q, height, width)
        if prefix is not None:
            _, prefix_k, prefix_v = self._heads(self.qkv(prefix.unsqueeze(2)))
            k = torch.cat([k, prefix_k.expand(batch, -1, -1, -1)], dim=2)
            v = torch.cat([v, prefix_v.expand(batch, -1, -1, -1)], dim=2)
        out = self.kernel(x)(q, k, v, rows, columns, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, -1))

    def kernel(self, x: Tensor) -> Callable[..., Tensor]:
        """The function that computes the attention of tokens on the device of ``x``."""
        if not self.fused:
            return plain_attention
        if self.kind != "auto":
            return KERNELS[self.kind]
        return widened_attention if x.is_cuda else chunked_attention

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B', h, w, 3C) to three of (B', heads, h·w, C/heads)."""
        batch = qkv.shape[0]  # len() would be a constant when traced
        q, k, v = (
            qkv.reshape(batch, -1, 3, self.num_heads, qkv.shape[-1] // (3 * self.num_heads))
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        return q, k, v

    def _relative_scores(self, q: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Each query's row terms (B', heads, N, h) and column terms (B', heads, N, w)."""
        batch, heads, length, dim = q.shape
        table_h = _by_distance(self.rel_pos_h, height).to(q.dtype)
        table_w = _by_distance(self.rel_pos_w, width).to(q.dtype)
        at = q.reshape(batch, heads, height, width, dim)
        rows = torch.einsum("bnhwc,hkc->bnhwk", at, table_h).reshape(batch, heads, length, height)
        columns = torch.einsum("bnhwc,wkc->bnhwk", at, table_w).reshape(batch, heads, length, width)
        return rows, columns


def widened_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, *, scale: float) -> Tensor:
    """Like `chunked_attention`, but through torch's fused kernel, with rows and columns as further dimensions of a head."""
    dim, (height, width) = v.shape[-1], (rows.shape[-1], columns.shape[-1])
    queries = torch.cat([q * scale, rows, columns], dim=-1)
    keys = torch.cat([k, _positions(height, width, like=k).expand(*k.shape[:2], -1, -1)], dim=-1)
    # Fused kernels require one head width for all three; the zeros added to v come out as zeros.
    values = pad(v, (0, height + width))
    return scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., :dim]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, *, scale: float) -> Tensor:
    """Like `chunked_attention`, but with the whole matrix of scores."""
    bias = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)
    return full_attention(q, k, v, scale=scale, bias=pad(bias, (0, k.shape[-2] - bias.shape[-1])))


def biased_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, *, scale: float) -> Tensor:
    """Like `chunked_attention`, but through torch's fused kernel, with the terms as a mask (B, heads, N, M) that it adds."""
    bias = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)
    bias = pad(bias, (0, k.shape[-2] - bias.shape[-1]))
    return scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=scale)


KERNELS = {"widened": widened_attention, "bias": biased_attention, "math": plain_attention}
"""The kinds that a protocol's ``attention`` may name; all compute the same."""


def _by_distance(table: Tensor, size: int) -> Tensor:
    """(size, size, C): the vector for every pair of positions along an axis; a table of another size is interpolated
    linearly."""
    if len(table) != 2 * size - 1:
        table = interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    positions = torch.arange(size, device=table.device)
    return table[positions[:, None] - positions[None, :] + size - 1]


def _positions(height: int, width: int, *, like: Tensor) -> Tensor:
    """(M, h + w): for each of M keys, its row and its column as one-hot vectors; prefix tokens have none."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return pad(torch.cat([rows, columns], dim=1), (0, 0, 0, like.shape[2] - height * width))


def full_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | float = 0.0) -> Tensor:
    """softmax(scale·q·kᵀ + bias)·v with the whole matrix of scores."""
    return (q * scale @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v


CHUNK = 1 << 20
"""Scores per chunk: 4 MiB in float32."""


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, *, scale: float) -> Tensor:
    """softmax(scale·q·kᵀ + rows + columns)·v without the matrix of scores.

    Args:
        q: (B, heads, N, d) queries, N = h·w.
        k, v: (B, heads, M, d), those of the N positions first, then those of tokens without a position.
        rows, columns: (B, heads, N, h) and (B, heads, N, w), each query's terms for every row and column of keys.
        scale: factor of the scores.

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
            transposed_k = (k[keys] * scale).transpose(-2, -1).contiguous()
            values = v[keys].contiguous()
            for at in chunks:
                out[at] = _weights(q[at], transposed_k, rows[at], columns[at]) @ values
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rows, columns = ctx.saved_tensors
        grad_q, grad_rows, grad_columns = torch.empty_like(q), torch.empty_like(rows), torch.empty_like(columns)
        height, width = rows.shape[-1], columns.shape[-1]
        grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
        for keys, chunks in _chunks(q, k):
            scaled_k = k[keys] * ctx.scale
            transposed_k, transposed_v = scaled_k.transpose(-2, -1).contiguous(), v[keys].transpose(-2, -1).contiguous()
            # Several chunks of queries add to the same keys; in half precision their sum is kept in float32. The small
            # factor of each product is the one transposed, because half-precision kernels copy what is transposed.
            sum_k, sum_v = (
                torch.zeros_like(transposed, dtype=torch.promote_types(transposed.dtype, torch.float32))
                for transposed in (transposed_k, transposed_v)
            )
            for at in chunks:
                weights = _weights(q[at], transposed_k, rows[at], columns[at])
                sum_v += grad[at].transpose(-2, -1) @ weights
                grad_scores = torch._softmax_backward_data(grad[at] @ transposed_v, weights, -1, weights.dtype)
                sum_k += q[at].transpose(-2, -1) @ grad_scores
                placed = grad_scores[..., : height * width].unflatten(-1, (height, width))
                grad_q[at], grad_rows[at], grad_columns[at] = grad_scores @ scaled_k, placed.sum(-1), placed.sum(-2)
            grad_k[keys] = sum_k.mul_(ctx.scale).transpose(-2, -1)
            grad_v[keys] = sum_v.transpose(-2, -1)
        return grad_q, grad_k, grad_v, grad_rows, grad_columns, None


def _weights(queries: Tensor, transposed_k: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    scores = queries @ transposed_k
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

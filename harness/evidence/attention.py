"""Mean attention distance: how far, in pixels, a token's attention reaches on average (Raghu et al. 2021, 2108.08810).

For a query i the distance is Σ_j p_ij · d_ij, d_ij = patch · ‖(row, column)_i − (row, column)_j‖; the mean over queries, then
over images, by head. Tokens without a place (class and register tokens, prompts) count neither as queries nor as keys, and
what is left of each row is renormalised, which is a softmax over the keys that have one. In a windowed block of SAM distances
are those inside a window, and the padding that fills windows at the border (14 rows of tokens do not divide 64) is left out
in the same way, although the model attends to it: no public code settles this.

A block's matrix of probabilities never exists as a whole: `CHUNK` scores are made, weighted and forgotten.
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling.image_encoder import window_partition
from torch import Tensor, nn

from harness.models.attention import RelativeAttention
from harness.models.rotary import RotaryAttention

CHUNK = 1 << 24
"""Scores at a time: 64 MiB in float32, and about three times that with what is made of them."""


def pixel_distances(height: int, width: int, *, patch: int) -> Tensor:
    """(N, N): distance of any two tokens of a map, in pixels, N = height · width in rows."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = patch * torch.stack([rows, columns], dim=-1).reshape(-1, 2).float()
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def window_validity(grid: tuple[int, int], window: int) -> Tensor:
    """(windows of an image, N) bool: which tokens of each window lie on the map; one window of all where ``window`` is 0."""
    if not window:
        return torch.ones(1, grid[0] * grid[1], dtype=torch.bool)
    windows, _ = window_partition(torch.ones(1, *grid, 1), window)
    return windows.flatten(1) > 0


def uniform_distance(grid: tuple[int, int], *, window: int, patch: int) -> float:
    """The attention distance of uniform attention: 116.5 px on a whole 14 × 14 window of 16 px tokens, 533.9 px on 64 × 64."""
    valid = window_validity(grid, window).double()
    sides = (window, window) if window else grid
    distances = pixel_distances(*sides, patch=patch).double()
    by_query = (valid @ distances) / valid.sum(dim=1, keepdim=True)
    return float((by_query * valid).sum() / valid.sum())


@torch.no_grad()
def attention_distance(attn: nn.Module, tokens: Tensor, *, grid: tuple[int, int], window: int, patch: int) -> Tensor:
    """Mean attention distance of every image and head, (B, heads), in pixels.

    Args:
        attn: SAM's attention over maps, timm's over sequences, or a rotary one over either; its ``qkv`` may be adapted.
        tokens: what reaches it: (B', h, w, C), a window or an image an entry, or (B, P + N, C) with P tokens without a place
            in front.
        grid: height and width of the map in tokens.
        window: side of the window, 0 for global attention.
        patch: side of a token in pixels.
    """
    q, k, rows, columns = _projected(attn, tokens, places=grid[0] * grid[1])
    sides = (window, window) if window else grid
    distances = pixel_distances(*sides, patch=patch).to(q)
    valid = window_validity(grid, window).to(q.device)
    every = valid.repeat(len(q) // len(valid), 1)
    reach = _expected_distances(q, k, rows, columns, valid=every, distances=distances, scale=float(attn.scale))  # type: ignore[arg-type]
    weights = every.unsqueeze(1).to(reach)
    sums = (reach * weights).reshape(-1, len(valid), *reach.shape[1:]).sum(dim=(1, 3))
    return sums / valid.sum()


def _projected(attn: Any, tokens: Tensor, *, places: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Queries and keys (B', heads, N, d) of the tokens with a place, with SAM's row and column terms, None elsewhere."""
    if isinstance(attn, RelativeAttention):
        q, k, _ = attn._heads(attn.qkv(tokens))
        return q, k, *attn._relative_scores(q, *tokens.shape[1:3])
    if isinstance(attn, RotaryAttention):
        q, k, _ = attn.heads(tokens)
        placeless = 0 if tokens.dim() == 4 else tokens.shape[1] - places
        return q[:, :, placeless:], k[:, :, placeless:], None, None
    batch, length, _ = tokens.shape
    q, k, _ = attn.qkv(tokens).reshape(batch, length, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    return q[:, :, length - places :], k[:, :, length - places :], None, None


def _expected_distances(
    q: Tensor, k: Tensor, rows: Tensor | None, columns: Tensor | None, *, valid: Tensor, distances: Tensor, scale: float
) -> Tensor:
    """Σ_j p_ij d_ij, (B', heads, N), p a softmax over valid keys.

    Args:
        q, k: (B', heads, N, d).
        rows, columns: (B', heads, N, h) and (B', heads, N, w), SAM's terms for every row and column of keys.
        valid: (B', N).
        distances: (N, N).
    """
    batch, heads, length, _ = q.shape
    together = max(CHUNK // (heads * length * length), 1)
    step = min(max(CHUNK // (heads * length), 1), length)
    expected = q.new_empty(batch, heads, length)
    for first in range(0, batch, together):
        entries = slice(first, first + together)
        hidden = ~valid[entries, None, None, :]
        keys = (scale * k[entries]).transpose(-2, -1)
        for start in range(0, length, step):
            at = (entries, slice(None), slice(start, start + step))
            scores = q[at] @ keys
            if rows is not None and columns is not None:
                placed = scores.unflatten(-1, (rows.shape[-1], columns.shape[-1]))
                placed.add_(rows[at].unsqueeze(-1)).add_(columns[at].unsqueeze(-2))
            weights = scores.masked_fill_(hidden, -torch.inf).softmax(dim=-1)
            expected[at] = weights.mul_(distances[start : start + step]).sum(dim=-1)
    return expected

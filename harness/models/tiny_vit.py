"""TinyViT (2207.10666) as MobileSAM's image encoder (2306.14289): convolutions, then three stages of windowed attention.

Written from the published structure; the names are MobileSAM's but for where a block stands (`TinyViTEncoder.published`).
Batch norms never learn statistics here: they are what the checkpoint says, in training as in evaluation, and are applied
with the convolution in front of them. In training MobileSAM's own modules would take those of the batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, pad, scaled_dot_product_attention

from harness.methods.parts.placement import BackboneShape, BlockShape, NormedConvolution
from harness.models.attention import full_attention
from harness.models.sam_encoder import BlockEncoder, sam_neck

_CLASSES = 1000


class FixedBatchNorm(nn.Module):
    """Scale, offset and statistics of a batch norm, which are applied with the convolution in front of it."""

    running_mean: Tensor
    running_var: Tensor
    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self) -> tuple[Tensor, Tensor]:
        """What a map is multiplied with and what is added to it, (channels,) each."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class NormedConv(nn.Module):
    """A convolution and its batch norm, (B, inputs, h, w) to (B, outputs, h / stride, w / stride)."""

    def __init__(self, form: NormedConvolution) -> None:
        super().__init__()
        groups, rim = form.inputs if form.depthwise else 1, form.side // 2
        self.c = nn.Conv2d(form.inputs, form.outputs, form.side, form.stride, rim, groups=groups, bias=False)
        self.bn = FixedBatchNorm(form.outputs)

    def forward(self, maps: Tensor) -> Tensor:
        scale, offset = self.bn()
        conv = self.c
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        return conv2d(maps, weight, offset, stride=conv.stride, padding=conv.padding, groups=conv.groups)


class ThreeConvolutions(nn.Module):
    """conv3(GELU(conv2(GELU(conv1(x))))), between two stages; with ``residual`` GELU(x + …), the inverted residual of the stem."""

    def __init__(self, forms: Sequence[NormedConvolution], *, residual: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = map(NormedConv, forms)
        self.residual = residual

    def forward(self, maps: Tensor) -> Tensor:
        made = self.conv3(gelu(self.conv2(gelu(self.conv1(maps)))))
        return gelu(maps + made) if self.residual else made


def stem_and_first_stage(forms: Sequence[NormedConvolution]) -> tuple[nn.Module, nn.Module]:
    """Images (B, 3, H, W) to maps (B, C, H/4, W/4); and inverted residuals with the way to the map of the first block with attention."""
    first, second, *rest = forms
    stem = nn.Sequential(NormedConv(first), nn.GELU(), NormedConv(second))
    *blocks, last = (rest[start : start + 3] for start in range(0, len(rest), 3))
    residuals = nn.Sequential(*(ThreeConvolutions(block, residual=True) for block in blocks))
    stage = nn.Sequential(OrderedDict(blocks=residuals, downsample=ThreeConvolutions(last)))
    return nn.Sequential(OrderedDict(seq=stem)), stage


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, normed in front, with one learnt number a head and pair of distances.

    Args:
        shape: the block's numbers.
        fused: scaled_dot_product_attention, and nothing is computed for the padding of windows; False builds the score
            matrix of whole windows.
    """

    distances: Tensor

    def __init__(self, shape: BlockShape, *, fused: bool) -> None:
        super().__init__()
        self.num_heads = shape.heads
        self.scale = (shape.dim // shape.heads) ** -0.5
        self.window_size = shape.window
        self.fused = fused
        self.norm = nn.LayerNorm(shape.dim)
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim)
        self.proj = nn.Linear(shape.dim, shape.dim)
        self.attention_biases = nn.Parameter(torch.zeros(shape.heads, shape.window**2))
        # On the CPU: no checkpoint holds it, so a model made on the meta device needs its values.
        position = torch.arange(shape.window**2, device="cpu")
        rows, columns = position // shape.window, position % shape.window
        apart = (rows[:, None] - rows).abs() * shape.window + (columns[:, None] - columns).abs()
        self.register_buffer("distances", apart, persistent=False)
        # What a size of maps, or a frozen bias, needs computing once for: on a GPU each would be kernels and waits a forward pass.
        self._layouts: dict[tuple[Any, ...], _Layout] = {}
        self._biases: tuple[tuple[Any, ...], list[Tensor]] = ((), [])

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            x: (B', window, window, C), not normed; padding is zeros.
            prefix: (B' or 1, n, C) further tokens, already normed, that are attended to and give no output.

        Returns:
            As ``x``.
        """
        q, k, v = self._by_head(self.qkv(self.norm(x)).flatten(1, -2))
        bias = self.biases()
        if prefix is not None:
            _, prefix_k, prefix_v = self._by_head(self.qkv(prefix))
            k = torch.cat([k, prefix_k.expand(x.shape[0], -1, -1, -1)], dim=2)
            v = torch.cat([v, prefix_v.expand(x.shape[0], -1, -1, -1)], dim=2)
            bias = pad(bias, (0, prefix.shape[-2]))
        return self.proj(self._attended(q, k, v, bias).reshape(x.shape))

    def on_map(self, x: Tensor) -> Tensor:
        """`forward` of a map's windows, without their padding.

        The tokens of the padding are all the same, so a window sees one key k₀ and value v₀ for all of them. Their bias for a query
        is log Σ exp(bias) over their positions, since Σ exp(q·k₀ + bias) = exp(q·k₀) Σ exp(bias).

        Args:
            x: (B, h, w, C), not normed.

        Returns:
            As ``x``.
        """
        batch, height, width, dim = x.shape
        size = (batch, height, width, x.device)
        if size not in self._layouts:
            self._layouts[size] = _layout(batch, height, width, self.window_size, device=x.device)
        order, back, parts = self._layouts[size]
        tokens = self.norm(_Reordered.apply(x.reshape(-1, dim), order, back))  # the last one is of the padding
        *by_part, padding = self.qkv(tokens).split([count * len(inside) for count, inside, _ in parts] + [1])
        outputs = []
        for (count, _, outside), windows, bias in zip(parts, by_part, self._part_biases(parts, size), strict=True):
            q, k, v = self._by_head(windows.unflatten(0, (count, -1)))
            if len(outside):
                _, padding_k, padding_v = (token.expand(count, -1, -1, -1) for token in self._by_head(padding[None]))
                k, v = torch.cat([k, padding_k], dim=2), torch.cat([v, padding_v], dim=2)
            outputs.append(self._attended(q, k, v, bias).reshape(-1, dim))
        return _Reordered.apply(self.proj(torch.cat(outputs)), back, order[:-1]).view(x.shape)

    def _part_biases(self, parts: Sequence[_Part], size: tuple[Any, ...]) -> Iterator[Tensor]:
        """The biases of each part's windows, with one column for their padding; those of a frozen table are kept."""
        table = self.attention_biases
        key = (size, id(table), table.data_ptr(), table._version, table.dtype)
        if self._biases[0] == key and not table.requires_grad:
            yield from self._biases[1]
            return
        whole, made = self.biases(), []
        for _, inside, outside in parts:
            made.append(whole)
            if len(outside):
                rows = whole[:, inside]
                made[-1] = torch.cat([rows[..., inside], rows[..., outside].logsumexp(-1, keepdim=True)], dim=-1)
            yield made[-1]
        if not table.requires_grad:
            self._biases = key, made

    def skips_padding(self) -> bool:
        """Whether `on_map` may stand for `forward`: every token by itself goes through the linear layers, and no hook is set."""
        layers = (self.qkv, self.proj)
        alone = all(isinstance(layer, nn.Linear) or getattr(layer, "tokens_alone", False) for layer in layers)
        watched = (
            module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
            for module in (self, self.norm, *layers)
        )
        return self.fused and alone and isinstance(self.norm, nn.LayerNorm) and not any(watched)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """(B', heads, N, d) and (B', heads, M, d) to (B', N, heads, d)."""
        if self.fused:
            # With a fourth dimension, or CPUs build the score matrix.
            out = scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype), scale=self.scale)
        else:
            out = full_attention(q, k, v, scale=self.scale, bias=bias)
        return out.transpose(1, 2)

    def _by_head(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B', N, 3C) to three of (B', heads, N, C/heads). Split along the last dimension: their gradients are joined in one copy."""
        q, k, v = qkv.unflatten(-1, (self.num_heads, -1)).chunk(3, dim=-1)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def biases(self) -> Tensor:
        """(heads, N, N): what is added to the score of each query and key."""
        return self.attention_biases[:, self.distances]


_Part = tuple[int, Tensor, Tensor]
"""Windows that hold equally much of their map: how many, and which positions of a window are on the map and which are not."""
_Layout = tuple[Tensor, Tensor, list[_Part]]


def _layout(batch: int, height: int, width: int, side: int, *, device: torch.device) -> _Layout:
    """Which token of the maps (B·h·w) comes next where windows follow each other, part by part, and one more; where each token is
    then; and the parts: whole windows, those cut at the right, at the bottom and in the corner, as far as there are any."""

    def along(length: int) -> Iterator[tuple[int, int, int]]:
        whole, rest = divmod(length, side)
        yield from (part for part in ((0, whole, side), (whole * side, 1, rest)) if part[1] and part[2])

    positions = torch.arange(batch * height * width).view(batch, height, width)
    orders, parts = [], []
    for (top, down, rows), (left, across, columns) in product(along(height), along(width)):
        windows = positions[:, top : top + down * rows, left : left + across * columns]
        orders.append(windows.reshape(batch, down, rows, across, columns).transpose(2, 3).flatten())
        on_map = torch.zeros(side, side, dtype=torch.bool)
        on_map[:rows, :columns] = True
        inside, outside = (mask.flatten().nonzero()[:, 0].to(device) for mask in (on_map, ~on_map))
        parts.append((batch * down * across, inside, outside))
    order = torch.cat(orders)
    return torch.cat([order, order.new_zeros(1)]).to(device), order.argsort().to(device), parts


class _Reordered(torch.autograd.Function):
    """Rows (N, C) in another order, and zeros behind them where it has more; backward puts them back in one copy."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        reordered = rows.index_select(0, order)
        reordered[len(rows) :] = 0
        return reordered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors
        return _Reordered.apply(grad, back, order), None, None


def mlp(shape: BlockShape) -> nn.Sequential:
    """fc2(GELU(fc1(norm(x))))."""
    fc1, fc2 = nn.Linear(shape.dim, shape.mlp_dim), nn.Linear(shape.mlp_dim, shape.dim)
    return nn.Sequential(OrderedDict(norm=nn.LayerNorm(shape.dim), fc1=fc1, act=nn.GELU(), fc2=fc2))


class TinyViTBlock(nn.Module):
    """x + attention(x) in windows, a depthwise convolution of the map, then x + MLP(x); each half norms what it reads. The first block of
    a stage begins with the convolutions that make its map."""

    def __init__(self, shape: BlockShape, *, fused: bool) -> None:
        super().__init__()
        assert shape.local is not None
        self.downsample = ThreeConvolutions(shape.downsampling) if shape.downsampling else None
        self.attn = WindowAttention(shape, fused=fused)
        self.local_conv = NormedConv(shape.local)
        self.mlp = mlp(shape)
        self.window_size = shape.window

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C), of the stage before where the block is the first of its own, to (B, h, w, C)."""
        return self.mlp_half(self.attention_half(x))

    def attention_half(self, x: Tensor) -> Tensor:
        """x + attention(x), on the stage's own map."""
        if self.downsample is not None:
            x = _on_maps(self.downsample, x)
        if isinstance(self.attn, WindowAttention) and self.attn.skips_padding():
            return x + self.attn.on_map(x)
        windows, padded = window_partition(x, self.window_size)
        return x + window_unpartition(self.attn(windows), self.window_size, padded, x.shape[1:3])

    def mlp_half(self, x: Tensor) -> Tensor:
        """The convolution, then x + MLP(x)."""
        x = _on_maps(self.local_conv, x)
        return x + self.mlp(x)


def _on_maps(layer: nn.Module, tokens: Tensor) -> Tensor:
    """A layer on maps (B, C, h, w), for tokens (B, h, w, C)."""
    return layer(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class TinyViTEncoder(BlockEncoder):
    """Images (B, 3, H, W) to an embedding (B, neck_dim, H/16, W/16); H and W are multiples of 16.

    Args:
        shape: the encoder's numbers.
        fused: see `WindowAttention`.
        activation_checkpointing: see `BlockEncoder`.
    """

    def __init__(self, shape: BackboneShape, *, fused: bool, activation_checkpointing: bool) -> None:
        super().__init__(shape, activation_checkpointing=activation_checkpointing)
        self.patch_embed, self.first = stem_and_first_stage(shape.stem)
        self.blocks = nn.ModuleList(TinyViTBlock(block, fused=fused) for block in shape.blocks)
        self.neck = sam_neck(shape.dim, shape.neck_dim)

    def embed(self, images: Tensor) -> Tensor:
        """The map of the first block with attention, (B, h, w, C); writes the grid."""
        self._write_grid(images)
        channels_last = images.contiguous(memory_format=torch.channels_last)
        return self.first(self.patch_embed(channels_last)).permute(0, 2, 3, 1)

    def published(self, name: str) -> str:
        """The name of a tensor in MobileSAM: ``first`` is layer 0; others hold blocks, and the way to the next layer."""
        if name.startswith("first."):
            return "layers.0." + name.removeprefix("first.")
        if not name.startswith("blocks."):
            return name
        _, number, rest = name.split(".", 2)
        begins = [index for index, block in enumerate(self.shape.blocks) if index == 0 or block.downsampling]
        layer = sum(begin <= int(number) for begin in begins)
        if rest.startswith("downsample."):
            return f"layers.{layer - 1}.{rest}"
        return f"layers.{layer}.blocks.{int(number) - begins[layer - 1]}.{rest}"

    def unused(self) -> dict[str, Tensor]:
        """Tensors of MobileSAM's checkpoints that nothing uses, by their names: a classifier, and counts of batches."""
        dim = self.shape.dim
        norms = (name for name, module in self.named_modules() if isinstance(module, FixedBatchNorm))
        counted = {f"{self.published(name)}.num_batches_tracked": torch.tensor(0) for name in norms}
        head = {"head.weight": torch.zeros(_CLASSES, dim), "head.bias": torch.zeros(_CLASSES)}
        return {"norm_head.weight": torch.ones(dim), "norm_head.bias": torch.zeros(dim), **head, **counted}

"""TinyViT (2207.10666) as MobileSAM's image encoder (2306.14289): convolutions, then three stages of windowed attention.

Written from the published structure; the names are MobileSAM's except for the position of a block (`TinyViTEncoder.published`).
Batch norms never update their statistics here: they use the checkpoint's, in training as in evaluation, and are folded into
the convolution in front of them. In training, MobileSAM's own modules would use those of the batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
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
    """Scale, offset and statistics of a batch norm that is folded into the convolution in front of it."""

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
        """Factor and offset of a map, (channels,) each."""
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
    """conv3(GELU(conv2(GELU(conv1(x))))), between two stages; with ``residual``, GELU(x + …), the inverted residual of the stem."""

    def __init__(self, forms: Sequence[NormedConvolution], *, residual: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = map(NormedConv, forms)
        self.residual = residual

    def forward(self, maps: Tensor) -> Tensor:
        made = self.conv3(gelu(self.conv2(gelu(self.conv1(maps)))))
        return gelu(maps + made) if self.residual else made


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a norm in front and one learnt bias per head and pair of distances.

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
        # For a frozen table they are computed once: on a GPU they would be many kernels per forward pass.
        self._biases: tuple[tuple[Any, ...], list[Tensor]] = ((), [])

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            x: (B', window, window, C), not normalised; padding is zeros.
            prefix: (B' or 1, n, C) further tokens, already normalised, that are attended to and have no output.

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
        """`forward` for a map (B, h, w, C), not normalised, in windows without their padding.

        The tokens of the padding are all the same, so a window sees one key k₀ and value v₀ for all of them. Their bias for a query
        is log Σ exp(bias) over their positions, since Σ exp(q·k₀ + bias) = exp(q·k₀) Σ exp(bias).
        """
        parts = _cut(x, self.window_size)
        lengths = [part.shape[:3].numel() for part in parts]
        padding = x.new_zeros(1, x.shape[-1])
        tokens = torch.cat([*(part.flatten(0, 2) for part in parts), padding])
        *by_part, padding = self.qkv(self.norm(tokens)).split([*lengths, 1])
        outputs = []
        for part, windows, bias in zip(parts, by_part, self._part_biases(parts), strict=True):
            count = len(part)
            q, k, v = self._by_head(windows.unflatten(0, (count, -1)))
            if bias.shape[-1] > k.shape[2]:
                _, padding_k, padding_v = (token.expand(count, -1, -1, -1) for token in self._by_head(padding[None]))
                k, v = torch.cat([k, padding_k], dim=2), torch.cat([v, padding_v], dim=2)
            outputs.append(self._attended(q, k, v, bias).reshape(-1, x.shape[-1]))
        return _joined(self.proj(torch.cat(outputs)).split(lengths), x.shape, self.window_size)

    def _part_biases(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The biases of each part's windows, with one column for their padding; those of a frozen table are kept."""
        table, side = self.attention_biases, self.window_size
        sides = [tuple(part.shape[1:3]) for part in parts]
        key = (sides, id(table), table.data_ptr(), table._version, table.dtype)
        if self._biases[0] == key and not table.requires_grad:
            return self._biases[1]
        whole, biases = self.biases(), []
        for rows, columns in sides:
            at = whole.unflatten(-1, (side, side)).unflatten(1, (side, side))[:, :rows, :columns].flatten(1, 2)
            inside, right, below = at[..., :rows, :columns], at[..., :rows, columns:], at[..., rows:, :]
            outside = torch.cat([right.flatten(2), below.flatten(2)], dim=-1)
            column = [outside.logsumexp(-1, keepdim=True)] if outside.shape[-1] else []
            biases.append(torch.cat([inside.flatten(2), *column], dim=-1))
        if not table.requires_grad:
            self._biases = key, biases
        return biases

    def skips_padding(self) -> bool:
        """Whether `on_map` may replace `forward`: the linear layers treat every token by itself, and no hook is set."""
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
            # With a fourth dimension: without it, CPUs build the score matrix.
            out = scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype), scale=self.scale)
        else:
            out = full_attention(q, k, v, scale=self.scale, bias=bias)
        return out.transpose(1, 2)

    def _by_head(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B', N, 3C) to three of (B', heads, N, C/heads). The split along the last dimension joins their gradients in one copy."""
        q, k, v = qkv.unflatten(-1, (self.num_heads, -1)).chunk(3, dim=-1)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def biases(self) -> Tensor:
        """(heads, N, N): what is added to the score of each query and key."""
        return self.attention_biases[:, self.distances]


def _spans(length: int, side: int) -> list[tuple[int, int]]:
    """Windows along an axis, the whole ones and the one that is cut: how many there are, and how many positions each holds."""
    return [span for span in ((length // side, side), (1, length % side)) if all(span)]


def _cut(maps: Tensor, side: int) -> list[Tensor]:
    """Maps (B, h, w, C) to windows (n, rows, columns, C), grouped by size: whole, cut at the right, at the bottom, in the corner."""
    rows, columns = (_spans(length, side) for length in maps.shape[1:3])
    parts = []
    for down, band in zip(rows, maps.split([count * each for count, each in rows], dim=1), strict=True):
        for across, part in zip(columns, band.split([count * each for count, each in columns], dim=2), strict=True):
            parts.append(part.unflatten(2, across).unflatten(1, down).transpose(2, 3).flatten(0, 2))
    return parts


def _joined(parts: Sequence[Tensor], size: torch.Size, side: int) -> Tensor:
    """The windows of `_cut`, in the same order, to maps of that size."""
    following, (rows, columns) = iter(parts), (_spans(length, side) for length in size[1:3])
    bands = []
    for down, high in rows:
        windows = [next(following).view(size[0], down, across, high, wide, size[3]) for across, wide in columns]
        bands.append(torch.cat([part.transpose(2, 3).flatten(3, 4).flatten(1, 2) for part in windows], dim=2))
    return torch.cat(bands, dim=1)


class TinyViTBlock(nn.Module):
    """x + attention(x) in windows, a depthwise convolution of the map, then x + MLP(x); each half normalises its input. The first block of
    a stage begins with the convolutions that make its map."""

    def __init__(self, shape: BlockShape, *, fused: bool) -> None:
        super().__init__()
        assert shape.local is not None
        self.downsample = ThreeConvolutions(shape.downsampling) if shape.downsampling else None
        self.attn = WindowAttention(shape, fused=fused)
        self.local_conv = NormedConv(shape.local)
        fc1, fc2 = nn.Linear(shape.dim, shape.mlp_dim), nn.Linear(shape.mlp_dim, shape.dim)
        self.mlp = nn.Sequential(OrderedDict(norm=nn.LayerNorm(shape.dim), fc1=fc1, act=nn.GELU(), fc2=fc2))
        self.window_size = shape.window

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C), from the stage before where the block is the first of its own, to (B, h, w, C)."""
        return self.mlp_half(self.attention_half(x))

    def attention_half(self, x: Tensor) -> Tensor:
        """`attend` on the stage's own map."""
        return self.attend(self.enter(x))

    def mlp_half(self, x: Tensor) -> Tensor:
        """The convolution, then `process`."""
        return self.process(self.filter(x))

    def enter(self, x: Tensor) -> Tensor:
        """The map of the block's own stage."""
        return x if self.downsample is None else _on_maps(self.downsample, x)

    def attend(self, x: Tensor) -> Tensor:
        """x + attention(x)."""
        if isinstance(self.attn, WindowAttention) and self.attn.skips_padding():
            return x + self.attn.on_map(x)
        windows, padded = window_partition(x, self.window_size)
        return x + window_unpartition(self.attn(windows), self.window_size, padded, x.shape[1:3])

    def filter(self, x: Tensor) -> Tensor:
        """The depthwise convolution."""
        return _on_maps(self.local_conv, x)

    def process(self, x: Tensor) -> Tensor:
        """x + MLP(x)."""
        return x + self.mlp(x)


def _on_maps(layer: nn.Module, tokens: Tensor) -> Tensor:
    """Apply a layer for maps (B, C, h, w) to tokens (B, h, w, C)."""
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
        first, second, *rest = shape.stem
        stem = nn.Sequential(NormedConv(first), nn.GELU(), NormedConv(second))
        *blocks, last = (rest[start : start + 3] for start in range(0, len(rest), 3))
        residuals = nn.Sequential(*(ThreeConvolutions(block, residual=True) for block in blocks))
        self.patch_embed = nn.Sequential(OrderedDict(seq=stem))
        self.first = nn.Sequential(OrderedDict(blocks=residuals, downsample=ThreeConvolutions(last)))
        self.blocks = nn.ModuleList(TinyViTBlock(block, fused=fused) for block in shape.blocks)
        self.neck = sam_neck(shape.dim, shape.neck_dim)

    def embed(self, images: Tensor) -> Tensor:
        """Stem and inverted residuals to the map of the first block with attention, (B, h, w, C); writes the grid."""
        self._write_grid(images)
        channels_last = images.contiguous(memory_format=torch.channels_last)
        return self.first(self.patch_embed(channels_last)).permute(0, 2, 3, 1)

    def published(self, name: str) -> str:
        """The name of a tensor in MobileSAM: ``first`` is layer 0; the others hold blocks, and the convolutions to the next layer."""
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

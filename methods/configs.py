"""What a user may set in each method, its default with where it comes from, and what it costs in trainable parameters.

Free of torch: planning a thousand runs reads this module and builds no model. ``encoder_parameters`` is the closed form that the contract
tests hold against the attached model.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.placement import BackboneShape, parse_blocks, parse_sites


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of all configurations.

    Args:
        lr: learning rate of the weights, None for the protocol's.
    """

    lr: float | None = None

    def encoder_parameters(self, shape: BackboneShape) -> int:
        """Trainable parameters in the encoder, mask decoder not counted."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PlacedConfig(MethodConfig):
    """A method that acts on chosen blocks. See `methods.placement` for the grammar."""

    blocks: str = "all"

    def block_count(self, shape: BackboneShape) -> int:
        return len(parse_blocks(self.blocks, depth=shape.depth, global_blocks=shape.global_blocks))


@dataclass(frozen=True, kw_only=True)
class DecoderOnlyConfig(MethodConfig):
    """Encoder frozen; only mask decoder and head train."""

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(PlacedConfig):
    """LoRA (2106.09685) as the SAM papers use it.

    Args:
        sites: which linears (default: the fused qkv, one adapter a block, as Conv-LoRA released).
        rank: r = 3 (Conv-LoRA, NAS-LoRA).
        alpha: scale is alpha / rank; 32 as released by Conv-LoRA.
    """

    sites: str = "qkv"
    rank: int = 3
    alpha: float = 32.0

    def encoder_parameters(self, shape: BackboneShape) -> int:
        ends = {
            "qkv": [(shape.dim, 3 * shape.dim)],
            "proj": [(shape.dim, shape.dim)],
            "mlp": [(shape.dim, shape.mlp_dim), (shape.mlp_dim, shape.dim)],
        }
        pairs = [pair for site in parse_sites(self.sites) for pair in ends.get(site, [(shape.dim, shape.dim)])]
        return self.block_count(shape) * sum(self.rank * (a + b) for a, b in pairs)

"""One finished run's best model against its frozen backbone, on test images: `measure_insides` makes its evidence record.

Hooks on a block reduce what passes through it at once, so that nothing of it outlives the block: attention distances, and
which frequencies its tokens hold (Park and Kim 2022, 2202.06709: the relative log amplitude of their spectrum). Of a merged
model, how far it deviates from the unmerged one, block by block.

Mean attention distance is how far, in pixels, a token's attention reaches on average (Raghu et al. 2021, 2108.08810).

For a query i the distance is Σ_j p_ij · d_ij, d_ij = patch · ‖(row, column)_i − (row, column)_j‖; the mean over queries, then
over images, by head. Tokens without a place (class and register tokens, prompts) count neither as queries nor as keys, and
what is left of each row is renormalised, which is a softmax over the keys that have one. In a windowed block of SAM distances
are those inside a window, and the padding that fills windows at the border (14 rows of tokens do not divide 64) is left out
in the same way, although the model attends to it: no public code settles this.

A block's matrix of probabilities never exists as a whole: `CHUNK` scores are made, weighted and forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling.image_encoder import window_partition
from torch import Tensor, nn

from harness.archive.masks import chosen_images
from harness.archive.measured import BlockEvidence, EvidenceRecord, Inside
from harness.archive.schema import Run
from harness.experiment.building import open_below
from harness.experiment.environment import environment, now
from harness.experiment.exporting import calibration_images
from harness.experiment.trained import Trained
from harness.methods.base import MergeMode
from harness.methods.parts.placement import MethodError
from harness.methods.parts.sites import BlockSite, Encoder, TokenLayout, block_sites
from harness.models.attention import RelativeAttention
from harness.models.build import build_segmenter
from harness.models.catalog import backbone
from harness.models.rotary import RotaryAttention
from harness.protocols.load import from_rules
from harness.statistics.cka import FEWEST, upper
from harness.system.errors import UsageError
from harness.training.batches import draw_number
from harness.training.feeding import normalise

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


FLOOR = 1e-6
"""Added to amplitudes before the logarithm, as in the authors' code."""


@torch.no_grad()
def half_diagonal(maps: Tensor) -> Tensor:
    """Log amplitude from frequency 0 towards (π, π), minus its first value, mean over images and channels.

    log(|fft2| + 1e-6) of every channel, moved so that frequency 0 is in the middle, averaged; the diagonal from the middle to
    the corner. Entry k is the frequency 2πk / side, k < side / 2. A shifted delta gives zeros, white noise ln(2) / 2 behind the
    first entry (frequency 0 is real, all others complex).

    Args:
        maps: (B, C, side, side), SAM's maps with its windows put together, timm's without the tokens in front.

    Raises:
        ValueError: the maps are not square.
    """
    if maps.shape[-1] != maps.shape[-2]:
        raise ValueError(f"a map of {maps.shape[-2]} × {maps.shape[-1]} tokens has no diagonal")
    side = maps.shape[-1]
    amplitude = torch.stack([torch.fft.fft2(image.float()).abs().add(FLOOR).log().mean(dim=0) for image in maps]).mean(
        dim=0
    )
    diagonal = torch.fft.fftshift(amplitude).diagonal()[side // 2 :]
    return diagonal - diagonal[0]


SITES = ("qkv", "proj", "mlp_in", "mlp_out")


@dataclass(kw_only=True)
class Seen:
    """What one block did, one entry a minibatch.

    Args:
        distances: (B, heads).
        after_attention, after_mlp: half-diagonals.
        grams: see `harness.archive.measured.Inside`.
        squares: site -> summed squares of f(x) − f₀(x) and of f₀(x).
    """

    distances: list[Tensor] = field(default_factory=list)
    after_attention: list[Tensor] = field(default_factory=list)
    after_mlp: list[Tensor] = field(default_factory=list)
    grams: list[list[float]] = field(default_factory=list)
    squares: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def inside(self) -> Inside:
        return Inside(
            distance_px=_plain(torch.cat(self.distances).mean(dim=0)),
            after_attention=_plain(torch.stack(self.after_attention).mean(dim=0)),
            after_mlp=_plain(torch.stack(self.after_mlp).mean(dim=0)),
            grams=self.grams,
        )

    @property
    def update(self) -> dict[str, float]:
        return {site: rounded((moved / base) ** 0.5) for site, (moved, base) in self.squares.items() if base}

    def add(self, site: str, output: Tensor, frozen: Tensor, *, less: Tensor | float = 0.0) -> None:
        """Compare an output with the frozen one's; ``less`` is taken off the latter, such as a block's input."""
        moved, base = self.squares.get(site, (0.0, 0.0))
        self.squares[site] = (moved + _square(output - frozen), base + _square(frozen - less))


def _square(tensor: Tensor) -> float:
    return float(tensor.float().square().sum(dtype=torch.float64))


def rounded(value: float) -> float:
    """Six significant digits: records of equal models compare, whatever the last bits of a machine."""
    return float(f"{value:.6g}")


def _plain(values: Tensor) -> list[float]:
    return [rounded(value) for value in values.double().tolist()]


@contextmanager
def watched(encoder: Any, *, against: Any = None) -> Iterator[list[Seen]]:
    """What the blocks of ``encoder`` do with whatever runs through it inside the context, in order of depth.

    Args:
        encoder: see `harness.methods.parts.sites.Encoder`; a method may have wrapped its blocks or their parts.
        against: the frozen encoder that updates are measured against, None to measure none.
    """
    places = block_sites(encoder, "all")
    references = block_sites(against, "all") if against is not None else [None] * len(places)
    seen = [Seen() for _ in places]
    with ExitStack() as hooks:
        for place, reference, block_seen in zip(places, references, seen, strict=True):
            for handle in _hooks(encoder, place, reference, block_seen):
                hooks.callback(handle.remove)
        yield seen


def _hooks(encoder: Encoder, place: BlockSite, reference: BlockSite | None, seen: Seen) -> Iterator[Any]:
    layout, block = place.layout, place.block
    inner = next(module for module in block.modules() if hasattr(module, "norm2"))
    attn = next(module for module in inner.modules() if _is_attention(module))
    shape = encoder.shape

    def of_attention(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        grid = (encoder.grid.height, encoder.grid.width)
        distances = attention_distance(module, args[0], grid=grid, window=layout.window, patch=shape.patch)
        seen.distances.append(distances.cpu())

    def before_mlp(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.after_attention.append(half_diagonal(_maps(args[0], layout)).cpu())

    def of_block(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        maps = _maps(output, layout)
        seen.after_mlp.append(half_diagonal(maps).cpu())
        seen.grams.append(upper(gram(maps).cpu().numpy()))
        if reference is not None:
            seen.add("block", output, reference.block(args[0]), less=args[0])

    yield attn.register_forward_hook(of_attention)
    yield inner.get_submodule("norm2").register_forward_pre_hook(before_mlp)
    yield block.register_forward_hook(of_block)
    if reference is None:
        return
    core = replace(place, block=inner)
    for site in SITES:
        try:
            yield core.get(site).register_forward_hook(_of_site(site, reference.get(site), layout, seen))
        except MethodError:  # a method put something around it; its update is seen in the block's
            continue


def _of_site(site: str, frozen: nn.Module, layout: TokenLayout, seen: Seen) -> Callable[..., None]:
    def compare(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        base = frozen(args[0])
        if layout.window and site in ("qkv", "proj"):  # padding is nothing of an image
            if len(output) % len(valid := window_validity((layout.grid.height, layout.grid.width), layout.window)):
                return  # prompts, which go through qkv by themselves
            valid = valid.repeat(len(output) // len(valid), 1).to(output.device)
            output, base = output.flatten(1, 2)[valid], base.flatten(1, 2)[valid]
        parts = (
            zip("qkv", output.chunk(3, -1), base.chunk(3, -1), strict=True) if site == "qkv" else [(site, output, base)]
        )
        for name, trained, plain in parts:
            seen.add(name, trained, plain)

    return compare


def _is_attention(module: nn.Module) -> bool:
    return isinstance(module, RelativeAttention | RotaryAttention) or (
        hasattr(module, "qkv") and hasattr(module, "q_norm")
    )


def _maps(tokens: Tensor, layout: TokenLayout) -> Tensor:
    """(B, h, w, C) or (B, P + N, C) as (B, C, h, w), tokens without a place left out."""
    if tokens.ndim == 4:
        return tokens.permute(0, 3, 1, 2)
    height, width = layout.grid.height, layout.grid.width
    return tokens[:, -height * width :].transpose(1, 2).unflatten(-1, (height, width))


def gram(maps: Tensor) -> Tensor:
    """XXᵀ in float64, (B, B), of features (B, …) less their mean over the minibatch.

    One pair of images after the other: a ViT-H's features of eight images in float64 would be another 340 MB.
    """
    centred = (maps - maps.mean(dim=0)).flatten(1)
    products = torch.zeros(len(maps), len(maps), dtype=torch.float64, device=maps.device)
    for row, first in enumerate(centred):
        for column, second in enumerate(centred[: row + 1]):
            products[row, column] = products[column, row] = (first * second).sum(dtype=torch.float64)
    return products


@torch.no_grad()
def block_deviations(encoder: Any, merged: Any, batches: Sequence[Tensor], *, device: torch.device) -> list[float]:
    """‖h' − h‖ / ‖h‖ of every block's output, h the unmerged model's and h' the merged one's on the same images.

    Differences of earlier blocks are in it, as they are in the prediction.

    Args:
        encoder, merged: see `harness.methods.parts.sites.Encoder`.
        batches: images (B, 3, S, S), normalised; one is kept at a time.
    """
    squares = [[0.0, 0.0] for _ in encoder.blocks]
    for batch in batches:
        for image in batch.split(1):  # the outputs of all blocks are kept: 0.7 GB of a ViT-H's for one image
            kept = _outputs(encoder, image.to(device))
            for pair, plain, folded in zip(squares, kept, _outputs(merged, image.to(device)), strict=True):
                pair[0] += float((folded - plain).double().square().sum())
                pair[1] += float(plain.double().square().sum())
    return [math.sqrt(moved / norm) for moved, norm in squares]


def _outputs(encoder: Any, images: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda module, args, output: outputs.append(output)) for block in encoder.blocks
    ]
    try:
        encoder.run_blocks(encoder.embed(images))
    finally:
        for handle in handles:
            handle.remove()
    return outputs


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What to measure.

    Args:
        trained: the run and its best state.
        checkpoint: the pretrained weights that it started from, None for random ones.
        data: folder that holds the benchmark.
        images: test images at most, chosen by a hash of their names, so that every run of a benchmark meets the same.
        batch: images a minibatch of CKA.
        merges: modes whose deviation is measured, None for those that the run was merged by.
    """

    trained: Trained
    checkpoint: Path | None
    data: Path
    images: int
    batch: int
    merges: Sequence[MergeMode] | None = None


def measure_insides(asked: Measure, *, device: torch.device, tell: Callable[[str], None]) -> EvidenceRecord:
    """Run the images through both encoders in float32, a block's evidence reduced while the block runs.

    Raises:
        UsageError: fewer than four test images, the wrong checkpoint, or an encoder whose attention cannot be looked into.
        DatasetError: the data are not the run's.
    """
    run, trained = asked.trained.run, asked.trained
    if len({block.dim for block in backbone(run.backbone).shape.blocks}) > 1:
        raise UsageError(
            f"{run.backbone} is hierarchical, and evidence reads the attention of plain ViTs; give a run on one of SAM's "
            "vit_b, vit_l, vit_h or of timm"
        )
    tell("loading the model")
    segmenter, method = trained.segmenter(asked.checkpoint)
    frozen = frozen_encoder(run, asked.checkpoint).to(device)
    encoder: Any = segmenter.to(device).encoder
    tell("reading images")
    names, batches = test_images(run, asked.data, images=asked.images, batch=asked.batch)
    tell("measuring the frozen backbone")
    with watched(frozen) as before:
        pass_through(frozen, batches, device=device)
    tell("measuring the trained model")
    with watched(encoder, against=frozen) as after:
        pass_through(encoder, batches, device=device)
    shape, grid = encoder.shape, (encoder.grid.height, encoder.grid.width)
    modes = from_rules(run.rules).merge if asked.merges is None else asked.merges
    merged: dict[str, list[float]] = {}
    for mode in (mode for mode in modes if mode in method.merge_modes and not run.rules.get("quantise")):
        tell(f"merging ({mode})")
        folded, merging = trained.segmenter(asked.checkpoint)
        calibration, _ = calibration_images(run, asked.data) if mode == "calibrated" else ([], None)
        folded.to(device)
        merging.merge(mode, calibration=[batch.to(device) for batch in calibration])
        deviations = block_deviations(encoder, folded.encoder, batches, device=device)
        merged[mode] = [rounded(value) for value in deviations]
    blocks = [
        BlockEvidence(
            window=block.window,
            uniform_px=rounded(uniform_distance(grid, window=block.window, patch=shape.patch)),
            trained=trained_block.inside,
            frozen=frozen_block.inside,
            update=trained_block.update,
        )
        for block, trained_block, frozen_block in zip(shape.blocks, after, before, strict=True)
    ]
    return EvidenceRecord(
        key=run.key,
        state=trained.digest,
        images=names,
        batch=len(batches[0]),
        grid=grid,
        patch=shape.patch,
        blocks=blocks,
        merge=merged,
        environment=environment(device),
        finished=now(),
    )


def frozen_encoder(run: Run, checkpoint: Path | None) -> Any:
    """The run's backbone as its training met it, without the method, in evaluation mode."""
    rules = from_rules(run.rules)
    segmenter = build_segmenter(
        run.backbone,
        task="binary",
        image_size=rules.image_size,
        checkpoint=checkpoint,
        head_seed=draw_number("head", run.seed) % 2**31,
        fused_attention=rules.fused_attention,
    )
    if rules.quantise:
        from harness.models.quantised import quantise

        quantise(segmenter.requires_grad_(False), rules.quantise)
    return segmenter.encoder.eval()


def test_images(run: Run, data: Path, *, images: int, batch: int) -> tuple[list[tuple[str, str]], list[Tensor]]:
    """Names (split, stem) and minibatches (batch, 3, S, S), normalised; what does not fill a minibatch is left out. Raises
    UsageError: too few for one."""
    opened = open_below(run, data)
    places = opened.places
    names = chosen_images(places, images)
    batch = min(batch, len(names))
    if batch < FEWEST:
        raise UsageError(f"{len(names)} test images; evidence needs {FEWEST} at least (--images, --batch)")
    names = names[: len(names) // batch * batch]
    inputs = torch.stack([torch.from_numpy(opened.tests[split].image(places[split][stem])) for split, stem in names])
    return names, list(normalise(inputs, from_rules(run.rules).pixels).split(batch))


@torch.no_grad()
def pass_through(encoder: Any, batches: Sequence[Tensor], *, device: torch.device) -> None:
    """Every minibatch through the blocks; neck and decoder have no part in it."""
    for batch in batches:
        encoder.run_blocks(encoder.embed(batch.to(device)))

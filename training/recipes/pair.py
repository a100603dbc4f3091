"""Pair Customization: train content and style jointly on before/after pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...lora_ops import OrthogonalRows, Parametrization
from ...lora_ops.parametrizations.orthogonal_pair import RELEASED_BASIS_SEED
from ..denoiser import Example
from ..gates import Gate
from ..randomness import coin, shuffled_round
from .rows import Row

STYLE = "style"
FROZEN_UP = Gate(frozen=frozenset({"up"}))


def content_name(pair: int) -> str:
    """Return the adapter name of one pair's content."""
    return f"content {pair}"


@dataclass(frozen=True)
class Pair:
    """Learn one style shared by all pairs and one content per pair.

    The content row denoises the picture before with its content adapter. The style row denoises
    the picture after with content and style, the content's parameters detached: gradient flows
    through the content-modified activations but never into them. Both rows share noise and noise
    level. Contents share the content rows of the basis and differ in ``up``.

    Args:
        pairs: Pairs of pictures before and after, with equal latent shapes within a pair.
        style_start_step: First step, from 0, that has the style row.
        samples: Number of noise levels per step; each has one content and one style row.
        basis_seed: Seed of the orthonormal bases.
        mirrored: The same pairs, mirrored; each sample then uses one of both at random.

    Raises:
        ValueError: A pair's latents differ in shape, or a mirrored pair is missing.

    Reference: Jones et al. 2024, arXiv:2405.01536, section 3.2; several pairs follow the authors'
    advice (one style adapter, one content adapter per pair).
    """

    pairs: Sequence[tuple[Example, Example]]
    style_start_step: int
    samples: int = 1
    basis_seed: int = RELEASED_BASIS_SEED
    mirrored: Sequence[tuple[Example, Example]] = ()

    def __post_init__(self) -> None:
        if self.mirrored and len(self.mirrored) != len(self.pairs):
            raise ValueError(
                "every pair must have its mirrored one or none, "
                f"got {len(self.mirrored)} for {len(self.pairs)} pairs"
            )
        for number, (before, after) in enumerate((*self.pairs, *self.mirrored), start=1):
            if before.latent.shape != after.latent.shape:
                raise ValueError(
                    "before and after of a pair must have latents of equal shape, got "
                    f"{tuple(before.latent.shape)} and {tuple(after.latent.shape)} in pair {number}"
                )

    def adapters(self) -> Mapping[str, Parametrization]:
        """Return ``style`` and one content adapter per pair, which share one basis."""
        content = OrthogonalRows("content", self.basis_seed)
        contents = {content_name(pair): content for pair in range(len(self.pairs))}
        return {STYLE: replace(content, role="style"), **contents}

    def lr_scales(self) -> Mapping[str, Mapping[str, float]]:
        """Return an empty mapping, because all parts have the same learning rate."""
        return {}

    def rows(self, step: int, seed: int) -> Sequence[Row]:
        """Return the content rows of one pair and, from ``style_start_step`` on, its style rows."""
        pair = shuffled_round(seed, len(self.pairs), step)
        views = [
            self.mirrored[pair] if self.mirrored and coin(seed, step, sample) else self.pairs[pair]
            for sample in range(self.samples)
        ]
        content = content_name(pair)
        weight = 1 / self.samples
        rows = [
            Row("content", before, {content: Gate()}, weight, sample)
            for sample, (before, _) in enumerate(views)
        ]
        if step >= self.style_start_step:
            rows += [
                Row("style", after, {content: FROZEN_UP, STYLE: Gate()}, weight, sample)
                for sample, (_, after) in enumerate(views)
            ]
        return rows

"""Learnt words: embedding rows that are trained beside the adapters, and how far they may go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..lora_ops.attention_regulariser import attention_penalty
from ..lora_ops.vocabulary_density import VocabularyDensity
from .adapters import parameter_group
from .denoiser import Denoiser, ShowsAttention


@dataclass(frozen=True)
class Words:
    """Which embeddings a recipe learns, and how.

    Args:
        starts: First values by name, ``(..., dim)`` each; the name is the text encoder's.
        learning_rates: Learning rates by name; the run's where none is named.
        norms: Mean norm of a row of each vocabulary, by name.
        embedding_stop: Mean norm of the learnt rows, in their vocabulary's, at which all of them stay as
            they are for the rest of the run; 0 never stops them.
        attention_weight: Weight of what keeps the words' attention within the pictures' masks; 0 is off.
        fill_mask: Whether the last word must also fill the mask rather than only stay within it.
        density_weight: Weight of what draws the rows to their vocabulary; 0 is off.
        vocabularies: Densities by name, where there is such a weight.

    Raises:
        ValueError: A stop is given without the norms that it is measured in.
    """

    starts: Mapping[str, Tensor] = field(default_factory=dict)
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    norms: Mapping[str, float] = field(default_factory=dict)
    embedding_stop: float = 0.0
    attention_weight: float = 0.0
    fill_mask: bool = False
    density_weight: float = 0.0
    vocabularies: Mapping[str, VocabularyDensity] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bare = sorted(name for name in self.starts if self.norms.get(name, 0.0) <= 0)
        if self.embedding_stop and bare:
            raise ValueError(
                "stopping embeddings at a norm needs the norm of a row of every vocabulary, got "
                f"none for {', '.join(bare)}; give it or set the stop to 0"
            )


class LearntWords:
    """The embeddings of one run while they are learnt.

    The vocabulary's own rows are no parameters, so only these ever change.

    Args:
        words: Where they start; none without it.
        device: Of the parameters.
    """

    def __init__(self, words: Words | None = None, device: torch.device | None = None):
        self._words = words or Words()
        self.parameters: dict[str, nn.Parameter] = {
            name: nn.Parameter(start.detach().to(device or "cpu", torch.float32, copy=True))
            for name, start in self._words.starts.items()
        }

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the rows as an optimiser's groups, where the run's learning rate is this."""
        rates = self._words.learning_rates
        return [
            parameter_group([rows], rates.get(name, learning_rate))
            for name, rows in self.parameters.items()
        ]

    def said(self, cond: Any) -> Any:
        """Return a caption's conditioning, made of what is learnt where it is a callable."""
        return cond(self.parameters) if callable(cond) else cond

    def settled(self) -> bool:
        """Return whether the rows have grown so far that they stay as they are.

        It follows from the rows alone, so a run that goes on decides as one that never stopped.
        """
        if not self._words.embedding_stop or not self.parameters:
            return False
        shares = [
            rows.detach().norm(dim=-1).flatten() / self._words.norms[name]
            for name, rows in self.parameters.items()
        ]
        return bool(torch.cat(shares).mean() >= self._words.embedding_stop)

    def settle(self) -> None:
        """Drop the rows' gradients once they are settled: neither steps nor decay reach them."""
        if self.settled():
            for rows in self.parameters.values():
                rows.grad = None

    def penalties(self, denoiser: Denoiser, masks: Sequence[Tensor | None]) -> Tensor | None:
        """Return what is asked of the words besides, ``(row,)`` or a scalar; ``None`` if nothing is.

        That is their attention outside the masks and, alike in every row, their distance from the
        vocabulary.

        Args:
            denoiser: After the forward of these rows.
            masks: Of the rows, ``(1, height, width)`` each; a row without one costs nothing.
        """
        outside, away = self._attention(denoiser, masks), self._distance()
        if outside is None or away is None:
            return away if outside is None else outside
        return outside + away.to(outside)

    def _distance(self) -> Tensor | None:
        if not self._words.density_weight or not self.parameters:
            return None
        vocabularies = self._words.vocabularies
        found = [vocabularies[name].penalty(rows) for name, rows in self.parameters.items()]
        return self._words.density_weight * torch.stack(found).sum()

    def _attention(self, denoiser: Denoiser, masks: Sequence[Tensor | None]) -> Tensor | None:
        if not self._words.attention_weight or all(mask is None for mask in masks):
            return None
        if not isinstance(denoiser, ShowsAttention) or not (maps := denoiser.attention()):
            return None
        size = next(mask.shape for mask in masks if mask is not None)
        everywhere = torch.ones(size)
        stacked = torch.stack([everywhere if mask is None else mask for mask in masks])
        penalty = attention_penalty(maps, stacked.to(maps[0]), self._words.fill_mask)
        return self._words.attention_weight * penalty

    def result(self) -> dict[str, Tensor]:
        """Return the embeddings as they are, fp32 on the CPU."""
        return {name: rows.detach().float().cpu().clone() for name, rows in self.parameters.items()}

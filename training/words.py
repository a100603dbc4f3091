"""Learnt words: embeddings that are trained together with the adapters, and their penalties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..lora_ops.attention_regulariser import attention_penalty
from ..lora_ops.vocabulary_density import VocabularyDensity
from .adapters import parameter_group
from .denoiser import Denoiser, ExposesAttention


@dataclass(frozen=True)
class Words:
    """The embeddings that a recipe trains, and their training settings.

    Args:
        starts: Initial values by name of the text encoder, ``(..., dim)`` each.
        learning_rates: Learning rates by name; the run's for names without an entry.
        norms: Mean norm of the embeddings in each vocabulary, by name.
        embedding_stop: Mean norm of the learnt embeddings, relative to their vocabulary's, at
            which their training stops for the rest of the run; 0 is off.
        attention_weight: Weight of the penalty on the words' attention outside the masks; 0 is off.
        fill_mask: Whether the last word's attention must also fill the mask.
        density_weight: Weight of the penalty that pulls embeddings to their vocabulary; 0 is off.
        vocabularies: Densities of the vocabularies by name, if there is a density weight.

    Raises:
        ValueError: A stop is given without norms, to which it is relative.
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
    """The embeddings of one run during training.

    The vocabulary's embeddings are not parameters, so only the learnt ones change.

    Args:
        words: Initial embeddings and settings; None for no words.
        device: Device of the parameters.
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

    def conditioning(self, cond: Any) -> Any:
        """Return a caption's conditioning; a callable is evaluated with the learnt embeddings."""
        return cond(self.parameters) if callable(cond) else cond

    def training_stopped(self) -> bool:
        """Return whether the embeddings have reached the norm at which their training stops.

        It depends only on the embeddings, so a resumed run decides like an uninterrupted one.
        """
        if not self._words.embedding_stop or not self.parameters:
            return False
        shares = [
            rows.detach().norm(dim=-1).flatten() / self._words.norms[name]
            for name, rows in self.parameters.items()
        ]
        return bool(torch.cat(shares).mean() >= self._words.embedding_stop)

    def drop_stopped_gradients(self) -> None:
        """Drop the embeddings' gradients once their training has stopped; decay stops too."""
        if self.training_stopped():
            for rows in self.parameters.values():
                rows.grad = None

    def penalties(self, denoiser: Denoiser, masks: Sequence[Tensor | None]) -> Tensor | None:
        """Return the extra losses on the embeddings, ``(row,)`` or a scalar; None without any.

        They are the words' attention outside the masks and, equal in all rows, their distance from
        the vocabulary.

        Args:
            denoiser: Base model after the forward pass of these rows.
            masks: Masks of the rows, ``(1, height, width)`` each; None adds no loss to a row.
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
        if not isinstance(denoiser, ExposesAttention) or not (maps := denoiser.attention()):
            return None
        size = next(mask.shape for mask in masks if mask is not None)
        everywhere = torch.ones(size)
        stacked = torch.stack([everywhere if mask is None else mask for mask in masks])
        penalty = attention_penalty(maps, stacked.to(maps[0]), self._words.fill_mask)
        return self._words.attention_weight * penalty

    def result(self) -> dict[str, Tensor]:
        """Return the present embeddings, fp32 on the CPU."""
        return {name: rows.detach().float().cpu().clone() for name, rows in self.parameters.items()}

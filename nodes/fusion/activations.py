"""Collect statistics of the layers' inputs with forward pre-hooks, while a concept is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...lora_ops import GramStream, LowRank, ProjectedStream, RowSample
from ...training.randomness import generator_for
from ...training.runs.fusion_store import MemberStatistics
from .layers import FusedLayer

SAMPLED_ROWS = 128  # input rows per site and concept that are kept for the report


@dataclass
class InputWatch:
    """Hooks that add the inputs of modules to the statistics of a concept and to the sum of all.

    Args:
        sites: Modules whose inputs are collected, by site.
        layers: Layers that read the inputs at these sites.
        factors: The concept's factors by layer name.
        sums: Gram matrices by site, to which the concept's inputs are added.
        weight: Weight of one input row in the sums; with ``per_call``, of all rows of a call.
        calls: Number of times that each module will be called.
        per_call: Whether every call has the same total weight, regardless of its number of rows.
        label: The concept's name in messages.
        prompt: The present prompt, for messages.
        token_masks: ``(chunk, token)`` by text encoder: the tokens whose rows count; None counts
            all rows.
        row_counts: Number of rows that were collected so far, by site.
    """

    sites: Mapping[str, nn.Module]
    layers: Sequence[FusedLayer]
    factors: Mapping[str, LowRank]
    sums: Mapping[str, GramStream]
    weight: float
    calls: int
    per_call: bool
    label: str
    prompt: str = ""
    token_masks: Mapping[str, Tensor] | None = None
    row_counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Create empty statistics for the sites that the concept changes."""
        self._projected: dict[str, ProjectedStream] = {}
        self._samples: dict[str, RowSample] = {}
        for site in self.sites:
            own = [x for x in self.layers if x.site == site and x.name in self.factors]
            if own:
                downs = {x.name: self.factors[x.name].down for x in own}
                self._projected[site] = ProjectedStream(downs, width=own[0].width)
                generator = generator_for(0, "fusion sample", self.label, site)
                self._samples[site] = RowSample(SAMPLED_ROWS, self.calls, generator)
            self.row_counts[site] = 0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the hooks to the modules inside the block, and remove them at its end."""
        with ExitStack() as stack:
            for site, module in self.sites.items():
                hook = module.register_forward_pre_hook(self._hook(site))
                stack.callback(hook.remove)
            yield

    def member_statistics(self, count: int) -> MemberStatistics:
        """Return the concept's statistics, normalised to one input row.

        Args:
            count: Number by which the sums over the rows are divided.

        Raises:
            ValueError: A layer that the concept changes was never called.
        """
        for site in self._projected:
            if not self.row_counts[site]:
                raise ValueError(
                    f"every layer that {self.label} changes must take part when it is read and "
                    f"drawn, got no call of {site!r}; leave that layer out of the LoRA"
                )
        projected = {}
        for stream in self._projected.values():
            projected |= {name: part / count for name, part in stream.total().items()}
        samples = {site: sample.total() for site, sample in self._samples.items()}
        return MemberStatistics(projected, {s: rows for s, rows in samples.items() if len(rows)})

    def _hook(self, site: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def collect(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = self.rows_of(site, module, args[0])
            where = f"layer {site!r} at the prompt {self.prompt!r} of {self.label}"
            row_weight = 1.0 / max(1, len(rows)) if self.per_call else 1.0
            self.sums[site].add(rows, label=where, weight=self.weight * row_weight)
            if site in self._projected:
                self._projected[site].add(rows, label=where, weight=row_weight)
                self._samples[site].add(rows)
            self.row_counts[site] += len(rows)

        return collect

    def rows_of(self, site: str, module: nn.Module, x: Tensor) -> Tensor:
        """Return the input rows that count, ``(row, in)``; for a convolution, its patches."""
        if isinstance(module, nn.Conv2d):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x = F.pad(x.float(), _padding(module), mode)
            patches = F.unfold(
                x, module.kernel_size, dilation=module.dilation, stride=module.stride
            )  # (batch, in * kh * kw, position)
            return patches.mT.flatten(0, 1)
        counted = None if self.token_masks is None else self.token_masks.get(site.partition(".")[0])
        if counted is None or x.ndim != 3:
            return x.flatten(0, -2)
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        mask[: len(counted), : counted.shape[1]] = counted
        return x[mask.to(x.device)]


def _padding(module: nn.Conv2d) -> list[int]:
    """Return a convolution's padding in the form of ``F.pad``, from the last axis to the first."""
    # PyTorch resolves "same" and "valid" to numbers nowhere else.
    return module._reversed_padding_repeated_twice  # pyright: ignore[reportPrivateUsage]

"""Statistics of the layers' inputs while a concept is read and drawn: hooks on inputs alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...lora_ops import GramStream, LowRank, ProjectedStream, RowSample
from ...training.randomness import generator_for
from ...training.runs.fusion_store import MemberStatistics
from .layers import FusedLayer

SAMPLED_ROWS = 128
"""Input rows of a site that are kept for the report, for each concept."""


@dataclass
class InputWatch:
    """Feeds the inputs of modules into one concept's statistics, and into the sum of all.

    Args:
        sites: The modules to watch, by site.
        layers: Those that read the sites.
        factors: The concept's, by layer name.
        sums: Gram matrices that the concept's inputs are added to, by site.
        weight: Of one input row in the sums; of the rows of one call together if ``per_call``.
        calls: How often each module will be called.
        per_call: Whether every call counts alike, however many rows it has.
        where: Names the concept in messages.
    """

    sites: Mapping[str, nn.Module]
    layers: Sequence[FusedLayer]
    factors: Mapping[str, LowRank]
    sums: Mapping[str, GramStream]
    weight: float
    calls: int
    per_call: bool
    where: str
    prompt: str = ""
    keep: Mapping[str, Tensor] | None = None
    counted: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin the concept's own statistics."""
        self._projected: dict[str, ProjectedStream] = {}
        self._samples: dict[str, RowSample] = {}
        for site in self.sites:
            own = [x for x in self.layers if x.site == site and x.name in self.factors]
            if own:
                downs = {x.name: self.factors[x.name].down for x in own}
                self._projected[site] = ProjectedStream(downs, width=own[0].width)
                generator = generator_for(0, "fusion sample", self.where, site)
                self._samples[site] = RowSample(SAMPLED_ROWS, self.calls, generator)
            self.counted[site] = 0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watch inside the block; the modules are left as they were."""
        with ExitStack() as stack:
            for site, module in self.sites.items():
                hook = module.register_forward_pre_hook(self._hook(site))
                stack.callback(hook.remove)
            yield

    def own(self, count: int) -> MemberStatistics:
        """Return the concept's own statistics, those of its mean input row.

        Args:
            count: What the sums of the rows are divided by.

        Raises:
            ValueError: A layer that the concept changes was never called.
        """
        for site in self._projected:
            if not self.counted[site]:
                raise ValueError(
                    f"every layer that {self.where} changes must take part when it is read and "
                    f"drawn, got no call of {site!r}; leave that layer out of the LoRA"
                )
        projected = {}
        for stream in self._projected.values():
            projected |= {name: part / count for name, part in stream.total().items()}
        samples = {site: sample.total() for site, sample in self._samples.items()}
        return MemberStatistics(projected, {s: rows for s, rows in samples.items() if len(rows)})

    def _hook(self, site: str):
        def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = self._rows(site, module, args[0])
            label = f"layer {site!r} at the prompt {self.prompt!r} of {self.where}"
            share = 1.0 / max(1, len(rows)) if self.per_call else 1.0
            self.sums[site].add(rows, label=label, weight=self.weight * share)
            if site in self._projected:
                self._projected[site].add(rows, label=label, weight=share)
                self._samples[site].add(rows)
            self.counted[site] += len(rows)

        return watch

    def _rows(self, site: str, module: nn.Module, x: Tensor) -> Tensor:
        """Return the input rows that count, ``(row, in)``; a convolution's are its patches."""
        if isinstance(module, nn.Conv2d):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x = F.pad(x.float(), module._reversed_padding_repeated_twice, mode)
            patches = F.unfold(
                x, module.kernel_size, dilation=module.dilation, stride=module.stride
            )  # (batch, in * kh * kw, place)
            return patches.mT.flatten(0, 1)
        keep = None if self.keep is None else self.keep.get(site.partition(".")[0])
        if keep is None or x.ndim != 3:
            return x.flatten(0, -2)
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        mask[: len(keep), : keep.shape[1]] = keep
        return x[mask.to(x.device)]

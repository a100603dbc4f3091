"""Collect the statistics of one stage: reuse stored ones and run the other concepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from torch import Tensor, nn

from ...lora_ops import Gram, GramStream, LowRank, span_holds
from ...training.files.concept import Concept
from ...training.runs.fusion_store import FusionStore, LazyGrams, MemberStatistics, StoredSum
from .activations import InputWatch
from .layers import FusedLayer


@dataclass(frozen=True)
class Member:
    """One concept of a fusion.

    Args:
        concept: The concept.
        factors: The concept's changes by layer name; empty for the prior prompts.
        digest: Digest of everything that its statistics depend on.
    """

    concept: Concept
    factors: Mapping[str, LowRank]
    digest: str

    @property
    def weight(self) -> float:
        """Return the concept's weight in the fusion."""
        return self.concept.weight

    @property
    def label(self) -> str:
        """Return the concept's name in messages."""
        return f"<{self.concept.name}>" if self.concept.embeddings else repr(self.concept.name)


@dataclass(frozen=True)
class StageSpec:
    """Specification of the statistics that a stage needs.

    Args:
        layers: Layers of the stage.
        module_at: Function that returns the module at a site, also at sites that only a stored sum
            has.
        spans: Spans by site, to which the inputs of wide sites are projected.
        count_rows: Function that returns a member's number of input rows, if every row has the same
            weight; None if every call has.
        count_calls: Function that returns the number of calls of each module for a member.
        run: Function that runs a member while its inputs are collected.
    """

    layers: Sequence[FusedLayer]
    module_at: Callable[[str], nn.Module]
    spans: Mapping[str, Tensor]
    count_rows: Callable[[Member], int] | None
    count_calls: Callable[[Member], int]
    run: Callable[[Member, InputWatch], None]


@dataclass
class StageStatistics:
    """The statistics from which a stage is solved.

    Args:
        grams: Sum of the members' Gram matrices times their weights, by site.
        by_member: Statistics of each member, by its digest.
        passes: Number of members that were run.
        reused: Number of members whose statistics were found in the store.
        notes: Sentences for the report.
        peak_bytes: Peak size of the statistics in memory.
    """

    grams: dict[str, Gram]
    by_member: dict[str, MemberStatistics]
    passes: int = 0
    reused: int = 0
    notes: list[str] = field(default_factory=list)
    peak_bytes: int = 0


def collect(
    spec: StageSpec,
    members: Sequence[Member],
    store: FusionStore | None,
    *,
    scratch: FusionStore | None,
    keep_grams: bool,
    on_reuse: Callable[[Member], None],
) -> StageStatistics:
    """Return the statistics of all members, which are run one after another.

    The statistics of a finished member are moved to disk and later read layer by layer, so memory
    does not grow with the number of members. They are stored at once, together with the sum so far:
    after an interrupt only the remaining members are run.

    A new concept costs one pass. A concept that was removed, or whose weight has changed, costs
    none if its own Gram matrices were stored. Otherwise a changed weight costs one pass, and after a
    removal the sum is collected again from all members. This also happens if a new concept reads
    other inputs, or widens the span to which the inputs of wide layers were projected.

    Args:
        spec: Statistics that the stage needs.
        members: One member for each concept, and the prior.
        store: Store of the statistics; None to store nothing.
        scratch: Temporary store of the members' statistics, used without a store; None to hold them
            in memory.
        keep_grams: Whether Gram matrices are stored for each member.
        on_reuse: Function that is called with every member that needs no pass.

    Raises:
        ValueError: An input is not finite.
    """
    result = StageStatistics({}, {})
    target = store if store is not None and store.writable else None
    stored = None if store is None else _usable_sum(store, spec, members, result)
    sums = _streams(spec, stored)
    spans = {site: stream.live().span for site, stream in sums.items()}
    included = {} if stored is None else dict(stored.weights)
    present = {member.digest for member in members}
    for digest in [digest for digest in included if digest not in present]:
        _merge(sums, _stored_grams(store, digest, spans), -included.pop(digest))
    held, largest = sum(stream.live().matrix.nbytes for stream in sums.values()), 0
    for member in members:
        change = member.weight - included.get(member.digest, 0.0)
        own = None if store is None else store.member(member.digest)
        grams = None if own is None or change == 0 else _stored_grams(store, member.digest, spans)
        if own is not None and _is_complete(own, spec, member) and (change == 0 or grams):
            _merge(sums, grams, change)
            result.reused += 1
            on_reuse(member)
        else:
            own, own_grams = _run_member(spec, member, sums, change, keep_grams)
            result.passes += 1
            gram_bytes = sum(gram.matrix.nbytes for gram in own_grams.values())
            largest = max(largest, own.held + gram_bytes)
            target = _try_write(
                target, result, lambda s, m=member, own=own: s.keep_member(m.digest, own)
            )
            if own_grams:
                target = _try_write(
                    target,
                    result,
                    lambda s, m=member, grams=own_grams: s.keep_gram(m.digest, grams),
                )
            own = _offloaded(target or scratch, member, own)
        result.by_member[member.digest] = own
        held += own.held
        included[member.digest] = member.weight
        if change != 0:
            weights = dict(included)
            target = _try_write(
                target, result, lambda s, w=weights: s.keep_sum(w, _present_grams(sums))
            )
    result.grams = {layer.site: sums[layer.site].live() for layer in spec.layers}
    result.peak_bytes = held + largest
    return result


def _usable_sum(
    store: FusionStore, spec: StageSpec, members: Sequence[Member], result: StageStatistics
) -> StoredSum | None:
    """Return the stored sum if it has all sites and all removed concepts can be subtracted."""
    stored = store.sum()
    if stored is None:
        return None
    spans = {site: _span(spec, stored, site) for site in stored.grams}
    if not {layer.site for layer in spec.layers} <= set(stored.grams):
        result.notes.append(
            "all concepts are run again in a stage where a new one changes layers that no other did"
        )
        return None
    if not all(span_holds(stored.grams.span(site), span) for site, span in spans.items()):
        result.notes.append(
            "all concepts are run again in a stage where a new one changes layers wider than 4096, "
            "whose inputs are projected to the span of the LoRAs"
        )
        return None
    present = {member.digest for member in members}
    removed = [digest for digest in stored.weights if digest not in present]
    return stored if all(_stored_grams(store, digest, spans) for digest in removed) else None


def _span(spec: StageSpec, stored: StoredSum, site: str) -> Tensor | None:
    """Return the span to which the inputs at a site of a stored sum are now projected."""
    if any(layer.site == site for layer in spec.layers):
        return spec.spans.get(site)
    return stored.grams.span(site)


def _streams(spec: StageSpec, stored: StoredSum | None) -> dict[str, GramStream]:
    """Return the running sums by site: the stored ones, or empty ones."""
    if stored is not None:
        streams = {}
        for site, gram in stored.grams.items():
            span = _span(spec, stored, site)
            streams[site] = GramStream(gram.width, span=span, start=gram.within(span))
        return streams
    return {
        layer.site: GramStream(layer.width, span=spec.spans.get(layer.site))
        for layer in spec.layers
    }


def _run_member(
    spec: StageSpec,
    member: Member,
    sums: Mapping[str, GramStream],
    change: float,
    keep_grams: bool,
) -> tuple[MemberStatistics, dict[str, Gram]]:
    """Run a member and add its inputs to the sums; return its statistics and its Gram matrices."""
    count = max(1, spec.count_calls(member) if spec.count_rows is None else spec.count_rows(member))
    targets, weight = sums, change / count
    if keep_grams:
        targets = {
            site: GramStream(stream.live().width, span=stream.live().span)
            for site, stream in sums.items()
        }
        weight = 1.0 / count
    watch = InputWatch(
        sites={site: spec.module_at(site) for site in sums},
        layers=spec.layers,
        factors=member.factors,
        sums=targets,
        weight=weight,
        calls=spec.count_calls(member),
        per_call=spec.count_rows is None,
        label=member.label,
    )
    spec.run(member, watch)
    if not keep_grams:
        return watch.member_statistics(count), {}
    grams = _present_grams(targets)
    _merge(sums, grams, change)
    return watch.member_statistics(count), grams


def _is_complete(own: MemberStatistics, spec: StageSpec, member: Member) -> bool:
    """Return whether stored statistics of a member cover all layers that it changes."""
    return all(layer.name in own.projected for layer in spec.layers if layer.name in member.factors)


def _stored_grams(
    store: FusionStore | None, digest: str, spans: Mapping[str, Tensor | None]
) -> LazyGrams | None:
    """Return a member's stored Gram matrices if they cover all sites and contain their spans."""
    grams = None if store is None else store.gram(digest)
    if grams is None or not set(spans) <= set(grams):
        return None
    fits = all(span_holds(grams.span(site), span) for site, span in spans.items())
    return grams if fits else None


def _merge(sums: Mapping[str, GramStream], grams: Mapping[str, Gram] | None, weight: float) -> None:
    """Add Gram matrices times a weight to the sums; nothing for a weight of 0."""
    if grams is None or not weight:
        return
    for site in grams:
        if site in sums:
            sums[site].merge(grams[site], weight)


def _present_grams(sums: Mapping[str, GramStream]) -> dict[str, Gram]:
    """Return the sums so far, without a copy, because they may take gigabytes."""
    return {site: stream.live() for site, stream in sums.items()}


def _offloaded(
    store: FusionStore | None, member: Member, own: MemberStatistics
) -> MemberStatistics:
    """Return a member's statistics backed by a store; unchanged if they cannot be stored."""
    if store is None:
        return own
    stored = store.member(member.digest)
    if stored is None:
        with suppress(RuntimeError):  # then they stay in memory, which the report counts
            store.keep_member(member.digest, own)
            stored = store.member(member.digest)
    return stored or own


def _try_write(
    store: FusionStore | None, result: StageStatistics, write: Callable[[FusionStore], None]
) -> FusionStore | None:
    """Write to the store and return it; after a failure, append a note and return None.

    A full disk loses the stored statistics, never the fusion.
    """
    if store is None:
        return None
    try:
        write(store)
    except RuntimeError as error:
        result.notes.append(f"the statistics are not kept: {error}")
        return None
    return store

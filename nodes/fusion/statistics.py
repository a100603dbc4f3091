"""The statistics of one stage: from the store what lies there, from passes over concepts the rest."""

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
        concept: What it is.
        factors: Its changes by layer name; none for prompts that the base is to keep.
        digest: Of all that decides its statistics.
    """

    concept: Concept
    factors: Mapping[str, LowRank]
    digest: str

    @property
    def weight(self) -> float:
        """Return its importance."""
        return self.concept.weight

    @property
    def where(self) -> str:
        """Return what messages call it."""
        return f"<{self.concept.name}>" if self.concept.embeddings else repr(self.concept.name)


@dataclass(frozen=True)
class Survey:
    """What is collected in a stage.

    Args:
        layers: That the stage fuses.
        modules: The watched module by site, also for sites that only a stored sum has.
        spans: For wide sites the rows within whose span the inputs are seen.
        rows: Gives how many input rows a member has, where each of them counts alike; None where
            each call does.
        calls: Gives how often each module is called for a member.
        run: Runs a member while its inputs are watched.
    """

    layers: Sequence[FusedLayer]
    modules: Callable[[str], nn.Module]
    spans: Mapping[str, Tensor]
    rows: Callable[[Member], int] | None
    calls: Callable[[Member], int]
    run: Callable[[Member, InputWatch], None]


@dataclass
class Collected:
    """What the stage is solved from.

    Args:
        grams: Sum of the members' Grams times their weights, by site.
        own: Each member's own statistics, by its digest.
        passes: Members that were run.
        found: Members that were not, since their statistics lay in the store.
        notes: Sentences for the report.
        held: Bytes that they took in memory at most.
    """

    grams: dict[str, Gram]
    own: dict[str, MemberStatistics]
    passes: int = 0
    found: int = 0
    notes: list[str] = field(default_factory=list)
    held: int = 0


def collect(
    survey: Survey,
    members: Sequence[Member],
    store: FusionStore | None,
    *,
    shelf: FusionStore | None,
    keep_grams: bool,
    skipped: Callable[[Member], None],
) -> Collected:
    """Return the statistics of all members, one after another; memory doesn't grow with them.

    Own statistics of members that are done wait on disk, and are read layer by layer later.

    Each member that is done is kept in the store at once, with the sum so far: after an interrupt
    only the others are run. A concept that is new, or has another weight, costs its own pass. One
    that is gone costs none where its Gram was kept; otherwise the sum is collected anew, as it is
    where a new concept reads other inputs, or widens the span within which wide ones were seen.

    Args:
        survey: Of the stage.
        members: One for each concept, and the prior.
        store: Where statistics are kept; None for nowhere.
        shelf: Where members' own statistics wait without a store; None for memory.
        keep_grams: Whether a Gram is kept for each member.
        skipped: Told of members that need no pass.

    Raises:
        ValueError: An input is not finite.
    """
    result = Collected({}, {})
    target = store if store is not None and store.writable else None
    stored = None if store is None else _usable(store, survey, members, result)
    sums = _streams(survey, stored)
    spans = {site: stream.live().span for site, stream in sums.items()}
    included = {} if stored is None else dict(stored.weights)
    wanted = {member.digest: member.weight for member in members}
    for digest in [digest for digest in included if digest not in wanted]:
        _merge(sums, _kept_gram(store, digest, spans), -included.pop(digest))
    held, largest = sum(stream.live().matrix.nbytes for stream in sums.values()), 0
    for member in members:
        change = member.weight - included.get(member.digest, 0.0)
        own = None if store is None else store.member(member.digest)
        grams = None if own is None or change == 0 else _kept_gram(store, member.digest, spans)
        if own is not None and _complete(own, survey, member) and (change == 0 or grams):
            _merge(sums, grams, change)
            result.found += 1
            skipped(member)
        else:
            own, kept = _run(survey, member, sums, change, keep_grams)
            result.passes += 1
            largest = max(largest, own.held + sum(gram.matrix.nbytes for gram in kept.values()))
            target = _keep(target, result, lambda s, m=member, o=own: s.keep_member(m.digest, o))
            if kept:
                target = _keep(target, result, lambda s, m=member, k=kept: s.keep_gram(m.digest, k))
            own = _put_away(target or shelf, member, own)
        result.own[member.digest] = own
        held += own.held
        included[member.digest] = member.weight
        if change != 0:
            now = dict(included)
            target = _keep(target, result, lambda s, now=now: s.keep_sum(now, _live(sums)))
    result.grams = {layer.site: sums[layer.site].live() for layer in survey.layers}
    result.held = held + largest
    return result


def _usable(
    store: FusionStore, survey: Survey, members: Sequence[Member], result: Collected
) -> StoredSum | None:
    """Return the stored sum if it has all sites, and what is no longer wanted can be taken away."""
    stored = store.sum()
    if stored is None:
        return None
    spans = {site: _span(survey, stored, site) for site in stored.grams}
    if not {layer.site for layer in survey.layers} <= set(stored.grams):
        result.notes.append(
            "all concepts are run anew in a stage where a new one changes layers that no other did"
        )
        return None
    if not all(span_holds(stored.grams.span(site), span) for site, span in spans.items()):
        result.notes.append(
            "all concepts are run anew in a stage where a new one changes layers wider than 4096, "
            "whose inputs are seen within the span of the LoRAs alone"
        )
        return None
    wanted = {member.digest for member in members}
    gone = [digest for digest in stored.weights if digest not in wanted]
    return stored if all(_kept_gram(store, digest, spans) for digest in gone) else None


def _span(survey: Survey, stored: StoredSum, site: str) -> Tensor | None:
    """Return the span within which a stored sum's site is seen now."""
    if any(layer.site == site for layer in survey.layers):
        return survey.spans.get(site)
    return stored.grams.span(site)


def _streams(survey: Survey, stored: StoredSum | None) -> dict[str, GramStream]:
    if stored is not None:
        streams = {}
        for site, gram in stored.grams.items():
            span = _span(survey, stored, site)
            streams[site] = GramStream(gram.width, span=span, start=gram.within(span))
        return streams
    return {
        layer.site: GramStream(layer.width, span=survey.spans.get(layer.site))
        for layer in survey.layers
    }


def _run(
    survey: Survey,
    member: Member,
    sums: Mapping[str, GramStream],
    change: float,
    keep_grams: bool,
) -> tuple[MemberStatistics, dict[str, Gram]]:
    """Run a member and add its inputs to the sums; return its own statistics, and its Grams."""
    count = max(1, survey.calls(member) if survey.rows is None else survey.rows(member))
    targets, weight = sums, change / count
    if keep_grams:
        targets = {
            site: GramStream(stream.live().width, span=stream.live().span)
            for site, stream in sums.items()
        }
        weight = 1.0 / count
    watch = InputWatch(
        sites={site: survey.modules(site) for site in sums},
        layers=survey.layers,
        factors=member.factors,
        sums=targets,
        weight=weight,
        calls=survey.calls(member),
        per_call=survey.rows is None,
        where=member.where,
    )
    survey.run(member, watch)
    if not keep_grams:
        return watch.own(count), {}
    grams = _live(targets)
    _merge(sums, grams, change)
    return watch.own(count), grams


def _complete(own: MemberStatistics, survey: Survey, member: Member) -> bool:
    """Return whether stored statistics of a member have all that the layers need."""
    return all(
        layer.name in own.projected for layer in survey.layers if layer.name in member.factors
    )


def _kept_gram(
    store: FusionStore | None, digest: str, spans: Mapping[str, Tensor | None]
) -> LazyGrams | None:
    """Return a member's own Grams if they have all sites, within spans that hold these."""
    grams = None if store is None else store.gram(digest)
    if grams is None or not set(spans) <= set(grams):
        return None
    held = all(span_holds(grams.span(site), span) for site, span in spans.items())
    return grams if held else None


def _merge(sums: Mapping[str, GramStream], grams: Mapping[str, Gram] | None, weight: float) -> None:
    for site in grams or {}:
        if site in sums and weight:
            sums[site].merge(grams[site], weight)


def _live(sums: Mapping[str, GramStream]) -> dict[str, Gram]:
    """Return the sums so far without a copy: together they may take gigabytes."""
    return {site: stream.live() for site, stream in sums.items()}


def _put_away(place: FusionStore | None, member: Member, own: MemberStatistics) -> MemberStatistics:
    """Return a member's statistics as they are read from disk, or as they are if they can't be."""
    if place is None:
        return own
    there = place.member(member.digest)
    if there is None:
        with suppress(RuntimeError):  # then they stay in memory, which the report counts
            place.keep_member(member.digest, own)
            there = place.member(member.digest)
    return there or own


def _keep(
    store: FusionStore | None, result: Collected, write: Callable[[FusionStore], None]
) -> FusionStore | None:
    """Write into the store; a disk that is full costs the statistics, never the fusion."""
    if store is None:
        return None
    try:
        write(store)
    except RuntimeError as error:
        result.notes.append(f"the statistics are not kept: {error}")
        return None
    return store

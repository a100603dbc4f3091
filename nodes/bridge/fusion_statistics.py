"""The statistics of one stage: from the store what lies there, from passes over concepts the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ...lora_ops import Gram, GramStream, LowRank
from ...training.concept import Concept
from ...training.fusion_store import FusionStore, MemberStatistics, StoredSum
from .fusion_activations import InputWatch
from .fusion_sites import FusedLayer


@dataclass(frozen=True)
class Member:
    """One concept of a fusion.

    Args:
        concept: What it is.
        factors: Its changes by layer name; none for prompts that the base is to keep.
        digest: Of all that decides its statistics.
        weight: Its importance.
    """

    concept: Concept
    factors: Mapping[str, LowRank]
    digest: str
    weight: float

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
        rows: Gives what a member's input rows are divided by, so that each counts alike.
        calls: Gives how often each module is called for a member.
        run: Runs a member while its inputs are watched.
    """

    layers: Sequence[FusedLayer]
    modules: Callable[[str], nn.Module]
    spans: Mapping[str, Tensor]
    rows: Callable[[Member], int]
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
    """

    grams: dict[str, Gram]
    own: dict[str, MemberStatistics]
    passes: int = 0
    found: int = 0
    notes: list[str] = field(default_factory=list)


def collect(
    survey: Survey,
    members: Sequence[Member],
    store: FusionStore | None,
    *,
    keep_grams: bool,
    skipped: Callable[[Member], None],
) -> Collected:
    """Return the statistics of all members, one after another; memory doesn't grow with them.

    Each member that is done is kept in the store at once, with the sum so far: after an interrupt
    only the others are run. A concept that is new, or has another weight, costs its own pass. One
    that is gone costs none where its Gram was kept; otherwise the sum is collected anew.

    Args:
        survey: Of the stage.
        members: One for each concept, and the prior.
        store: Where statistics are kept; None for nowhere.
        keep_grams: Whether a Gram is kept for each member.
        skipped: Told of members that need no pass.

    Raises:
        ValueError: An input is not finite.
    """
    stored = None if store is None else _usable(store, survey, members)
    sums = _streams(survey, stored)
    included = {} if stored is None else dict(stored.weights)
    wanted = {member.digest: member.weight for member in members}
    result = Collected({}, {})
    for digest in [digest for digest in included if digest not in wanted]:
        _merge(sums, _kept_gram(store, digest, sums), -included.pop(digest))
    for member in members:
        change = member.weight - included.get(member.digest, 0.0)
        own = None if store is None else store.member(member.digest)
        grams = None if own is None else _kept_gram(store, member.digest, sums)
        if own is not None and _complete(own, survey, member) and (change == 0 or grams):
            _merge(sums, grams or {}, change)
            result.found += 1
            skipped(member)
        else:
            own, kept = _run(survey, member, sums, change, keep_grams)
            result.passes += 1
            store = _keep(store, result, lambda s, m=member, o=own: s.keep_member(m.digest, o))
            if kept:
                store = _keep(store, result, lambda s, m=member, k=kept: s.keep_gram(m.digest, k))
        result.own[member.digest] = own
        included[member.digest] = member.weight
        if change != 0:
            now = dict(included)
            store = _keep(store, result, lambda s, now=now: s.keep_sum(now, _live(sums)))
    result.grams = {layer.site: sums[layer.site].live() for layer in survey.layers}
    return result


def _usable(store: FusionStore, survey: Survey, members: Sequence[Member]) -> StoredSum | None:
    """Return the stored sum if all in it that is no longer wanted can be taken away."""
    stored = store.sum()
    if stored is None or not {layer.site for layer in survey.layers} <= set(stored.grams):
        return None
    wanted = {member.digest for member in members}
    gone = [digest for digest in stored.weights if digest not in wanted]
    sites = dict.fromkeys(stored.grams)
    return stored if all(_kept_gram(store, digest, sites) for digest in gone) else None


def _streams(survey: Survey, stored: StoredSum | None) -> dict[str, GramStream]:
    if stored is not None:
        return {
            site: GramStream(gram.width, span=survey.spans.get(site), start=gram)
            for site, gram in stored.grams.items()
        }
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
    count = max(1, survey.rows(member))
    targets, weight = sums, change / count
    if keep_grams:
        targets = {
            site: GramStream(stream.live().width, span=survey.spans.get(site))
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
        spans=survey.spans,
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
    for layer in survey.layers:
        factors = member.factors.get(layer.name)
        if factors is not None:
            part = own.projected.get(layer.name)
            if part is None or part.shape[0] != factors.rank:
                return False
    return True


def _kept_gram(
    store: FusionStore | None, digest: str, sites: Mapping[str, object]
) -> Mapping[str, Gram] | None:
    grams = None if store is None else store.gram(digest)
    return grams if grams is not None and set(sites) <= set(grams) else None


def _merge(sums: Mapping[str, GramStream], grams: Mapping[str, Gram] | None, weight: float) -> None:
    for site, gram in (grams or {}).items():
        if site in sums and weight:
            sums[site].merge(gram.times(weight))


def _live(sums: Mapping[str, GramStream]) -> dict[str, Gram]:
    """Return the sums so far without a copy: together they may take gigabytes."""
    return {site: stream.live() for site, stream in sums.items()}


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

"""Write the tables of seconds and memory, on the toy base and at real widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .real_width import CONCEPTS, MEMORY_COUNTS, RANK, SITES
from .verdicts import verdict_lines

MEMORY_AIM = 1.05  # largest ratio of memory with the most concepts to that with the fewest
MEASURED = (
    "each in a process of its own, growth the highest resident set beyond what the process held "
    "with the base loaded, freed memory given back at once"
)


def cost_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the lines of seconds and memory by number of concepts."""
    lines = [
        "## Cost of a whole fusion on the toy base",
        "",
        f"On the CPU, {MEASURED}. Statistics are the largest of a stage.",
        "",
        "| concepts | seconds | per concept | of it solving | statistics (MiB) | growth (MiB) | "
        "peak of the process (MiB) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for count, one in found.items():
        solving = sum(stage["solving"] for stage in one["stages"].values())
        statistics = max(stage["statistics_mib"] for stage in one["stages"].values())
        lines.append(
            f"| {count} | {one['seconds']:.1f} | {one['seconds'] / int(count):.1f} | "
            f"{solving:.1f} | {statistics:.1f} | {one['growth_mib']:.0f} | {one['peak_mib']:.0f} |"
        )
    ordered = [found[key] for key in sorted(found, key=int)]
    each = [one["seconds"] / one["concepts"] for one in ordered]
    verdicts = [
        *_memory(ordered[0], ordered[-1]),
        ("seconds per concept within a quarter of each other", max(each) <= 1.25 * min(each)),
    ]
    return [*lines, "", *verdict_lines(verdicts), ""]


def real_width_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the lines of a whole fusion at SD1.5's widths, and of single sites."""
    whole = found[str(CONCEPTS)]
    lines = [
        "## At real widths, random weights",
        "",
        f"SD1.5's UNet and text encoder in fp32, {whole['concepts']} concepts of rank {RANK} with "
        f"words, {whole['layers']} attention layers. Each is drawn in **{whole['steps']} steps at "
        f"{whole['side']} pixels**; the time of collecting the spatial layers' statistics grows with "
        f"steps and pixels, their memory does not. In all {whole['seconds']:.0f} s, growth "
        f"{whole['growth_mib']:.0f} MiB: {MEASURED}.",
        "",
        "| stage | layers | seconds collecting | solving | statistics (MiB) | growth (MiB) |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {one['layers']} | {one['collecting']:.1f} | {one['solving']:.1f} | "
            f"{one['statistics_mib']:.0f} | {one['growth_mib']:.0f} |"
            for name, one in whole["stages"].items()
        ),
        "",
        f"Ordinary LoRAs of rank {RANK} at the same widths and size, "
        f"{found[str(MEMORY_COUNTS[0])]['steps']} step:",
        "",
        "| concepts | seconds | statistics (MiB) | growth (MiB) | peak of the process (MiB) |",
        "| --- | --- | --- | --- | --- |",
    ]
    counted = [found[str(count)] for count in MEMORY_COUNTS]
    for one in counted:
        statistics = max(stage["statistics_mib"] for stage in one["stages"].values())
        lines.append(
            f"| {one['concepts']} | {one['seconds']:.0f} | {statistics:.0f} | "
            f"{one['growth_mib']:.0f} | {one['peak_mib']:.0f} |"
        )
    lines += [
        "",
        *verdict_lines(_memory(counted[0], counted[-1])),
        "",
        f"One site of every kind through the same solver, {CONCEPTS} concepts of rank {RANK}, random "
        "inputs; rows are those of one evaluation at 1024 pixels, or a concept's prompts.",
        "",
        "| network | layer | width, outputs | rows of each | seconds collecting | solving | "
        "statistics (MiB) | growth (MiB) | within a span of |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {one['network']} | {one['kind']} | {one['width']}, {one['outputs']} | "
            f"{one['rows']} | {one['collecting']:.2f} | {one['solving']:.2f} | "
            f"{one['statistics_mib']:.1f} | {one['growth_mib']:.0f} | {one['span'] or ''} |"
            for one in found[SITES]
        ),
        "",
    ]
    return lines


def _memory(fewest: Mapping[str, Any], most: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return the verdicts on whether memory is independent of the number of concepts."""
    counts = f"with {most['concepts']} concepts beside {fewest['concepts']}"
    peak, growth = (most[name] / fewest[name] for name in ("peak_mib", "growth_mib"))
    return [
        (f"peak of the process {counts} {peak:.3f} times", peak <= MEMORY_AIM),
        (f"growth beyond the base {counts} {growth:.3f} times", growth <= MEMORY_AIM),
    ]

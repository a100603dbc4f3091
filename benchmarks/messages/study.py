"""Collect the nodes' answers to bad input: ``python3 benchmarks/run.py messages``; a few minutes.

Every case is given to the real node, with the tiny models, files and pictures of the tests, and the
answer is written into a table. The run fails if a case is accepted instead of refused, raises
anything but a plain error, or has an answer of more than one line. The page is written to
``benchmarks/results/messages.md``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .concepts import CONCEPT_SECTIONS
from .fusion import FUSION_SECTIONS
from .halves import HALF_SECTIONS
from .loras import LORA_SECTIONS
from .page import Page, Warnings
from .pair import PICTURE_SECTIONS, RUN_SECTIONS
from .regions import REGION_SECTIONS

BENCHMARKS = Path(__file__).resolve().parents[1]
SECTIONS = (
    *PICTURE_SECTIONS,
    *LORA_SECTIONS,
    *RUN_SECTIONS,
    *HALF_SECTIONS,
    *CONCEPT_SECTIONS,
    *FUSION_SECTIONS,
    *REGION_SECTIONS,
)


def main(arguments: Sequence[str]) -> int:
    """Run every case and write the page; return 1 if a case was not answered plainly."""
    parser = argparse.ArgumentParser(prog="messages", description=__doc__)
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "messages.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="pastiche-messages-") as place:
        page = Page(Path(place))
        logging.getLogger().handlers = [Warnings(page.warnings)]
        for section in SECTIONS:
            section(page)
    options.out.write_text(page.text(), encoding="utf-8")
    print(f"{len(page.cases)} cases, {len(page.faults)} not answered plainly: {options.out}")
    for fault in page.faults:
        print(fault, file=sys.stderr)
    return 1 if page.faults else 0

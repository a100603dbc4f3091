"""The page of messages: it runs the cases, checks the answers and writes the tables."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pack.training.runs.lock import UnwritableError

LONGEST = 600  # characters of a plain message


@dataclass
class Page:
    """The sections of the page so far.

    Args:
        place: A folder for the cases; its path is left out of what is written.
    """

    place: Path
    lines: list[str] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def section(self, title: str, header: str = "| case | what the node says |") -> None:
        """Begin a table."""
        self.lines += ["", f"## {title}", "", header, "| --- " * (header.count("|") - 1) + "|"]

    def row(self, *cells: object) -> None:
        """Add a line to the table."""
        texts = [str(cell).replace("|", "\\|").replace("<", "&lt;") for cell in cells]
        self.lines.append(f"| {' | '.join(texts)} |")

    def refused(self, case: str, action: Callable[[], Any]) -> None:
        """Add what is said when ``action`` runs, which must be a plain error in one line."""
        try:
            action()
            said, plain = "taken without a word", False
        except Exception as error:
            said, plain = str(error), type(error) in (ValueError, RuntimeError, UnwritableError)
        self.answered(case, said, plain and "\n" not in said and len(said) < LONGEST)

    def warned(self, case: str, action: Callable[[], Any], *notes: str) -> None:
        """Add what is said of ``notes`` when ``action`` runs, which must be all of them."""
        self.warnings.clear()
        try:
            action()
        except Exception as error:
            self.answered(case, f"not taken: {error!r}", plain=False)
            return
        said = [text for text in self.warnings if any(note in text for note in notes)]
        plain = bool(said) and all(any(note in text for text in said) for note in notes)
        self.answered(case, " ".join(said) or "taken without a word", plain)

    def answered(self, case: str, said: str, plain: bool = True) -> None:
        """Add what is said of a case, with the folder of the cases left out."""
        said = said.replace(str(self.place), "…")
        self.cases.append(case)
        if not plain:
            self.faults.append(f"{case}: {said}")
        self.row(case, said)

    def folder(self, name: str) -> Path:
        """Return a new folder for cases."""
        folder = self.place / name
        folder.mkdir(parents=True)
        return folder

    def text(self) -> str:
        """Return the whole page."""
        head = [
            "# What the nodes say of bad input",
            "",
            "Made by `python3 benchmarks/run.py messages` with the cases of `tests/comfy`, on its "
            "tiny models: each was given to the real node. `…` stands for the folder that the "
            "cases lay in.",
        ]
        return "\n".join([*head, *self.lines, ""])


class Warnings(logging.Handler):
    """Keeps what the pack shows below a node without refusing, and leaves all else out.

    Args:
        texts: Where it is kept.
    """

    def __init__(self, texts: list[str]):
        super().__init__(logging.WARNING)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning of the pack."""
        said = record.getMessage()
        if said.startswith("Pastiche: "):
            self.texts.append(said.removeprefix("Pastiche: "))


def called(value: Any) -> Any:
    """Return a case's value, made now where it is a function."""
    return value() if callable(value) else value


def answer(action: Callable[[], Any]) -> str:
    """Return what is said when ``action`` runs."""
    try:
        action()
    except ValueError as error:
        return str(error)
    return "taken without a word"

"""Run the cases of the messages study, check the answers and build the page of tables."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pack.training.runs.lock import UnwritableError

LONGEST = 600  # largest number of characters of a plain message


@dataclass
class Page:
    """The page under construction.

    Args:
        place: Folder for the cases; its path is removed from the page.
        lines: Lines of the page so far.
        cases: Names of the cases so far.
        faults: Cases that were not answered plainly, with their answers.
        warnings: Warnings of the pack since the last ``clear``.
    """

    place: Path
    lines: list[str] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add_section(self, title: str, header: str = "| case | what the node says |") -> None:
        """Add a heading and the header of its table."""
        self.lines += ["", f"## {title}", "", header, "| --- " * (header.count("|") - 1) + "|"]

    def add_row(self, *cells: object) -> None:
        """Add a row to the table."""
        texts = [str(cell).replace("|", "\\|").replace("<", "&lt;") for cell in cells]
        self.lines.append(f"| {' | '.join(texts)} |")

    def add_refusal(self, case: str, action: Callable[[], Any]) -> None:
        """Run ``action`` and add its error, which must be a plain sentence in one line."""
        try:
            action()
            message, plain = "taken without a word", False
        except Exception as error:
            message, plain = str(error), type(error) in (ValueError, RuntimeError, UnwritableError)
        self.add_answer(case, message, plain and "\n" not in message and len(message) < LONGEST)

    def add_warning(self, case: str, action: Callable[[], Any], *notes: str) -> None:
        """Run ``action`` and add its warnings, which must contain all ``notes``."""
        self.warnings.clear()
        try:
            action()
        except Exception as error:
            self.add_answer(case, f"not taken: {error!r}", plain=False)
            return
        messages = [text for text in self.warnings if any(note in text for note in notes)]
        plain = bool(messages) and all(any(note in text for text in messages) for note in notes)
        self.add_answer(case, " ".join(messages) or "taken without a word", plain)

    def add_answer(self, case: str, message: str, plain: bool = True) -> None:
        """Add the answer to a case, without the path of the cases' folder."""
        message = message.replace(str(self.place), "…")
        self.cases.append(case)
        if not plain:
            self.faults.append(f"{case}: {message}")
        self.add_row(case, message)

    def folder(self, name: str) -> Path:
        """Create a folder for cases and return it."""
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
    """A log handler that collects the warnings which the pack shows below a node.

    Args:
        texts: List to which the warnings are appended.
    """

    def __init__(self, texts: list[str]):
        super().__init__(logging.WARNING)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        """Append the record's text if it is a warning of the pack."""
        message = record.getMessage()
        if message.startswith("Pastiche: "):
            self.texts.append(message.removeprefix("Pastiche: "))


def evaluate(value: Any) -> Any:
    """Return a case's value; a function is called."""
    return value() if callable(value) else value


def answer(action: Callable[[], Any]) -> str:
    """Return the error message of ``action``, or the phrase for no error."""
    try:
        action()
    except ValueError as error:
        return str(error)
    return "taken without a word"

"""Where finished runs lie below ComfyUI's output folder, and how one gets there."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths

from ...training.run_folder import RunFolder
from ...training.run_store import StoredRun


def runs_root() -> Path:
    """Return the folder of all runs, ``output/pastiche``."""
    return Path(folder_paths.get_output_directory()) / "pastiche"


def keep(folder: RunFolder, run: StoredRun, wished: int) -> str:
    """Store a finished run and return a sentence that says where it lies.

    A disk that fills up at the very end must not cost the training: the result travels on, and
    the sentence on the node says that it was not stored.

    Args:
        folder: Of the run.
        run: What was learnt.
        wished: Steps that were asked for; more than the run's where the user stopped it.
    """
    place = folder.result(run.steps)
    try:
        folder.store(run, wished)
    except (OSError, RuntimeError) as error:
        text = (
            f"trained, but not stored in {place}: {error}; "
            "save the LoRA now, or free some space and queue the same graph again"
        )
        logging.warning("Pastiche: %s", text)
        return text
    return f"stored in {place}"


def as_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the values as safetensors metadata holds them: strings, other values as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }

"""Where finished runs lie below ComfyUI's output folder, and how one gets there."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths

from ...training.run_store import StoredRun, save_run


def runs_root() -> Path:
    """Return the folder of all runs, ``output/pastiche``."""
    return Path(folder_paths.get_output_directory()) / "pastiche"


def keep(folder: Path, run: StoredRun) -> str:
    """Store a finished run and return a sentence that says where it lies.

    A disk that fills up at the very end must not cost the training: the result travels on, and
    the sentence on the node says that it was not stored.
    """
    try:
        save_run(folder, run)
    except (OSError, RuntimeError) as error:
        text = (
            f"trained, but not stored in {folder}: {error}; "
            "save the LoRA now, queueing again would train anew"
        )
        logging.warning("Pastiche: %s", text)
        return text
    return f"stored in {folder}"


def as_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the values as safetensors metadata holds them: strings, other values as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }

"""Remove image previews from workflow files, so that templates stay small and readable."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def without_previews(value: Any) -> Any:
    """Return the JSON value with every embedded picture replaced by an empty string."""
    if isinstance(value, dict):
        return {key: without_previews(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_previews(item) for item in value]
    if isinstance(value, str) and value.startswith("data:image"):
        return ""
    return value


def main(paths: list[str]) -> int:
    """Rewrite files that contain previews; return 1 if there were any, so that a commit hook stops."""
    changed = 0
    for path in map(Path, paths):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        stripped = without_previews(workflow)
        if stripped != workflow:
            path.write_text(json.dumps(stripped, indent=2) + "\n", encoding="utf-8")
            changed = 1
    return changed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

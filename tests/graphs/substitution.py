"""The templates as API graphs, for an artist's model and for the toy base.

Demo and tests run ``toy_graph``: the template's own graph with the values of
``substitution.json`` in place of an artist's, so that neither can drift from what artists open.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
TEMPLATES = (
    "pair_customization",
    "use_a_style",
    "train_plain_lora",
    "resume_and_extend",
    "break_for_make",
    "shelf_of_halves",
    "train_concept",
    "use_concepts",
    "fuse_concepts",
    "fuse_downloaded_loras",
    "regions_two_subjects",
    "regions_from_colours",
    "regions_with_control",
)
"""In the order in which they run: some use what the one before them has saved."""

Graph = dict[str, dict[str, Any]]


def api_graph(template: str) -> Graph:
    """Return a template's graph as the frontend posts it, by the name of its file."""
    return json.loads((FOLDER / f"{template}.json").read_text("utf-8"))


def substitutions() -> dict[str, dict[str, Any]]:
    """Return the toy base's value by kind of node and input.

    A kind is a node's type, or its type and title, "PasticheTrainHalf: New content".
    """
    return json.loads((FOLDER / "substitution.json").read_text("utf-8"))


def kinds(node: dict[str, Any]) -> tuple[str, str]:
    """Return the kinds under which the table knows a node, the one that goes first last."""
    return node["class_type"], f"{node['class_type']}: {node['_meta']['title']}"


def values_for(node: dict[str, Any], table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the toy base's values of a node by input.

    What is said of a type holds for nodes where that input is no link; what is said of a title
    must find a value.
    """
    of_type, of_title = (table.get(kind, {}) for kind in kinds(node))
    linked = {name for name, value in node["inputs"].items() if isinstance(value, list)}
    return {name: value for name, value in of_type.items() if name not in linked} | of_title


def toy_graph(template: str) -> Graph:
    """Return a template's graph with the toy base's model, prompts, sizes and settings.

    Raises:
        ValueError: A substitution names an input that the template leaves to a link or lacks.
    """
    graph = api_graph(template)
    table = substitutions()
    for number, node in graph.items():
        for name, value in values_for(node, table).items():
            if isinstance(node["inputs"].get(name, []), list):
                raise ValueError(
                    f"the toy base's {name} must replace a value of {node['class_type']}, got "
                    f"none at node {number} of {template}: correct tests/graphs/substitution.json"
                )
            node["inputs"][name] = value
    return graph

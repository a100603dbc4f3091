"""Every node is documented, found in the README, and shown at work in a template."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def node_types_in_templates(repository: Path) -> set[str]:
    used = set()
    for path in (repository / "workflows").glob("*.json"):
        workflow = json.loads(path.read_text("utf-8"))
        graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
        used |= {node["type"] for graph in graphs for node in graph["nodes"]}
    return used


def test_ids_are_unique_and_prefixed(node_ids: list[str]):
    assert len(set(node_ids)) == len(node_ids)
    assert [name for name in node_ids if not name.startswith("Pastiche")] == []


def test_every_node_has_a_help_page(node_ids: list[str], repository: Path):
    pages = {path.stem: path.read_text("utf-8") for path in (repository / "web/docs").glob("*.md")}
    assert [name for name in node_ids if not pages.get(name, "").strip()] == []
    assert sorted(set(pages) - set(node_ids)) == []


def test_every_node_is_in_the_readme(node_ids: list[str], repository: Path):
    readme = (repository / "README.md").read_text("utf-8")
    assert [name for name in node_ids if name not in readme] == []


def test_every_node_is_used_by_a_template(node_ids: list[str], node_types_in_templates: set[str]):
    assert [name for name in node_ids if name not in node_types_in_templates] == []

"""Every template opens in the real frontend, Nodes 2.0 off and on, and queues what tests run."""

import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATES = sorted(path.stem for path in (REPOSITORY / "workflows").glob("*.json"))

CORE_WORKFLOW = {
    "version": 0.4,
    "last_node_id": 2,
    "last_link_id": 1,
    "nodes": [
        {
            "id": 1,
            "type": "EmptyImage",
            "pos": [100, 200],
            "size": [300, 150],
            "inputs": [],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
            "widgets_values": [16, 8, 1, 255],
        },
        {
            "id": 2,
            "type": "PreviewImage",
            "pos": [500, 200],
            "size": [300, 250],
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "outputs": [],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
}
CORE_PROMPT = {
    "1": ("EmptyImage", {"width": 16, "height": 8, "batch_size": 1, "color": 255}),
    "2": ("PreviewImage", {"images": ["1", 0]}),
}


def without_titles(prompt: dict) -> dict:
    """Keep of an API graph what decides the outcome."""
    return {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}


def test_a_core_graph_opens_and_converts(frontend):
    frontend.load(CORE_WORKFLOW)
    assert frontend.missing_types() == []
    assert frontend.vue_node_count() == (frontend.node_count() if frontend.vue_nodes else 0)
    assert without_titles(frontend.prompt()) == CORE_PROMPT
    assert frontend.errors == []


def test_a_missing_node_type_is_seen(frontend):
    unknown = {"id": 3, "type": "PasticheNoSuchNode", "pos": [100, 500], "size": [200, 80]}
    frontend.load({**CORE_WORKFLOW, "nodes": [*CORE_WORKFLOW["nodes"], unknown]})
    assert frontend.missing_types() == ["PasticheNoSuchNode"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_and_queues_the_graph_that_tests_run(frontend, name):
    expected = json.loads((REPOSITORY / "tests" / "graphs" / f"{name}.json").read_text("utf-8"))
    frontend.load(frontend.template(name))
    picture = frontend.screenshot(f"{name}-{'nodes2' if frontend.vue_nodes else 'nodes1'}")
    assert picture.stat().st_size > 20_000
    assert frontend.missing_types() == []
    assert frontend.vue_node_count() == (frontend.node_count() if frontend.vue_nodes else 0)
    assert without_titles(frontend.prompt()) == without_titles(expected)
    assert frontend.errors == []


def test_there_is_a_template():
    assert TEMPLATES

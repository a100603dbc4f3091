"""The graphs that the demo writes open on the page when dropped there, and queue what it ran."""

import json

import pytest
from substitution import TEMPLATES, toy_graph

DROP = """
async ([name, text]) => {
  await window.app.handleFile(new File([text], name, { type: "application/json" }));
}
"""


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_toy_graph_opens_by_dropping_its_file(frontend, template: str):
    graph = toy_graph(template)
    frontend.errors.clear()
    frontend.page.evaluate(DROP, [f"{template}.json", json.dumps(graph)])
    frontend.page.wait_for_timeout(1500)
    queued = frontend.prompt()
    assert frontend.missing_types() == []
    assert {key: node["class_type"] for key, node in queued.items()} == {
        key: node["class_type"] for key, node in graph.items()
    }
    assert {key: node["inputs"] for key, node in queued.items()} == {
        key: node["inputs"] for key, node in graph.items()
    }

"""What the frontend shows of a node: tooltips, aliases, categories, titles."""

import pytest
from pack.nodes import NODES

CATEGORIES = {f"Pastiche/{name}" for name in ("data", "train", "merge", "sample", "io")}


def schema_of(node):
    """Return the node's finished schema."""
    return node.GET_SCHEMA()


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_a_node_explains_itself(node):
    schema = schema_of(node)
    assert schema.category in CATEGORIES
    assert schema.description
    assert schema.search_aliases
    assert schema.display_name == schema.display_name.strip()
    assert schema.display_name[0].isupper()
    assert [item.id for item in schema.inputs if not item.tooltip] == []


def test_no_two_nodes_share_a_title():
    titles = [schema_of(node).display_name for node in NODES]
    assert len(set(titles)) == len(titles)

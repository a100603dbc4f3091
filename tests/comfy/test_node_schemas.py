"""What the frontend shows of a node: tooltips, aliases, categories, titles."""

from dataclasses import fields

import pytest
from pack.nodes import NODES
from pack.nodes.trainer.nodes import TrainingSettingsNode
from pack.training import TrainingSettings

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


def test_the_settings_node_offers_every_setting_at_its_default():
    offered = {item.id: item.default for item in schema_of(TrainingSettingsNode).inputs}
    assert offered == {field.name: field.default for field in fields(TrainingSettings)}


def test_settings_of_an_older_graph_keep_their_defaults():
    """Inputs that came later are optional: a stored API graph without them still runs."""
    inputs = schema_of(TrainingSettingsNode).inputs
    first = [
        "precision",
        "resolution",
        "flip",
        "optimizer",
        "weight_decay",
        "targets",
        "batch_size",
    ]
    assert [item.id for item in inputs if not item.optional] == first
    assert [item.id for item in inputs][: len(first)] == first
    values = {item.id: item.default for item in inputs if not item.optional}
    assert TrainingSettingsNode.execute(**values).result == (TrainingSettings(),)

"""Holds `/object_info` of the pack's nodes against the snapshot of released workflows.

A saved workflow stores widget values by position and links by slot number. So ids, names, types,
sections and order of inputs, types of outputs and options of combos are fixed once released. New
inputs, outputs and options come last, and new inputs are optional. Titles, categories, texts and
defaults may change.

PASTICHE_WRITE_SNAPSHOT=1 writes the file anew, after the rules have been checked.
"""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pack.nodes import NODES

SNAPSHOT = Path(__file__).resolve().parents[1] / "snapshots" / "nodes.json"
NOT_KEPT = (
    "description",
    "output_tooltips",
    "python_module",
    "search_aliases",
)
FROM_OUTSIDE = "not compared"
# Options that are files of the machine or lists of the installed ComfyUI.
OUTSIDE_COMBOS = {
    ("PasticheLoadTrainingImages", "folder"),
    ("PasticheLoadLora", "lora_name"),
    ("PasticheLoadHalf", "lora_name"),
    ("PasticheLoadConcept", "concept_name"),
    ("PasticheLoadConcept", "embedding"),
    ("PasticheHalfSheet", "sampler_name"),
    ("PasticheHalfSheet", "scheduler"),
}


def described(nodes: list[Any]) -> dict[str, Any]:
    """Return what ComfyUI answers for the nodes under /object_info, without texts."""
    found = {}
    for node in nodes:
        info = json.loads(json.dumps(node.GET_NODE_INFO_V1()))
        kept = {key: value for key, value in info.items() if key not in NOT_KEPT}
        for section in kept["input"].values():
            for name, entry in section.items():
                _drop_texts(entry)
                if (info["name"], name) in OUTSIDE_COMBOS:
                    entry[1]["options"] = FROM_OUTSIDE
        found[info["name"]] = kept
    return found


def _drop_texts(value: Any) -> None:
    if isinstance(value, dict):
        for key in ("tooltip", "placeholder"):
            if isinstance(value.get(key), str):
                del value[key]
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            _drop_texts(part)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return every change of the nodes that would break a saved workflow."""
    broken = []
    for node_id, node in old.items():
        if node_id not in new:
            broken.append(f"{node_id} is gone")
            continue
        broken += [f"{node_id}: {change}" for change in _node_differences(node, new[node_id])]
    return broken


def _node_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    broken = []
    for key in ("is_input_list", "output_node"):
        if old[key] != new[key]:
            broken.append(f"{key} was {old[key]}, is {new[key]}")
    for key in ("output", "output_is_list"):
        if new[key][: len(old[key])] != old[key]:
            broken.append(f"{key} was {old[key]}, is {new[key]}")
    old_inputs, new_inputs = _sections(old), _sections(new)
    if list(new_inputs)[: len(old_inputs)] != list(old_inputs):
        broken.append(f"inputs were {list(old_inputs)}, are {list(new_inputs)}")
    for name, (section, _) in new_inputs.items():
        if name not in old_inputs and section != "optional":
            broken.append(f"the new input {name} must be optional, is {section}")
    for name in old_inputs.keys() & new_inputs.keys():
        (old_section, before), (new_section, after) = old_inputs[name], new_inputs[name]
        if old_section != new_section:
            broken.append(f"{name} was {old_section}, is {new_section}")
        broken += [f"{name}: {change}" for change in _entry_differences(before, after)]
    return sorted(broken)


def _sections(node: dict[str, Any]) -> dict[str, tuple[str, list[Any]]]:
    """Return section and entry of each input that the frontend shows, in its order."""
    order = node["input_order"]
    return {
        name: (section, node["input"][section][name])
        for section in ("required", "optional")
        for name in order.get(section, [])
    }


def _entry_differences(old: list[Any], new: list[Any]) -> list[str]:
    broken = []
    if old[0] != new[0]:
        broken.append(f"type was {old[0]}, is {new[0]}")
    before, after = (entry[1] if len(entry) > 1 else {} for entry in (old, new))
    # A control after generating is a widget of its own, so its value has a position too.
    for key in ("control_after_generate", "multiselect", "template"):
        if _fixed(before.get(key)) != _fixed(after.get(key)):
            broken.append(f"{key} was {before.get(key)}, is {after.get(key)}")
    options = before.get("options")
    compared = options not in (None, FROM_OUTSIDE)
    if compared and list(after.get("options", ()))[: len(options)] != options:
        broken.append(f"options were {options}, are {after.get('options')}")
    return broken


def _fixed(value: Any) -> Any:
    """Return a part of an entry without what may change."""
    if isinstance(value, dict):
        return {key: _fixed(part) for key, part in value.items() if key != "default"}
    return [_fixed(part) for part in value] if isinstance(value, list) else value


def test_saved_workflows_still_fit_the_nodes():
    new = described(NODES)
    writes = os.environ.get("PASTICHE_WRITE_SNAPSHOT") == "1"
    old = json.loads(SNAPSHOT.read_text("utf-8")) if SNAPSHOT.is_file() or not writes else {}
    assert not differences(old, new), "\n".join(differences(old, new))
    if writes:
        SNAPSHOT.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")


def test_each_combo_from_outside_exists():
    found = {
        (node_id, name)
        for node_id, node in described(NODES).items()
        for section in node["input"].values()
        for name, entry in section.items()
        if entry[0] == "COMBO"
    }
    assert sorted(OUTSIDE_COMBOS - found) == []


def _entry(node: dict[str, Any], name: str) -> list[Any]:
    return _sections(node)[name][1]


def _add_input(node: dict[str, Any], section: str) -> None:
    node["input"].setdefault(section, {})["new"] = ["INT", {"default": 0}]
    node["input_order"].setdefault(section, []).append("new")


def _rename_input(node: dict[str, Any]) -> None:
    node["input"]["required"] = {"renamed": node["input"]["required"]["lora_name"]}
    node["input_order"]["required"] = ["renamed"]


BREAKING = {
    "a node goes": lambda nodes: nodes.pop("PasticheLoadLora"),
    "an input is renamed": lambda nodes: _rename_input(nodes["PasticheLoadLora"]),
    "two inputs change places": lambda nodes: nodes["PasticheTrainPair"]["input_order"][
        "required"
    ].reverse(),
    "a type changes": lambda nodes: _entry(nodes["PasticheTrainPair"], "steps").__setitem__(
        0, "FLOAT"
    ),
    "an option goes": lambda nodes: _entry(nodes["PasticheTrainingSettings"], "precision")[1][
        "options"
    ].pop(),
    "options change places": lambda nodes: _entry(nodes["PasticheTrainingSettings"], "precision")[
        1
    ]["options"].reverse(),
    "the seed loses its control": lambda nodes: _entry(nodes["PasticheTrainPair"], "seed")[1].pop(
        "control_after_generate"
    ),
    "an added input is required": lambda nodes: _add_input(nodes["PasticheLoadLora"], "required"),
    "an output goes": lambda nodes: nodes["PasticheTrainPair"]["output"].pop(0),
}
HARMLESS = {
    "an added input is optional": lambda nodes: _add_input(nodes["PasticheTrainPair"], "optional"),
    "an option is added": lambda nodes: _entry(nodes["PasticheTrainingSettings"], "precision")[1][
        "options"
    ].append("new"),
    "a default changes": lambda nodes: _entry(nodes["PasticheTrainPair"], "steps")[1].update(
        default=1
    ),
    "a title changes": lambda nodes: nodes["PasticheTrainPair"].update(display_name="New"),
    "a node is added": lambda nodes: nodes.update(New=nodes["PasticheTrainPair"]),
}


@pytest.mark.parametrize("change", BREAKING)
def test_a_change_that_breaks_workflows_is_seen(change):
    old = described(NODES)
    new = copy.deepcopy(old)
    BREAKING[change](new)
    assert differences(old, new)


@pytest.mark.parametrize("change", HARMLESS)
def test_a_harmless_change_passes(change):
    old = described(NODES)
    new = copy.deepcopy(old)
    HARMLESS[change](new)
    assert not differences(old, new)

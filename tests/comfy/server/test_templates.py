"""The templates, on the toy base in a real server: trained, painted, saved and used again."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from comfyui.server import ComfyServer
from PIL import Image
from substitution import (
    TEMPLATES,
    Graph,
    api_graph,
    kinds,
    substitutions,
    toy_graph,
    values_for,
)

GRAPHS = Path(__file__).resolve().parents[2] / "graphs"

FEW_STEPS, FEW_CONCEPT_STEPS = 12, 2
"""Of training: enough for both passes and a change of the picture, not for a style. A concept's step encodes every caption anew, which takes longer."""
ROLES = ("content", "style")
TRAINED = {
    "PasticheTrainPair": ("steps",),
    "PasticheTrainPlainLora": ("steps",),
    "PasticheTrainHalf": ("steps",),
    "PasticheMake": ("steps",),
    "PasticheTrainB4M": ("steps", "make_steps"),
    "PasticheTrainConcept": ("steps",),
}
"""The inputs that say how long a node trains."""


def outputs_of(graph: Graph, entry: dict, title: str) -> dict:
    """Return what the one node of that title has put out."""
    (number,) = [key for key, node in graph.items() if node["_meta"]["title"] == title]
    return entry["outputs"][number]


def picture(server: ComfyServer, graph: Graph, entry: dict, title: str) -> np.ndarray:
    """Return a saved picture, ``(height, width, 3)`` in 0..255."""
    (image,) = outputs_of(graph, entry, title)["images"]
    png = Image.open(io.BytesIO(server.get("/view", **image)))
    return np.asarray(png.convert("RGB")).astype(float)


def run(server: ComfyServer, template: str) -> tuple[Graph, dict]:
    """Run a template's toy graph with a short training and return it with its history entry."""
    graph = toy_graph(template)
    for node in graph.values():
        for name in TRAINED.get(node["class_type"], ()):
            concept = node["class_type"] == "PasticheTrainConcept"
            node["inputs"][name] = FEW_CONCEPT_STEPS if concept else FEW_STEPS
    entry = server.post_prompt(graph)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    return graph, entry


@pytest.fixture(scope="module")
def runs(toy_server: ComfyServer) -> Iterator[dict[str, tuple[Graph, dict]]]:
    """Every template's graph and history entry, in the order in which an artist uses them."""
    found = {}
    for template in TEMPLATES:
        if template == "use_concepts":
            _train_second_concept(toy_server, found["train_concept"][0])
        found[template] = run(toy_server, template)
    return found


def _train_second_concept(server: ComfyServer, graph: Graph) -> None:
    """Queue the concept template once more, for another name and file."""
    text = json.dumps(graph).replace("my_concept1", "my_concept2")
    entry = server.post_prompt(json.loads(text))
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]


def test_every_template_has_its_graph_and_nothing_else_has(repository: Path):
    templates = {path.stem for path in (repository / "workflows").glob("*.json")}
    graphs = {path.stem for path in GRAPHS.glob("*.json")} - {"substitution"}
    assert templates == graphs == set(TEMPLATES)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_graph_has_the_templates_nodes(template: str, repository: Path):
    workflow = json.loads((repository / "workflows" / f"{template}.json").read_text("utf-8"))
    notes = {"MarkdownNote", "Note"}
    nodes = {str(n["id"]): n["type"] for n in workflow["nodes"] if n["type"] not in notes}
    assert {key: node["class_type"] for key, node in api_graph(template).items()} == nodes


def test_every_substitution_is_used():
    used = {
        (kind, name)
        for template in TEMPLATES
        for node in api_graph(template).values()
        for kind in kinds(node)
        for name in node["inputs"]
    }
    table = {(kind, name) for kind, values in substitutions().items() for name in values}
    assert table - used == set()


def test_a_toy_graph_differs_by_the_substitutions_alone():
    table = substitutions()
    for template in TEMPLATES:
        theirs, ours = api_graph(template), toy_graph(template)
        for number, node in ours.items():
            changed = {
                name
                for name in node["inputs"]
                if node["inputs"][name] != theirs[number]["inputs"][name]
            }
            assert changed <= set(values_for(node, table))


def test_the_pair_template_trains_and_shows_the_pair(runs, toy_server: ComfyServer):
    graph, entry = runs["pair_customization"]
    assert outputs_of(graph, entry, "Train Style from Pairs")["images"]
    folders = list((toy_server.base_directory / "output" / "pastiche").glob("my_style-*"))
    assert len(folders) == 1


def test_the_pair_template_saves_a_lora_that_core_lists(runs, toy_server: ComfyServer):
    names = toy_server.object_info("LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"]
    assert "my_style.safetensors" in json.dumps(names)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_styled_picture_is_another_than_the_plain_one(template, runs, toy_server: ComfyServer):
    graph, entry = runs[template]
    titles = {
        "use_a_style": ("Plain", "Style guidance"),
        **dict.fromkeys(
            ("train_plain_lora", "break_for_make", "shelf_of_halves"), ("Plain", "With the LoRA")
        ),
        "train_concept": ("Plain", "With the concept"),
        "use_concepts": ("One concept", "Two concepts"),
        "fuse_concepts": ("The first concept", "The second concept"),
        "fuse_downloaded_loras": ("Stacked", "Fused"),
        **dict.fromkeys(
            ("regions_two_subjects", "regions_from_colours"), ("One prompt", "With regions")
        ),
        "regions_with_control": ("Outline everywhere", "Outline in one region"),
    }
    plain, styled = (
        picture(toy_server, graph, entry, title)
        for title in titles.get(template, ("Plain", "Styled"))
    )
    assert plain.shape == styled.shape == (64, 64, 3)
    assert np.abs(plain - styled).mean() > 1


def test_the_plain_template_trains_all_pictures_with_their_captions(runs, toy_server: ComfyServer):
    graph, entry = runs["train_plain_lora"]
    (text,) = outputs_of(graph, entry, "Train Plain LoRA")["text"]
    assert f"SD1.5: steps {FEW_STEPS}, rank 16" in text
    assert "8 pictures: 8 at 64 x 64" in text
    (report,) = outputs_of(graph, entry, "Load Training Images (Pastiche)")["text"]
    assert report.split("\n") == [
        "8 pictures from training_pictures: 8 at 64 x 64",
        "8 captions from text files, 0 by default; 0 masks",
    ]
    names = toy_server.object_info("LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"]
    assert "my_lora.safetensors" in json.dumps(names)


def test_break_for_make_learns_both_and_keeps_the_lora_and_its_halves(
    runs, toy_server: ComfyServer
):
    graph, entry = runs["break_for_make"]
    (text,) = outputs_of(graph, entry, "Train Content and Style (B4M)")["text"]
    content, style, make = text.split("\n\n")
    assert content.startswith(f"content half: SD1.5: steps {FEW_STEPS}, rank 64")
    assert "8 pictures and 3 auxiliary ones, drawn by the base" in content
    assert style.startswith(f"style half: SD1.5: steps {FEW_STEPS}, rank 64")
    assert "1 picture and 3 auxiliary ones, drawn by the base" in style
    assert f"{FEW_STEPS} steps with Scaled AdamW" in make
    assert outputs_of(graph, entry, "Plot Loss Graph")["images"]
    folders = list((toy_server.base_directory / "output" / "pastiche").glob("my_content_and*"))
    assert len(folders) == 3
    listed = toy_server.object_info("LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"]
    for name in ("my_content_and_style", *(str(Path("halves", f"my_{n}")) for n in ROLES)):
        assert json.dumps(f"{name}.safetensors") in json.dumps(listed)


def test_the_shelf_shows_halves_that_were_learnt_apart_in_all_combinations(
    runs, toy_server: ComfyServer
):
    graph, entry = runs["shelf_of_halves"]
    (text,) = outputs_of(graph, entry, "Half Sheet")["text"]
    assert text == "rows: boat, fish; columns: mosaic, blueprint"
    sheet = picture(toy_server, graph, entry, "Sheet")
    assert min(sheet.shape[:2]) > 2 * 64
    cells = json.loads(json.dumps(graph))
    (key,) = [key for key, node in graph.items() if node["class_type"] == "PasticheHalfSheet"]
    cells["cells"] = {
        "class_type": "SaveImage",
        "_meta": {"title": "Cells"},
        "inputs": {"images": [key, 1], "filename_prefix": "pastiche_cells"},
    }
    found = outputs_of(cells, toy_server.post_prompt(cells), "Cells")["images"]
    assert len({toy_server.get("/view", **image) for image in found}) == 4
    (said,) = outputs_of(graph, entry, "Make LoRA of Halves")["text"]
    assert f"{FEW_STEPS} steps with Scaled AdamW" in said


def test_what_the_shelf_has_made_is_a_lora_for_cores_own_loader(runs, toy_server: ComfyServer):
    """Two halves broken apart, made one, saved: and the stock loader paints with the file."""
    graph, entry = runs["shelf_of_halves"]
    plain = picture(toy_server, graph, entry, "Plain")
    ours = picture(toy_server, graph, entry, "With the LoRA")
    stock = json.loads(json.dumps(graph))
    (applied,) = [key for key, node in stock.items() if node["class_type"] == "PasticheApplyLora"]
    old = stock[applied]["inputs"]
    stock[applied] = {
        "class_type": "LoraLoader",
        "_meta": {"title": "Core's loader"},
        "inputs": {
            **{name: old[name] for name in ("model", "clip", "strength_model", "strength_clip")},
            "lora_name": "my_new_lora.safetensors",
        },
    }
    painted = picture(toy_server, stock, toy_server.post_prompt(stock), "With the LoRA")
    assert np.abs(painted - plain).mean() > 1
    # The file is fp16, the wire fp32.
    assert np.abs(painted - ours).mean() < 1
    assert np.abs(painted - ours).mean() < 0.2 * np.abs(painted - plain).mean()


def test_the_resume_template_trains_what_is_missing_when_steps_are_raised(
    runs, toy_server: ComfyServer
):
    graph, _ = runs["resume_and_extend"]
    (folder,) = (toy_server.base_directory / "output" / "pastiche").glob("my_long_run-*")
    longer = json.loads(json.dumps(graph))
    (trainer,) = [key for key in longer if longer[key]["class_type"] == "PasticheTrainPair"]
    longer[trainer]["inputs"]["steps"] = FEW_STEPS + 2
    entry = toy_server.post_prompt(longer)
    (text,) = outputs_of(longer, entry, "Train Style from Pairs")["text"]
    assert f"goes on from step {FEW_STEPS}" in text
    losses = [
        json.loads((folder / f"{steps} steps" / "run.json").read_text())["losses"]["loss"]
        for steps in (FEW_STEPS, FEW_STEPS + 2)
    ]
    assert losses[1][:FEW_STEPS] == losses[0]
    assert len(losses[1]) == FEW_STEPS + 2


def test_the_saved_style_paints_what_the_trained_one_did(runs, toy_server: ComfyServer):
    trained, used = runs["pair_customization"], runs["use_a_style"]
    plain = [picture(toy_server, *each, "Plain") for each in (trained, used)]
    assert np.array_equal(*plain)
    styled = picture(toy_server, *trained, "Styled")
    again = picture(toy_server, *used, "Style guidance")
    # The file is fp16, the wire fp32.
    assert np.abs(styled - again).mean() < 1
    assert np.abs(styled - again).mean() < 0.2 * np.abs(styled - plain[0]).mean()


def test_an_ordinary_lora_of_the_same_file_paints_a_third_picture(runs, toy_server: ComfyServer):
    graph, entry = runs["use_a_style"]
    plain = picture(toy_server, graph, entry, "Plain")
    lora = picture(toy_server, graph, entry, "Ordinary LoRA")
    guided = picture(toy_server, graph, entry, "Style guidance")
    assert np.abs(lora - plain).mean() > 1
    assert np.abs(lora - guided).mean() > 0.5

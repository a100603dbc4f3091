"""Save and load concepts, and file names that are refused."""

from pathlib import Path

import folder_paths
import pytest
import safetensors.torch
import torch
from concept_case import LAYERS, NAME
from concept_inputs import concept_for, rows_of
from lora_files_case import unet_lora
from pack.nodes.concepts.nodes_use import LoadConcept, SaveConcept
from tiny import tiny


@pytest.fixture
def embeddings(tmp_path, monkeypatch):
    """Return an empty folder, which is ComfyUI's only embeddings folder."""
    known = folder_paths.folder_names_and_paths
    folder = tmp_path / "embeddings"
    folder.mkdir()
    monkeypatch.setitem(known, "embeddings", ([str(folder)], known["embeddings"][1]))
    return folder


@pytest.fixture(autouse=True)
def separate_folders(loras, embeddings):
    """Give every test separate folders for LoRAs and embeddings."""


def save(concept, filename="my_concept", precision="fp32", embedding=False, **more):
    wire = concept if isinstance(concept, tuple) else (concept,)
    return SaveConcept.execute(wire, filename, precision, embedding, **more).result


def load(file, embedding="none", name="", class_words=""):
    (concept,), lora = LoadConcept.execute(file, embedding, name, class_words).result
    assert lora is concept.lora
    return concept


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def many_words(words=200):
    """Return a concept whose rows are too many for the metadata that ComfyUI shows."""
    return concept_for(tiny(NAME), rows={"clip_l": rows_of(LAYERS, words=words)["clip_l"]})


def lora_folder():
    """Return ComfyUI's first LoRA folder."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def ordinary_lora():
    tensors = dict(unet_lora(tiny(NAME)))
    safetensors.torch.save_file(tensors, str(lora_folder() / "plain.safetensors"))
    load("plain.safetensors")


def embedding_for_a_concept():
    load(save(concept_for(tiny(NAME)))[0], "rex.safetensors")


def embedding_for_a_pth():
    torch.save({}, lora_folder() / "a.pth")
    load("a.pth", "rex.safetensors")


REFUSED = {
    "an ordinary LoRA": (ordinary_lora, "must say its words, got an ordinary LoRA"),
    "an embedding for a concept": (
        embedding_for_a_concept,
        "embedding must be none for a file that holds",
    ),
    "an embedding for a .pth": (
        embedding_for_a_pth,
        "embedding must be none for a file that holds",
    ),
    "a file that is gone": (lambda: load("gone.safetensors"), "in none of the LoRA"),
    "a concept without a LoRA, saved": (
        lambda: save(concept_for(tiny(NAME), lora=False)),
        "must hold a LoRA, got <sks> of words alone",
    ),
    "two concepts, saved in one file": (
        lambda: save((concept_for(tiny(NAME)), concept_for(tiny(NAME), "ada"))),
        "one concept must be saved at a time, got 2",
    ),
    "a name that no prompt can hold": (
        lambda: load(save(concept_for(tiny(NAME)))[0], name="my dog"),
        "a concept's name must be one word",
    ),
}


FILENAMES = ("", "../up", "/abs/a", "a/../../b", "con")

"""Concept files of the released code, valid and damaged."""

import os
import pickle
from pathlib import Path

import comfy.utils
import folder_paths
import safetensors.torch
import torch
from concept_case import NAME
from concept_files_case import load
from concept_inputs import concept_for
from lora_files_case import unet_lora
from tiny import tiny


def diffusers_tensors(concept, spelling):
    """Return a concept's LoRA under the keys that the released code documents."""
    down, up = spelling
    text, unet = {}, {}
    names = comfy.utils.unet_to_diffusers(tiny(NAME).model.model_config.unet_config)
    paths = {
        name.removesuffix(".weight").replace(".", "_"): name.removesuffix(".weight")
        for name in names
        if name.endswith(".weight")
    }
    for key, tensor in concept.lora.items():
        layer, _, part = key.partition(".")
        if part == "alpha":
            continue
        end = down if "down" in part else up
        if layer.startswith("lora_unet_"):
            unet[paths[layer.removeprefix("lora_unet_")] + end] = tensor
        else:
            number, _, kind = layer.partition("layers_")[2].partition("_self_attn_")
            text[f"text_model.encoder.layers.{number}.self_attn.{kind}{end}"] = tensor
    return text, unet


AUTHORS = (".lora_down.weight", ".lora_up.weight")


def write_authors(path, concept, spelling=AUTHORS, root="text_model.", **changes):
    text, unet = diffusers_tensors(concept, spelling)
    text = {root + key.removeprefix("text_model."): value for key, value in text.items()}
    rows = concept.embeddings["clip_l"]
    params = {
        "new_concept_embedding": {"<sks1>": rows[0].clone(), "<sks2>": rows[1].clone()},
        "text_encoder": text,
        "unet": unet,
        **changes,
    }
    torch.save({"params": params}, path)


class Program:
    """An object whose pickle runs a shell command when it is loaded."""

    def __init__(self, proof):
        self.proof = str(proof)

    def __reduce__(self):
        return os.system, (f"echo ran > '{self.proof}'",)


def hidden_in(params_of):
    def write(path, proof):
        torch.save({"params": params_of(Program(proof))}, path)

    return write


def as_plain_pickle(path, proof):
    path.write_bytes(pickle.dumps({"params": Program(proof)}, protocol=2))


PROGRAMS = {
    "in place of the embedding": hidden_in(lambda program: {"new_concept_embedding": program}),
    "next to tensors": hidden_in(
        lambda program: {
            "new_concept_embedding": {"<a>": torch.ones(4, 768), "<b>": program},
            "text_encoder": {},
            "unet": {},
        }
    ),
    "a plain pickle": as_plain_pickle,
}


WRONG_PTH = {
    "another layout": ({"new_concept_embedding": None}, "it has no new_concept_embedding"),
    "no words": ({"new_concept_embedding": {}}, "it has no words"),
    "words of other shapes": (
        {"new_concept_embedding": {"<a>": torch.ones(4, 768), "<b>": torch.ones(3, 768)}},
        r"rows of its words are of the shapes \(4, 768\), \(3, 768\), not all of one",
    ),
    "another text encoder": (
        {"new_concept_embedding": {"<a>": torch.ones(4, 1024)}},
        "its rows have 1024 numbers where SD1.5's have 768",
    ),
    "not a number": (
        {"new_concept_embedding": {"<a>": torch.full((4, 768), torch.nan)}},
        "must be finite numbers",
    ),
    "texts": ({"unet": {"a": "b"}}, "its unet holds something else than tensors"),
    "no factors": ({"unet": {"conv_in.weight": torch.ones(2, 2)}}, "which is no factor of a LoRA"),
    "one factor": (
        {"unet": {"mid_block.x.lora_up.weight": torch.ones(8, 4)}},
        r"has \(8, 4\) in place of two factors",
    ),
    "factors that don't fit": (
        {
            "unet": {
                "mid_block.x.lora_up.weight": torch.ones(8, 4),
                "mid_block.x.lora_down.weight": torch.ones(3, 8),
            }
        },
        r"has \(3, 8\) and \(8, 4\) in place of two factors of one rank",
    ),
    "a LoRA that is not a number": (
        {
            "unet": {
                "mid_block.x.lora_up.weight": torch.full((8, 4), torch.inf),
                "mid_block.x.lora_down.weight": torch.ones(4, 8),
            }
        },
        "numbers that are not finite",
    ),
}


DAMAGED = {
    "an empty .pth": lambda whole: b"",
    "a text under that name": lambda whole: b"hello",
    "a .pth of a hundred bytes": lambda whole: whole[:100],
    "half a .pth": lambda whole: whole[: len(whole) // 2],
}


def load_damaged(folder, spoil):
    """Write a concept of the released code, damage its bytes, and load it."""
    write_authors(folder / "cut.pth", concept_for(tiny(NAME)))
    (folder / "cut.pth").write_bytes(spoil((folder / "cut.pth").read_bytes()))
    load("cut.pth")


def with_embedding(folder, name, tensors):
    """Load a LoRA that records its base, with an embedding of these tensors or bytes."""
    metadata = {"modelspec.architecture": "stable-diffusion-v1/lora"}
    file = Path(folder_paths.get_folder_paths("loras")[0]) / "plain.safetensors"
    safetensors.torch.save_file(dict(unet_lora(tiny(NAME))), str(file), metadata)
    if isinstance(tensors, bytes):
        (folder / name).write_bytes(tensors)
    elif name.endswith(".safetensors"):
        safetensors.torch.save_file(tensors, str(folder / name))
    else:
        torch.save({"string_to_param": tensors}, folder / name)
    return load("plain.safetensors", name)


UNFIT = {
    "an embedding of another text encoder": (
        ("big.safetensors", {"clip_g": torch.ones(2, 1280)}),
        r"one for clip_l, got 'big\.safetensors'",
    ),
    "an embedding of another width": (
        ("wide.safetensors", {"clip_l": torch.ones(2, 1024)}),
        r"one for clip_l, got 'wide\.safetensors'",
    ),
    "an embedding cut short": (
        ("cut.safetensors", b"12345678"),
        r"one for clip_l, got 'cut\.safetensors'",
    ),
    "an embedding that is not a number": (
        ("nan.safetensors", {"clip_l": torch.full((2, 768), torch.nan)}),
        "must be finite numbers",
    ),
}

"""The released Break-for-Make code's files: read as halves, and made into what that code merges."""

import json

import pytest
import safetensors.torch
import torch
from half_files_case import equal, half_of, load, refusal, save
from lora_files_case import apply, released_pair_keys
from pack.nodes.break_for_make.files import load_half
from pack.nodes.break_for_make.make import join_halves
from pack.nodes.lora.nodes import LoadLora
from pack.training.files.half import IMPORTED, HalfMetadata, half_layers, half_metadata
from tiny import tiny

import nodes as core_nodes

AUTHORS_FILE = "pytorch_lora_weights.safetensors"


def authors_file(half, prefix="unet.unet."):
    """Return a half as the released trainers write it: their names, no alpha, no word of itself."""
    released = released_pair_keys({k: t for k, t in half.items() if not k.endswith(".alpha")})
    return {prefix + key.removeprefix("unet."): tensor for key, tensor in released.items()}


@pytest.mark.parametrize("prefix", ["unet.unet.", "unet."])
def test_the_authors_files_become_halves_and_make_what_their_code_merges(prefix, loras, caplog):
    model = tiny("sdxl")
    files = {}
    for role in ("content", "style"):
        files[role] = authors_file(half_of(model, role, start="released"), prefix)
        path = loras / f"{role}" / AUTHORS_FILE
        path.parent.mkdir()
        safetensors.torch.save_file(files[role], str(path), {"format": "pt"})
    first = next(iter(files["content"]))
    assert first.startswith(f"{prefix}down_blocks.0.attentions.2.transformer_blocks.0.attn1.to_")
    # Frozen at zero wherever the released code draws no basis.
    assert any(not t[: len(t) // 2].any() for k, t in files["style"].items() if ".up." in k)
    halves = {role: load(f"{role}/{AUTHORS_FILE}", role) for role in files}
    for role, half in halves.items():
        assert half_metadata(half) == HalfMetadata(role, IMPORTED, "down")
        assert len(half) == len(files[role])
    (lora,) = join_halves([halves["content"]], [halves["style"]])

    merged = dict(files["style"])
    for key, tensor in merged.items():
        if ".lora.down." in key:
            half = tensor.shape[1] // 2
            other = files["content"][key]
            merged[key] = torch.cat([tensor[:, :half], other[:, half:]], dim=1)
    safetensors.torch.save_file(merged, str(loras / "merged.safetensors"))
    (expected,) = LoadLora.execute("merged.safetensors").result
    assert all(torch.equal(lora[key], tensor) for key, tensor in expected.items())
    assert len(apply(model, lora)[0].patches) == len(merged) // 2

    caplog.clear()
    name, core = save(halves["content"], "again", model=model), core_nodes.LoraLoader()
    assert len(core.load_lora(model, None, name, 1.0, 0)[0].patches) == len(merged) // 2
    assert "lora key not loaded" not in caplog.text
    again = load(name)
    assert equal(again, halves["content"])
    assert half_metadata(again) == HalfMetadata("content", IMPORTED, "down")
    assert again.metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    core.load_lora(model, None, f"content/{AUTHORS_FILE}", 1.0, 0)
    assert "lora key not loaded" in caplog.text  # such a name means nothing to core itself


def test_the_authors_files_can_be_read_with_the_figures_owners(loras):
    model = tiny("sdxl")
    halves = []
    for role in ("content", "style"):
        tensors = authors_file(half_of(model, role, start="released"))
        safetensors.torch.save_file(tensors, str(loras / f"{role}.safetensors"))
        halves.append(load(f"{role}.safetensors", role, "up"))
        assert half_metadata(halves[-1]).content_owns == "up"
    (lora,) = join_halves(halves[:1], halves[1:])
    for layer, factors in half_layers(lora).items():
        content, style = (half_layers(half)[layer] for half in halves)
        assert torch.equal(factors.up, content.up)
        columns = factors.down.shape[1] // 2
        assert torch.equal(factors.down[:, columns:], style.down[:, columns:])
    with pytest.raises(ValueError, match="agree on what the content owns, got up and down"):
        join_halves(halves[:1], [load("style.safetensors", "style")])


def test_halves_of_the_authors_with_other_bases_do_not_fit(loras):
    model = tiny("sdxl")
    halves = []
    for seed, role in enumerate(("content", "style")):
        tensors = authors_file(half_of(model, role, start="released", basis_seed=seed))
        safetensors.torch.save_file(tensors, str(loras / f"{role}.safetensors"))
        halves.append(load_half(f"{role}.safetensors", role))
    with pytest.raises(ValueError, match="on one basis, got frozen halves that differ"):
        join_halves(halves[:1], halves[1:])


def test_the_authors_files_without_frozen_halves_are_refused(loras):
    tensors = authors_file(half_of(tiny("sdxl"), start="released"))
    zeros = {
        key: torch.cat([torch.zeros_like(t[:, : t.shape[1] // 2]), t[:, t.shape[1] // 2 :]], dim=1)
        if ".down." in key
        else t
        for key, t in tensors.items()
    }
    safetensors.torch.save_file(zeros, str(loras / "zeros.safetensors"))
    assert "got zeros at 'lora_unet_down_blocks" in refusal("zeros.safetensors", "content")


LOAD_AND_SAVE = {
    "1": {
        "class_type": "PasticheLoadHalf",
        "inputs": {
            "lora_name": AUTHORS_FILE,
            "role": "style",
            "content_owns": "as the file says",
        },
    },
    "2": {
        "class_type": "PasticheSaveHalf",
        "inputs": {
            "half": ["1", 0],
            "filename": "halves/yarn",
            "precision": "fp16",
            "trigger": "w@z",
        },
    },
    "3": {
        "class_type": "PasticheSaveLora",
        "inputs": {"lora": ["1", 1], "filename": "yarn alone", "precision": "fp16"},
    },
}


def test_the_server_reads_an_authors_file_and_saves_the_half(comfy_server):
    folder = comfy_server.base_directory / "models" / "loras"
    half = half_of(tiny("sdxl"), "style", start="released")
    safetensors.torch.save_file(authors_file(half), str(folder / AUTHORS_FILE))
    entry = comfy_server.post_prompt(LOAD_AND_SAVE)
    assert entry["status"]["status_str"] == "success", entry
    assert entry["outputs"]["2"]["text"] == ["halves/yarn.safetensors"]
    assert entry["outputs"]["3"]["text"] == ["yarn alone.safetensors"]
    ours = comfy_server.object_info("PasticheLoadHalf")["PasticheLoadHalf"]["input"]["required"]
    assert "halves/yarn.safetensors" in ours["lora_name"][1]["options"]
    listed = comfy_server.object_info("LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"]
    assert "halves/yarn.safetensors" in listed[0]
    saved = "halves/yarn.safetensors"
    metadata = json.loads(comfy_server.get("/view_metadata/loras", filename=saved))
    assert metadata["pastiche.role"] == "style half"
    assert metadata["modelspec.trigger_phrase"] == "w@z"

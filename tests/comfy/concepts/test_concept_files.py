"""Concepts in ComfyUI's folders: saved, loaded by core, refused."""

import json
import logging
import shutil
from dataclasses import replace

import folder_paths
import pytest
import safetensors.torch
import torch
from concept_case import LAYERS, NAME, apply_concepts, encode, latent
from concept_files_case import (
    FILENAMES,
    REFUSED,
    embeddings,
    equal,
    load,
    many_words,
    save,
    separate_folders,
)
from concept_inputs import clip_with, concept_for, stock
from guidance_case import ksample
from pack.nodes.lora.nodes import LoadLora
from pack.nodes.text.concept_prompt import PROMPT
from pack.training.files.concept import Concept
from pack.training.files.lora_state import LoraState
from pack.training.files.tensor_file import read_header
from PIL import Image
from tiny import tiny, tiny_clip

import nodes as core_nodes

__all__ = ["embeddings", "separate_folders"]  # fixtures

COMPLAINTS = ("lora key not loaded", "NOT LOADED", "ERROR", "error")


def image(seed=0):
    return torch.rand(1, 64, 48, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", [NAME, "sdxl"])
def test_a_concept_comes_back_bit_by_bit(name):
    encoders = ("clip_l",) if name == NAME else ("clip_l", "clip_g")
    original = replace(concept_for(tiny(name), encoders=encoders), prompts=("a <sks> dog",))
    file, embedding = save(original)
    assert (file, embedding) == ("my_concept.safetensors", "")
    found = load(file)
    assert (found.name, found.class_words, found.prompts) == ("sks", "dog", ("a <sks> dog",))
    assert equal(found.lora, original.lora)
    for encoder, rows in original.embeddings.items():
        assert torch.equal(found.embeddings[encoder], rows.half().float())
    assert found.digest == original.digest
    again = load(save(found, "again")[0])
    assert equal(again.embeddings, found.embeddings)
    assert save(found, "again")[0] == "again.safetensors"  # the same concept: nothing is written
    assert save(replace(found, class_words="cat"), "again")[0] == "again_2.safetensors"


def test_a_prompt_of_before_draws_the_same_with_the_loaded_concept():
    original = concept_for(tiny(NAME))
    model, clip = apply_concepts(tiny(NAME), [original])
    prompt = encode(clip, [original])
    wanted = ksample(model, prompt, stock(clip, "red"), latent())
    loaded, _ = apply_concepts(tiny(NAME), [load(save(original)[0])])
    assert torch.equal(ksample(loaded, prompt, stock(clip, "red"), latent()), wanted)


def test_core_loads_the_file_as_a_lora_without_a_complaint(loras, caplog):
    concept = concept_for(tiny(NAME))
    file, _ = save(concept, "people/sks", image=image())
    assert file in folder_paths.get_filename_list("loras")
    with caplog.at_level(logging.INFO):
        by_core, clip = core_nodes.LoraLoader().load_lora(tiny(NAME), tiny_clip(), file, 0.8, 0.6)
        prompts = stock(clip, "a dog"), stock(clip, "red")
        found = ksample(by_core, *prompts, latent())
    assert [word for word in COMPLAINTS if word in caplog.text] == []
    model, own = apply_concepts(tiny(NAME), [load(file)], 0.8, 0.6)
    assert torch.equal(stock(own, "a dog")[0][0], prompts[0][0][0])
    assert torch.equal(ksample(model, *prompts, latent()), found)
    assert not torch.equal(found, ksample(tiny(NAME), *prompts, latent()))
    metadata = read_header(loras / "people/sks.safetensors").metadata
    assert metadata["modelspec.trigger_phrase"] == "<sks>"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    with Image.open(loras / "people/sks.png") as preview:
        assert preview.size == (48, 64)


def test_rows_that_are_too_many_lie_in_a_companion(loras, embeddings, caplog):
    concept = many_words()
    file, _ = save(concept, "crowd/sks")
    assert read_header(loras / file).start < 900_000
    assert [str(path.relative_to(embeddings)) for path in embeddings.rglob("*.*")] == [
        "crowd/sks.safetensors"
    ]
    found = load(file)
    assert torch.equal(found.embeddings["clip_l"], concept.embeddings["clip_l"].half().float())
    with caplog.at_level(logging.INFO):
        core_nodes.LoraLoader().load_lora(tiny(NAME), tiny_clip(), file, 1.0, 1.0)
    assert [word for word in COMPLAINTS if word in caplog.text] == []
    assert save(concept, "crowd/sks")[0] == file
    assert len(list(embeddings.rglob("*.*"))) == 1
    other = replace(concept, embeddings={"clip_l": concept.embeddings["clip_l"].flip(0)})
    assert save(other, "crowd/sks")[0] == "crowd/sks_2.safetensors"
    shutil.copy(embeddings / "crowd/sks_2.safetensors", embeddings / "crowd/sks.safetensors")
    with pytest.raises(ValueError, match="must hold its own rows, got those of another concept"):
        load(file)
    (embeddings / "crowd/sks.safetensors").unlink()
    with pytest.raises(ValueError, match=r"must lie in 'crowd/sks\.safetensors' in an"):
        load(file)


def test_a_companion_never_overwrites_an_embedding(embeddings):
    safetensors.torch.save_file({"clip_l": torch.ones(1, 768)}, str(embeddings / "sks.safetensors"))
    before = (embeddings / "sks.safetensors").read_bytes()
    file, _ = save(many_words(), "sks")
    assert load(file).words == 200
    assert (embeddings / "sks.safetensors").read_bytes() == before
    assert (embeddings / "sks_2.safetensors").is_file()


def test_the_mean_is_an_ordinary_embedding(embeddings):
    concept = concept_for(tiny(NAME))
    rounded = load(save(concept)[0])
    _, word = save(concept, "people/sks", embedding=True)
    assert word == "embedding:people/sks"
    clip = clip_with(embeddings)
    found = stock(clip, f"a photo of {word} , red")[0][0]
    wanted = encode(clip, [rounded], "a photo of <sks> , red")[0][0]
    # Rounded to fp16 after the mean; the prompt's own mean is of rounded rows.
    assert torch.allclose(found, wanted, atol=2e-2)
    mean = concept.embeddings["clip_l"].mean(1)
    exact = {"clip_l": mean.half().float()[:, None].expand(-1, LAYERS, -1).clone()}
    same = encode(clip, [replace(concept, embeddings=exact)], "a photo of <sks> , red")
    assert torch.equal(found, same[0][1][PROMPT].layers[:, 0])
    assert save(concept, "people/sks", embedding=True)[1] == word
    assert save(many_words(), "people/sks", embedding=True)[1] == "embedding:people/sks_3"


def test_a_concept_of_every_precision():
    concept = concept_for(tiny(NAME))
    for precision, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        found = load(save(concept, precision, precision)[0])
        assert found.digest == concept.digest
        for key, tensor in concept.lora.items():
            wanted = tensor if key.endswith("alpha") else tensor.to(dtype)
            assert torch.equal(found.lora[key], wanted)


def test_another_name_and_class_than_the_file_says():
    file, _ = save(concept_for(tiny(NAME)))
    found = load(file, name="<Rex>", class_words="wolf")
    assert (found.name, found.class_words) == ("Rex", "wolf")
    model, clip = apply_concepts(tiny(NAME), [load(file), found], 0.5)
    ksample(model, encode(clip, [load(file), found], "<sks> and <rex>"), [], latent(), cfg=1.0)


@pytest.mark.parametrize(("action", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_concept_file_is_refused(action, message):
    with pytest.raises(ValueError, match=message) as error:
        action()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("filename", FILENAMES)
def test_file_names(filename, loras, embeddings):
    with pytest.raises(ValueError, match="filename must be a plain name"):
        save(many_words(), filename, embedding=True)
    assert list(loras.iterdir()) == list(embeddings.iterdir()) == []


def test_the_page_of_every_file_answers(comfy_server, loras, embeddings):
    """ComfyUI shows the metadata of all that is written, small and large."""
    small, word = save(concept_for(tiny(NAME)), "small", image=image(), embedding=True)
    large, _ = save(many_words(), "large", image=image())
    words = [str(path.relative_to(embeddings)) for path in embeddings.iterdir()]
    assert word == "embedding:small"
    folder = comfy_server.base_directory / "models"
    placed = []
    for kind, source, names in (
        ("loras", loras, [small, large]),
        ("embeddings", embeddings, words),
    ):
        for name in names:
            placed.append(folder / kind / name)
            placed[-1].parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, placed[-1])
            shown = json.loads(comfy_server.get(f"/view_metadata/{kind}", filename=name))
            assert shown["format"] == "pt"
            if kind == "loras":
                assert json.loads(shown["pastiche.concept"])["name"] == "sks"
                assert shown["modelspec.trigger_phrase"] == "<sks>"
    for path in placed:
        path.unlink()


def test_a_concept_file_is_an_ordinary_lora_too():
    concept = concept_for(tiny(NAME))
    (lora,) = LoadLora.execute(save(concept)[0]).result
    assert isinstance(lora, LoraState)
    assert equal(lora, concept.lora)
    assert isinstance(load("my_concept.safetensors"), Concept)

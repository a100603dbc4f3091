"""What a concept may be, its digest, and its words as text in a file."""

import base64
import json

import pytest
import torch
from pack.lora_ops import LowRank
from pack.training.families import FAMILIES
from pack.training.files.concept import Concept, concept_name, named_once
from pack.training.files.concept_file import (
    CONCEPT,
    companion_of,
    companion_tensors,
    concept_metadata,
    concept_of,
    embedding_tensors,
    plain_rows,
)
from pack.training.files.lora_state import LoraState, lora_state


def rows(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def lora():
    factors = LowRank(rows(2, 8), rows(8, 2, seed=1))
    metadata = {"modelspec.architecture": "stable-diffusion-v1/lora", "pastiche.steps": "3"}
    return lora_state({"lora_unet_down_blocks_0_attentions_0_proj_in": factors}, metadata)


def concept(name="sks", **changes):
    values = {
        "name": name,
        "class_words": "dog",
        "embeddings": {"clip_l": rows(2, 16, 768)},
        "lora": lora(),
        "prompts": ("a photo of <sks>",),
    }
    return Concept(**{**values, **changes})


def test_a_concept_says_what_it_is():
    one = concept("<sks>")
    assert (one.name, one.words, one.layers) == ("sks", 2, 16)
    assert one.family is FAMILIES["SD1.5"]
    assert concept(lora=LoraState({})).family is None
    mean = one.mean_rows()["clip_l"]
    assert torch.allclose(mean[1], sum(one.embeddings["clip_l"][1]) / 16, atol=1e-6)


@pytest.mark.parametrize("name", ["sks", "my_dog", "my-dog.2", "Ärger", "猫", "<sks>", " sks "])
def test_names_that_can_be_written(name):
    assert concept_name(name) == name.strip().strip("<>")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "got an empty one"),
        ("<>", "got an empty one"),
        ("my dog", "with a space in it"),
        ("my\u00a0dog", "with a space in it"),
        ("a<b", "with one of"),
        ("(dog)", "with one of"),
        ("a:1.2", "with one of"),
        ("a\\b", "with one of"),
        ("a\x07b", "control character"),
        ("\ue000", "control character"),
        ("x" * 65, "got one of 65 characters"),
    ],
)
def test_names_that_cannot(name, fault):
    with pytest.raises(ValueError, match="a concept's name must be one word") as error:
        concept(name)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ({}, "must hold rows for a text encoder, got none"),
        ({"qwen": rows(2, 1, 64)}, "got some for 'qwen'"),
        ({"clip_l": rows(2, 768)}, r"shape \(word, layer, 768\), got \(2, 768\)"),
        ({"clip_l": rows(2, 16, 1280)}, r"got \(2, 16, 1280\)"),
        ({"clip_l": rows(0, 16, 768)}, r"got \(0, 16, 768\)"),
        ({"clip_l": rows(2, 16, 768) * float("nan")}, "must be finite"),
        ({"clip_l": rows(2, 16, 768) * 1e7}, "must be finite"),
        ({"clip_l": torch.ones(2, 16, 768, dtype=torch.int64)}, "must be finite"),
        (
            {"clip_l": rows(2, 11, 768), "clip_g": rows(2, 1, 1280)},
            r"got \(2, 11\) for clip_l, \(2, 1\) for clip_g",
        ),
    ],
)
def test_embeddings_that_no_prompt_could_use(embeddings, message):
    with pytest.raises(ValueError, match=message):
        concept(embeddings=embeddings, prompts=())


def test_an_ordinary_lora_has_no_words_but_prompts():
    one = concept(embeddings={}, prompts=("a photo of sks",))
    assert (one.words, one.layers, one.mean_rows()) == (0, 1, {})
    with pytest.raises(ValueError, match="must hold rows for a text encoder, got none"):
        concept_of(LoraState(one.lora, {CONCEPT: concept_metadata(one)}))


def test_the_digest_is_of_the_words_as_files_keep_them():
    one = concept()
    rounded = {"clip_l": one.embeddings["clip_l"].half().float()}
    assert concept(embeddings=rounded).digest == one.digest
    assert concept(lora=LoraState({})).digest == one.digest
    others = [
        concept("ada"),
        concept(embeddings={"clip_l": rows(2, 16, 768, seed=1)}),
        concept(embeddings={"clip_l": one.embeddings["clip_l"].flip(0)}),
        concept(embeddings={"clip_l": one.embeddings["clip_l"].reshape(16, 2, 768)}),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5


def test_names_are_told_apart_without_their_case():
    assert list(named_once([concept("Ärger"), concept("ada")])) == ["ärger", "ada"]
    with pytest.raises(ValueError, match="got <SKS> twice"):
        named_once([concept("sks"), concept("SKS")])


def written(one, companion=""):
    return LoraState(one.lora, {**one.lora.metadata, CONCEPT: concept_metadata(one, companion)})


def test_words_come_back_as_the_file_rounds_them():
    one = concept(embeddings={"clip_l": rows(2, 11, 768), "clip_g": rows(2, 11, 1280)})
    found = concept_of(written(one))
    assert (found.name, found.class_words, found.prompts) == ("sks", "dog", ("a photo of <sks>",))
    for encoder, wanted in one.embeddings.items():
        assert torch.equal(found.embeddings[encoder], wanted.half().float())
    assert found.digest == one.digest
    assert dict(found.lora) == dict(one.lora)
    assert found.lora.metadata == one.lora.metadata
    assert concept_metadata(found) == concept_metadata(one)


def test_a_companion_holds_all_rows_and_what_comfyui_reads():
    one = concept()
    tensors = companion_tensors(one)
    lora = written(one, "concepts/sks.safetensors")
    assert companion_of(lora) == "concepts/sks.safetensors"
    assert len(lora.metadata[CONCEPT]) < 300
    assert concept_of(lora, tensors).digest == one.digest
    assert torch.equal(tensors["clip_l"], embedding_tensors(one)["clip_l"])
    assert tensors["clip_l"].shape == (2, 768)
    other = companion_tensors(concept(embeddings={"clip_l": rows(2, 16, 768, seed=2)}))
    with pytest.raises(ValueError, match="must hold its own rows, got those of another concept"):
        concept_of(lora, other)


def test_an_ordinary_embedding_has_one_row_for_all_layers():
    assert plain_rows({"clip_l": rows(3, 768)}, "sks")["clip_l"].shape == (3, 1, 768)
    assert plain_rows({"clip_l": rows(768)}, "sks")["clip_l"].shape == (1, 1, 768)
    with pytest.raises(ValueError, match="must be finite"):
        plain_rows({"clip_l": rows(768) / 0}, "sks")


def entry(shape, data):
    return {"clip_l": {"shape": shape, "fp16": data}}


GOOD = base64.b64encode(bytes(2 * 2 * 768)).decode()
DAMAGED = {
    "no JSON": "{",
    "deep JSON": "[" * 100_000,
    "a list": "[]",
    "nothing": "null",
    "no name": {"class_words": "", "embeddings": entry([2, 1, 768], GOOD)},
    "a bad name": {"name": "a b", "class_words": "", "embeddings": entry([2, 1, 768], GOOD)},
    "prompts of numbers": {"name": "a", "class_words": "", "prompts": [1]},
    "no embeddings": {"name": "a", "class_words": ""},
    "a list of embeddings": {"name": "a", "class_words": "", "embeddings": []},
    "no numbers": {"name": "a", "class_words": "", "embeddings": {"clip_l": {}}},
    "a huge shape": {"name": "a", "class_words": "", "embeddings": entry([2, 10**9, 768], GOOD)},
    "a true shape": {"name": "a", "class_words": "", "embeddings": entry([True, 2, 768], GOOD)},
    "no base64": {"name": "a", "class_words": "", "embeddings": entry([2, 1, 768], "é!")},
    "too short": {"name": "a", "class_words": "", "embeddings": entry([2, 2, 768], GOOD)},
    "infinite": {
        "name": "a",
        "class_words": "",
        "embeddings": entry([1, 1, 768], base64.b64encode(b"\x00\x7c" * 768).decode()),
    },
}


@pytest.mark.parametrize("said", DAMAGED.values(), ids=DAMAGED)
def test_damaged_words_are_refused_in_one_sentence(said):
    text = said if isinstance(said, str) else json.dumps(said)
    with pytest.raises(ValueError, match=r"must .*, (but|got) .*; ") as error:
        concept_of(LoraState(lora(), {CONCEPT: text}))
    assert "\n" not in str(error.value)


def test_a_companion_without_a_name_is_refused():
    said = json.dumps({"name": "a", "class_words": "", "companion": {"digest": "x"}})
    with pytest.raises(ValueError, match="its companion file has no name"):
        companion_of(LoraState(lora(), {CONCEPT: said}))

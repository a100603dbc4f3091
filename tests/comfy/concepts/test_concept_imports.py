"""Concepts from elsewhere: the released code's files, and a LoRA with its embedding."""

import pickle
from dataclasses import replace

import folder_paths
import pytest
import safetensors.torch
import torch
from concept_case import LAYERS, NAME, apply_concepts, encode, latent
from concept_files_case import embeddings, equal, load, save, separate_folders
from concept_imports_case import (
    AUTHORS,
    DAMAGED,
    PROGRAMS,
    UNFIT,
    WRONG_PTH,
    Program,
    as_plain_pickle,
    load_damaged,
    with_embedding,
    write_authors,
)
from concept_inputs import clip_with, concept_for, rows_of, stock, tiny_sdxl_clip
from guidance_case import ksample
from lora_files_case import unet_lora
from pack.nodes.concepts.nodes_use import ApplyConcept, EncodeConceptPrompt
from pack.training.files.lora_state import LoraState
from tiny import tiny

__all__ = ["embeddings", "separate_folders"]  # fixtures


def unscaled(concept):
    """Return a concept whose factors act as they stand, as the released code's do."""
    ranks = {
        key.partition(".")[0]: float(len(tensor))
        for key, tensor in concept.lora.items()
        if "down" in key.partition(".")[2]
    }
    tensors = {
        key: torch.tensor(ranks[key.partition(".")[0]]) if key.endswith("alpha") else tensor
        for key, tensor in concept.lora.items()
    }
    return replace(concept, lora=LoraState(tensors, concept.lora.metadata))


RESEARCH = ("_lora.down.weight", "_lora.up.weight")


@pytest.mark.parametrize(
    ("spelling", "root"),
    [(AUTHORS, "text_model."), (RESEARCH, "text_model."), (AUTHORS, "")],
    ids=["main", "research", "newer transformers"],
)
def test_the_authors_files(loras, spelling, root):
    concept = unscaled(concept_for(tiny(NAME)))
    write_authors(loras / "my dog.pth", concept, spelling, root)
    assert "my dog.pth" in folder_paths.get_filename_list("loras")
    found = load("my dog.pth", class_words="dog")
    assert (found.name, found.words, found.layers) == ("my_dog", 2, LAYERS)
    assert found.family.name == "SD1.5"
    assert equal(found.embeddings, concept.embeddings)
    assert equal(found.lora, concept.lora)
    pictures = []
    for one in (found, replace(concept, name="my_dog")):
        model, clip = apply_concepts(tiny(NAME), [one])
        prompt = encode(clip, [one], "a <my_dog>")
        pictures.append(ksample(model, prompt, stock(clip, "red"), latent()))
    assert torch.equal(*pictures)
    saved = load(save(found)[0])
    assert saved.digest == found.digest
    assert equal(saved.lora, found.lora)


@pytest.mark.parametrize("write", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_in_a_pth_never_runs(loras, tmp_path, write):
    proof = tmp_path / "proof"
    write(loras / "evil.pth", proof)
    with pytest.raises(ValueError, match=r"'evil\.pth' must hold tensors alone, .* nothing in it"):
        load("evil.pth")
    assert not proof.exists()
    # The file would have run elsewhere: the test is of a real one.
    with open(loras / "evil.pth", "rb") as file:
        if write is as_plain_pickle:
            pickle.load(file)
        else:
            torch.load(file, weights_only=False)
    assert proof.exists()


@pytest.mark.parametrize(("changes", "message"), WRONG_PTH.values(), ids=WRONG_PTH)
def test_other_pth_files_are_refused(loras, changes, message):
    write_authors(loras / "odd.pth", concept_for(tiny(NAME)), **changes)
    with pytest.raises(ValueError, match=message) as error:
        load("odd.pth", name="odd")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spoil", DAMAGED.values(), ids=DAMAGED)
def test_damaged_pth_files_are_refused(loras, spoil):
    with pytest.raises(ValueError, match=r"'cut\.pth' must ") as error:
        load_damaged(loras, spoil)
    assert "\n" not in str(error.value)


def test_a_pth_of_something_else_is_refused(loras):
    torch.save([1, 2], loras / "list.pth")
    with pytest.raises(ValueError, match="it has no new_concept_embedding"):
        load("list.pth")


class TestALoraAndAnEmbedding:
    def test_of_sd15(self, loras, embeddings):
        lora = concept_for(tiny(NAME)).lora
        safetensors.torch.save_file(dict(lora), str(loras / "plain.safetensors"))
        rows = rows_of(1, words=3, seed=5)["clip_l"][:, 0].contiguous()
        safetensors.torch.save_file({"emb_params": rows}, str(embeddings / "rex.safetensors"))
        found = load("plain.safetensors", "rex.safetensors", class_words="dog")
        assert (found.name, found.words, found.layers) == ("rex", 3, 1)
        model, clip = apply_concepts(tiny(NAME), [found])
        text = clip_with(embeddings, clip)
        prompt = encode(text, [found], "a (<rex>:1.2) , red")
        wanted = stock(text, "a (embedding:rex :1.2) , red")
        assert torch.equal(prompt[0][0], wanted[0][0])
        drawn = [ksample(model, one, [], latent(), cfg=1.0) for one in (prompt, wanted)]
        assert torch.equal(*drawn)
        saved = load(save(found, model=tiny(NAME))[0])
        assert (saved.name, saved.layers, saved.family.name) == ("rex", 1, "SD1.5")

    def test_of_a1111_as_a_pickle_of_numbers(self, loras, embeddings):
        safetensors.torch.save_file(
            dict(concept_for(tiny(NAME)).lora), str(loras / "plain.safetensors")
        )
        rows = rows_of(1, words=2)["clip_l"][:, 0].clone()
        torch.save({"string_to_param": {"*": rows}, "name": "x"}, embeddings / "old.pt")
        found = load("plain.safetensors", "old.pt", name="rex")
        assert torch.equal(found.embeddings["clip_l"][:, 0], rows)
        assert found.name == "rex"

    def test_of_sdxl(self, loras, embeddings):
        metadata = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
        lora = dict(unet_lora(tiny("sdxl")))
        safetensors.torch.save_file(lora, str(loras / "plain.safetensors"), metadata)
        rows = {
            encoder: one[:, 0].contiguous()
            for encoder, one in rows_of(1, ("clip_l", "clip_g"), words=3).items()
        }
        safetensors.torch.save_file(rows, str(embeddings / "rex.safetensors"))
        found = load("plain.safetensors", "rex.safetensors")
        assert set(found.embeddings) == {"clip_l", "clip_g"}
        clip = clip_with(embeddings, tiny_sdxl_clip())
        ((context, options),) = EncodeConceptPrompt.execute(clip, {"a": (found,)}, "<rex>, red")[0]
        ((wanted, wanted_options),) = stock(clip, "embedding:rex , red")
        assert torch.equal(context, wanted)
        assert torch.equal(options["pooled_output"], wanted_options["pooled_output"])
        assert ApplyConcept.execute(tiny("sdxl"), clip, {"a": (found,)}, 1.0, 1.0)


@pytest.mark.parametrize(("embedding", "message"), UNFIT.values(), ids=UNFIT)
def test_a_lora_and_an_embedding_that_don_t_belong_together(embeddings, embedding, message):
    with pytest.raises(ValueError, match=message) as error:
        with_embedding(embeddings, *embedding)
    assert "\n" not in str(error.value)


def test_a_program_in_an_embedding_never_runs(embeddings, tmp_path):
    with pytest.raises(ValueError, match=r"got 'evil\.pt', which has none or cannot be read"):
        with_embedding(embeddings, "evil.pt", {"*": Program(tmp_path / "proof")})
    assert not (tmp_path / "proof").exists()

"""Concepts from elsewhere: the released code's files, and a LoRA with its embedding."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import comfy.utils
import folder_paths
import pytest
import safetensors.torch
import torch
from concept_case import LAYERS, NAME, applied, encode, latent
from concept_inputs import clip_with, concept_for, rows_of, stock, tiny_sdxl_clip
from guidance_case import ksample
from pack.nodes.concepts.nodes_use import ApplyConcept, EncodeConceptPrompt
from pack.training.files.lora_state import LoraState
from test_concept_files import _own_folders, embeddings, equal, load, save
from test_lora_files import unet_lora
from tiny import tiny

__all__ = ["_own_folders", "embeddings"]  # fixtures


def diffusers_tensors(concept, spelling):
    """Return a concept's LoRA under the released code's keys, as the documentation has them."""
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


AUTHORS = (".lora_down.weight", ".lora_up.weight")


RESEARCH = ("_lora.down.weight", "_lora.up.weight")


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
        model, clip = applied(tiny(NAME), [one])
        prompt = encode(clip, [one], "a <my_dog>")
        pictures.append(ksample(model, prompt, stock(clip, "red"), latent()))
    assert torch.equal(*pictures)
    saved = load(save(found)[0])
    assert saved.digest == found.digest
    assert equal(saved.lora, found.lora)


class Program:
    """What a file may hold that runs when it is unpickled."""

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
    "beside tensors": hidden_in(
        lambda program: {
            "new_concept_embedding": {"<a>": torch.ones(4, 768), "<b>": program},
            "text_encoder": {},
            "unet": {},
        }
    ),
    "a plain pickle": as_plain_pickle,
}


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


@pytest.mark.parametrize(("changes", "message"), WRONG_PTH.values(), ids=WRONG_PTH)
def test_other_pth_files_are_refused(loras, changes, message):
    write_authors(loras / "odd.pth", concept_for(tiny(NAME)), **changes)
    with pytest.raises(ValueError, match=message) as error:
        load("odd.pth", name="odd")
    assert "\n" not in str(error.value)


DAMAGED = {
    "an empty .pth": lambda whole: b"",
    "a text under that name": lambda whole: b"hello",
    "a .pth of a hundred bytes": lambda whole: whole[:100],
    "half a .pth": lambda whole: whole[: len(whole) // 2],
}


def load_damaged(folder, spoil):
    """Write a concept of the released code, spoil its bytes, and load it."""
    write_authors(folder / "cut.pth", concept_for(tiny(NAME)))
    (folder / "cut.pth").write_bytes(spoil((folder / "cut.pth").read_bytes()))
    load("cut.pth")


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
        model, clip = applied(tiny(NAME), [found])
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


def with_embedding(folder, name, tensors):
    """Load a LoRA that says its base with an embedding of these tensors, or of these bytes."""
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


@pytest.mark.parametrize(("embedding", "message"), UNFIT.values(), ids=UNFIT)
def test_a_lora_and_an_embedding_that_don_t_belong_together(embeddings, embedding, message):
    with pytest.raises(ValueError, match=message) as error:
        with_embedding(embeddings, *embedding)
    assert "\n" not in str(error.value)


def test_a_program_in_an_embedding_never_runs(embeddings, tmp_path):
    with pytest.raises(ValueError, match=r"got 'evil\.pt', which has none or cannot be read"):
        with_embedding(embeddings, "evil.pt", {"*": Program(tmp_path / "proof")})
    assert not (tmp_path / "proof").exists()

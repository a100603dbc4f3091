"""Concepts that Apply Concept refuses."""

import torch
from concept_case import LAYERS, NAME, apply_concepts, encode, latent, wires
from concept_inputs import concept_for, rows_of, stock
from guidance_case import ksample
from pack.nodes.concepts.nodes_use import ApplyConcept
from pack.training.files.concept import Concept
from pack.training.files.lora_state import LoraState
from tiny import tiny


def three_concepts():
    """Return three concepts of the tiny model with four contexts."""
    model = tiny(NAME)
    return [concept_for(model, name, seed=seed) for seed, name in enumerate(("sks", "ada", "tom"))]


def renamed(concept, **changes):
    values = {
        "name": concept.name,
        "class_words": concept.class_words,
        "embeddings": concept.embeddings,
        "lora": concept.lora,
    }
    return Concept(**{**values, **changes})


def another_concept(concepts):
    model, clip = apply_concepts(tiny(NAME), concepts[:1])
    ksample(model, encode(clip, concepts[1:2], "a <ada>"), [], latent(), cfg=1.0)


def another_training(concepts):
    model, clip = apply_concepts(tiny(NAME), concepts[:1])
    prompt = encode(clip, [concept_for(tiny(NAME), seed=9)])
    ksample(model, prompt, [], latent(), cfg=1.0)


def another_training_in_the_negative(concepts):
    model, clip = apply_concepts(tiny(NAME), concepts[:1])
    prompt = encode(clip, [concept_for(tiny(NAME), seed=9)])
    ksample(model, stock(clip, "a"), prompt, latent())


def another_model(concepts):
    shared = renamed(concepts[0], embeddings=rows_of(1), lora=LoraState({}))
    other = concept_for(tiny("sd15_middle"), "two")
    both = [shared, other]
    _, clip = apply_concepts(tiny("sd15_middle"), both)
    prompt = encode(clip, both, "a <sks> <two>")
    layered = renamed(other, embeddings=rows_of(1), lora=LoraState({}))
    model, _ = apply_concepts(tiny(NAME), [shared, layered])
    ksample(model, prompt, [], latent(), cfg=1.0)


def of_shape(concept, rows):
    apply_concepts(tiny(NAME), [renamed(concept, embeddings=rows)])


def misfit(concepts):
    key = next(key for key in concepts[0].lora if key.endswith("lora_up.weight"))
    lora = LoraState({**concepts[0].lora, key: torch.zeros(7, 4)}, concepts[0].lora.metadata)
    apply_concepts(tiny(NAME), [renamed(concepts[0], lora=lora)])


def one_name_after_the_other(concepts):
    model, clip = apply_concepts(tiny(NAME), concepts[:1])
    apply_concepts(model, [renamed(concepts[1], name="SKS")], clip=clip)


REFUSED = {
    "a prompt of another concept": (another_concept, "got <ada> for a MODEL with <sks>"),
    "a prompt of another training": (another_training, "got another training of <sks>"),
    "the same in the negative": (
        another_training_in_the_negative,
        "got another training of <sks>",
    ),
    "a prompt of another model": (another_model, "another training of <two>"),
    "a concept of another architecture": (
        lambda concepts: apply_concepts(tiny("sdxl"), concepts[:1]),
        r"made for this model, SDXL, got a concept made for SD1\.5",
    ),
    "a concept with other rows": (
        lambda concepts: of_shape(concepts[0], rows_of(16)),
        "which reads 4 contexts, got a concept with 16 rows",
    ),
    "a concept of another text encoder": (
        lambda concepts: of_shape(concepts[0], rows_of(LAYERS, ("clip_l", "clip_g"))),
        r"for this CLIP \(clip_l\), got a concept for clip_l, clip_g",
    ),
    "a LoRA that does not fit": (misfit, "whose shapes differ in 1 of"),
    "the same concept twice": (
        lambda concepts: apply_concepts(tiny(NAME), [concepts[0], concepts[0]]),
        "name of its own, got <sks> twice",
    ),
    "the same name in two nodes": (one_name_after_the_other, "name of its own, got <SKS> twice"),
    "no CLIP": (
        lambda concepts: ApplyConcept.execute(tiny(NAME), None, wires(concepts), 1.0, 1.0),
        "connect the checkpoint's CLIP",
    ),
}

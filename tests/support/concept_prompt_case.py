"""Prompts with concepts, and prompts that are refused."""

from concept_inputs import concept_for
from pack.nodes.concepts.nodes_use import EncodeConceptPrompt
from pack.nodes.text.concept_prompt import PROMPT
from tiny import tiny

LAYERS = 4


def concept(name="sks", seed=0, layers=LAYERS, **more):
    return concept_for(tiny("sd15_layers"), name, seed=seed, layers=layers, lora=False, **more)


def encoded(clip, concepts, text):
    """Return context, layers and options of the one entry that the node returns."""
    wires = {f"concept{number}": (one,) for number, one in enumerate(concepts)}
    ((context, options),) = EncodeConceptPrompt.execute(clip, wires, text)[0]
    return context, options[PROMPT].layers, options


BAD = {
    "a name that no concept has": (
        "a <nobody> dog",
        [concept],
        "every <name> in the prompt must be .*<nobody>.*<sks>",
    ),
    "the same concept twice": (
        "a <sks> dog",
        [concept, concept],
        "name of its own, got <sks> twice",
    ),
    "BREAK in brackets": ("(a <sks> BREAK b:1.2)", [concept], "BREAK must stand outside"),
    "concepts of two models": (
        "<sks> <ada>",
        [concept, lambda: concept("ada", 1, layers=16)],
        "must be made for one model, got <sks> for 4 layers and <ada> for 16",
    ),
    "a concept of another text encoder": (
        "a <sks>",
        [lambda: concept(encoders=("clip_l", "clip_g"))],
        r"must be made for this CLIP \(clip_l\), got a concept for clip_l, clip_g",
    ),
    "a concept of none of the text encoders": (
        "a <sks>",
        [lambda: concept(encoders=("t5xxl",))],
        r"must be made for this CLIP \(clip_l\), got a concept for t5xxl",
    ),
}

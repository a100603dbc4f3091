"""Inputs that Concept for Fusion refuses."""

from concept_inputs import concept_for
from fusion_inputs import NAME, plain_lora, queue_fusion, wordless
from pack.nodes.fusion.nodes import ConceptForFusion
from pack.training.files.lora_state import LoraState
from tiny import tiny


def offered(wires, inputs):
    """Run Concept for Fusion, with LoRAs and concepts called by what they are."""
    known = {
        "sks": wires[0],
        "plain": wires[1][0].lora,
        "unsaid": LoraState(wires[1][0].lora, {}),
    }
    values = {
        "trigger_prompts": "" if inputs.get("lora") == "unsaid" else "a boat",
        **{"strength": 1.0, "weight": 1.0, "name": ""},
        **{
            key: known.get(value, value) if isinstance(value, str) else value
            for key, value in inputs.items()
        },
    }
    return ConceptForFusion.execute(**values)


OFFERED = {
    "neither a LoRA nor a concept": ({}, "either a LoRA or a concept must be connected, got none"),
    "a LoRA and a concept": ({"lora": "plain", "concept": "sks"}, "must be connected, got both"),
    "a LoRA without prompts": (
        {"lora": "unsaid"},
        "trigger_prompts must say how the LoRA is called up, got none",
    ),
    "a negative weight": (
        {"lora": "plain", "weight": -1.0},
        "weight must be 0 or a positive number, got -1.0",
    ),
    "a strength that is no number": (
        {"lora": "plain", "strength": float("nan")},
        "strength must be a finite number, got nan",
    ),
}


def uncalled(wires):
    """Offer a LoRA with prompts that have none of the words its file names."""
    lora = LoraState(wires[1][0].lora, {"modelspec.trigger_phrase": "zwx boat"})
    wordless(lora, "a photo of a ship")


def offered_again(lora, words="both"):
    """Offer a fused file as an ordinary LoRA, without the prompts that the file may hold."""
    return ConceptForFusion.execute("", 1.0, 1.0, words, lora=lora)[0]


def third():
    lora = plain_lora(tiny(NAME), 7, text=False)
    return wordless(lora, "a tower", name="tower")


def fused_twice(wires):
    """Fuse two concepts, and what comes of them with a third; return the file's wire as well."""
    again = offered_again(queue_fusion(wires, steps=1).result[2])
    return again, queue_fusion([again, third()], steps=1).result


def pair_of_words(wires):
    return [wires[0], (concept_for(tiny(NAME), "ada", seed=9),)]


# Of the words of all, one carries the change of all.
FUSED = {
    "the concepts that a fusion gave": (
        list,
        lambda out: queue_fusion([out[3]]),
        "a change of its own, got 'boat', which is part of a fusion",
    ),
    "the same beside a third": (
        list,
        lambda out: queue_fusion([(out[3][0], third()[0], out[3][1])]),
        "a change of its own, got 'boat', which is part of a fusion",
    ),
    "the same of trained concepts alone": (
        pair_of_words,
        lambda out: queue_fusion([out[3]]),
        "got 'ada', which is part of a fusion; connect the concepts",
    ),
    "a fused file of trained concepts, without prompts": (
        pair_of_words,
        lambda out: offered_again(out[2]),
        "a fused file whose words need their concepts",
    ),
}

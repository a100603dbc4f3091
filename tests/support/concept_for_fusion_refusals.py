"""Inputs that Concept for Fusion refuses."""

from concept_inputs import concept_for
from fusion_inputs import NAME, lora_to_fuse, plain_lora, queue_fusion
from pack.nodes.fusion.nodes import ConceptForFusion
from pack.training.files.lora_state import LoraState
from tiny import tiny


def run_concept_for_fusion(wires, inputs):
    """Run Concept for Fusion; the inputs name LoRAs and concepts by the keys below."""
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


REFUSED_CONCEPTS = {
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


def prompts_without_trigger(wires):
    """Run the node on a LoRA with prompts that have none of the trigger words in its file."""
    lora = LoraState(wires[1][0].lora, {"modelspec.trigger_phrase": "zwx boat"})
    lora_to_fuse(lora, "a photo of a ship")


def fused_file_as_lora(lora, words="both"):
    """Run the node on a fused file as an ordinary LoRA, without trigger prompts."""
    return ConceptForFusion.execute("", 1.0, 1.0, words, lora=lora)[0]


def third_lora():
    lora = plain_lora(tiny(NAME), 7, text=False)
    return lora_to_fuse(lora, "a tower", name="tower")


def fuse_twice(wires):
    """Fuse two concepts, then the fused LoRA with a third; return its wire and the result."""
    again = fused_file_as_lora(queue_fusion(wires, steps=1).result[2])
    return again, queue_fusion([again, third_lora()], steps=1).result


def two_trained_concepts(wires):
    return [wires[0], (concept_for(tiny(NAME), "ada", seed=9),)]


# In a fusion, one of the concepts carries the fused change of all of them.
REFUSED_AGAIN = {
    "the concepts that a fusion gave": (
        list,
        lambda out: queue_fusion([out[3]]),
        "a change of its own, got 'boat', which is part of a fusion",
    ),
    "the same with a third": (
        list,
        lambda out: queue_fusion([(out[3][0], third_lora()[0], out[3][1])]),
        "a change of its own, got 'boat', which is part of a fusion",
    ),
    "the same of trained concepts alone": (
        two_trained_concepts,
        lambda out: queue_fusion([out[3]]),
        "got 'ada', which is part of a fusion; connect the concepts",
    ),
    "a fused file of trained concepts, without prompts": (
        two_trained_concepts,
        lambda out: fused_file_as_lora(out[2]),
        "a fused file whose words need their concepts",
    ),
}

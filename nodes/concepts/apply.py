"""Concepts on a MODEL and its CLIP: their LoRAs, and a sampler that gives every layer its context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...training.files.concept import Concept, named_once
from ..bridge.families import base_name, known_family
from ..bridge.node_output import warn_on_node
from ..lora.apply import apply_lora
from ..text.concept_prompt import PROMPT, ConceptPrompt, require_text_encoders
from ..text.layer_contexts import KEY, LAYERS, CONDLayers, context_layers, read_layers

Entry = dict[str, Any]
"""A conditioning entry inside a sampler."""


def apply_concepts(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    concepts: Sequence[Concept],
    strength_model: float,
    strength_clip: float,
) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """Return the model and the CLIP with the concepts' LoRAs on them.

    Every sampler of that model reads the prompts of Encode Concept Prompt layer by layer. With both
    strengths at 0 the weights are the base's, and the words' rows alone carry the concepts.

    Args:
        model: The base that the concepts were made for; may have concepts already.
        clip: Its text encoder.
        concepts: In any order; each has its own strength, which multiplies those below.
        strength_model: Of the LoRAs on the denoiser.
        strength_clip: Of the LoRAs on the text encoder.

    Raises:
        ValueError: A concept was made for another base, or one is applied twice.
    """
    if clip is None:
        raise ValueError(
            "concepts need the text encoder that reads their words, got none; connect the "
            "checkpoint's CLIP"
        )
    before = model.get_wrappers(WrappersMP.PREPARE_SAMPLING, KEY)
    on_it = before[0].concepts if before else ()
    count = context_layers(model)
    named_once([*on_it, *concepts])
    for concept in concepts:
        _require_base(model, clip, concept, count)
    patched, text = model.clone(), clip
    for concept in concepts:
        if concept.lora:
            strengths = strength_model * concept.strength, strength_clip * concept.strength
            patched, text = apply_lora(patched, text, concept.lora, *strengths)
    # A LoRA without strength gives back what it was given: never the node's own input.
    patched = patched.clone()
    for kind in (WrappersMP.PREPARE_SAMPLING, WrappersMP.DIFFUSION_MODEL):
        patched.remove_wrappers_with_key(kind, KEY)
    prepare = ConceptSampling((*on_it, *(_without_pictures(one) for one in concepts)), count)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, prepare)
    if count > 1:
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, read_layers)
    return patched, text


@dataclass(frozen=True)
class ConceptSampling:
    """The PREPARE_SAMPLING wrapper of a MODEL with concepts: all that it knows of them.

    Args:
        concepts: In the order of their nodes.
        layers: Of the model's contexts.
    """

    concepts: tuple[Concept, ...]
    layers: int

    def __call__(
        self,
        executor: Callable[..., Any],
        model: ModelPatcher,
        noise_shape: Sequence[int],
        conds: dict[str, list[Entry]],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Give every entry of this run a context per layer, if any prompt has them.

        ``conds`` are the sampler's own copies and end with the run.
        """
        for entries in conds.values():
            for entry in entries:
                self._require_known(entry.get(PROMPT))
        if any(_has_layers(entry) for entries in conds.values() for entry in entries):
            for name, entries in conds.items():
                conds[name] = [_layered(entry, self.layers) for entry in entries]
        return executor(model, noise_shape, conds, *args, **kwargs)

    def _require_known(self, prompt: ConceptPrompt | None) -> None:
        if prompt is None:
            return
        on_it = {concept.name: concept.digest for concept in self.concepts}
        for name, digest in prompt.concepts:
            if name not in on_it:
                raise ValueError(
                    "a prompt must be encoded for concepts that are on the MODEL, got "
                    f"<{name}> for a MODEL with {', '.join(f'<{one}>' for one in on_it)}; connect "
                    "the same concepts to Apply Concept and to Encode Concept Prompt"
                )
            if on_it[name] != digest:
                raise ValueError(
                    "a prompt must be encoded for the very concept that is on the MODEL, got "
                    f"another training of <{name}>; connect the same concept to Apply Concept and "
                    "to Encode Concept Prompt"
                )
        if prompt.layers is not None and prompt.layers.shape[1] != self.layers:
            raise ValueError(
                f"a prompt must be encoded for this MODEL, which reads {self.layers} contexts, got "
                f"one with {prompt.layers.shape[1]}; connect the MODEL that the concepts were "
                "made for"
            )


def _require_base(model: ModelPatcher, clip: comfy.sd.CLIP, concept: Concept, layers: int) -> None:
    family, made_for = known_family(model), concept.family
    base = base_name(model, family)
    if family is not None and made_for is not None and family != made_for:
        raise ValueError(
            f"<{concept.name}> must be made for this model, {base}, got a concept made for "
            f"{made_for.name}; connect its own base model"
        )
    if concept.layers not in (1, layers):
        raise ValueError(
            f"<{concept.name}> must be made for this model, {base}, which reads {layers} contexts, "
            f"got a concept with {concept.layers} rows per word; connect its own base model"
        )
    if concept.embeddings:
        require_text_encoders(clip, concept)


def _without_pictures(concept: Concept) -> Concept:
    """Return what a MODEL needs to know of a concept: the node cache keeps it alive."""
    return Concept(concept.name, concept.class_words, concept.embeddings, prompts=concept.prompts)


def _has_layers(entry: Entry) -> bool:
    prompt = entry.get(PROMPT)
    return prompt is not None and prompt.layers is not None


def _layered(entry: Entry, layers: int) -> Entry:
    """Return an entry with its contexts, equal ones for a prompt that has only one."""
    context = entry.get("cross_attn")
    if context is None:
        return entry
    prompt = entry.get(PROMPT)
    own = _own_layers(context, prompt) if _has_layers(entry) else None
    if own is None:
        own = context.unsqueeze(1).expand(-1, layers, -1, -1)
    return {**entry, "model_conds": {**entry["model_conds"], LAYERS: CONDLayers(own)}}


def _own_layers(context: Tensor, prompt: ConceptPrompt) -> Tensor | None:
    """Return the contexts that were encoded, followed by what other nodes have appended.

    None if another node has changed the text otherwise: then its text is read in every layer.

    Args:
        context: The ordinary one as it stands now, ``(batch, token, dim)``.
        prompt: As it was encoded.
    """
    encoded = prompt.context
    same = context.shape[0] == encoded.shape[0] and context.shape[2] == encoded.shape[2]
    if same and torch.equal(context[:, : encoded.shape[1]], encoded):
        appended = context[:, None, encoded.shape[1] :]
        return torch.cat([prompt.layers, appended.expand(-1, prompt.layers.shape[1], -1, -1)], 2)
    if context.any():  # all zeros: Conditioning Zero Out, which is meant
        warn_on_node(
            "another node has changed the prompt of "
            f"{', '.join(f'<{name}>' for name, _ in prompt.concepts)} since it was encoded; all "
            "layers read the changed text, without rows of their own"
        )
    return None

"""Apply concepts to a MODEL and its CLIP: their LoRAs, and their contexts for every layer."""

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

Entry = dict[str, Any]  # a conditioning entry inside a sampler


def apply_concepts(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    concepts: Sequence[Concept],
    strength_model: float,
    strength_clip: float,
) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """Return the model and the CLIP with the concepts' LoRAs applied.

    Every sampler of that model gives each layer its own context of a prompt from Encode Concept
    Prompt. With both strengths at 0 the weights are the base's, and only the words' embeddings
    carry the concepts.

    Args:
        model: Base model for which the concepts were made; it may already have concepts.
        clip: The base's text encoder.
        concepts: Concepts to apply; the strength of each multiplies the two below.
        strength_model: Strength of the LoRAs on the denoiser.
        strength_clip: Strength of the LoRAs on the text encoder.

    Raises:
        ValueError: A concept was made for another base, or one is applied twice.
    """
    if clip is None:
        raise ValueError(
            "concepts need the text encoder that reads their words, got none; connect the "
            "checkpoint's CLIP"
        )
    applied = _applied_concepts(model)
    count = context_layers(model)
    named_once([*applied, *concepts])
    for concept in concepts:
        _require_base(model, clip, concept, count)
    patched, text = model.clone(), clip
    for concept in concepts:
        if concept.lora:
            patched, patched_text = apply_lora(
                patched,
                text,
                concept.lora,
                strength_model * concept.strength,
                strength_clip * concept.strength,
            )
            assert patched_text is not None  # it is None only without a CLIP
            text = patched_text
    # ``apply_lora`` returns its own input at strength 0, and the node's input must not change.
    patched = patched.clone()
    for kind in (WrappersMP.PREPARE_SAMPLING, WrappersMP.DIFFUSION_MODEL):
        patched.remove_wrappers_with_key(kind, KEY)
    prepare = ConceptSampling((*applied, *(_words_only(one) for one in concepts)), count)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, prepare)
    if count > 1:
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, read_layers)
    return patched, text


@dataclass(frozen=True)
class ConceptSampling:
    """The PREPARE_SAMPLING wrapper of a MODEL with concepts.

    Args:
        concepts: Concepts on the MODEL, in the order of their nodes.
        layers: Number of contexts that the MODEL reads.
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
        """Give every conditioning entry a context per layer, if any prompt of this run has them.

        ``conds`` are the sampler's own copies, so they are changed in place.
        """
        for entries in conds.values():
            for entry in entries:
                self._require_known(entry.get(PROMPT))
        if any(_has_layers(entry) for entries in conds.values() for entry in entries):
            for name, entries in conds.items():
                conds[name] = [_with_layer_contexts(entry, self.layers) for entry in entries]
        return executor(model, noise_shape, conds, *args, **kwargs)

    def _require_known(self, prompt: ConceptPrompt | None) -> None:
        """Raise unless a prompt was encoded for the concepts and the layers of this MODEL."""
        if prompt is None:
            return
        digests = {concept.name: concept.digest for concept in self.concepts}
        for name, digest in prompt.concepts:
            if name not in digests:
                applied = ", ".join(f"<{other}>" for other in digests)
                raise ValueError(
                    "a prompt must be encoded for concepts that are on the MODEL, got "
                    f"<{name}> for a MODEL with {applied}; connect the same concepts to Apply "
                    "Concept and to Encode Concept Prompt"
                )
            if digests[name] != digest:
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


def _applied_concepts(model: ModelPatcher) -> tuple[Concept, ...]:
    """Return the concepts that a MODEL already has."""
    for wrapper in model.get_wrappers(WrappersMP.PREPARE_SAMPLING, KEY):
        if isinstance(wrapper, ConceptSampling):
            return wrapper.concepts
    return ()


def _require_base(model: ModelPatcher, clip: comfy.sd.CLIP, concept: Concept, layers: int) -> None:
    """Raise unless a concept was made for this MODEL and for the text encoders of this CLIP."""
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


def _words_only(concept: Concept) -> Concept:
    """Return a concept without its LoRA and pictures, which the node cache would keep in memory."""
    return Concept(concept.name, concept.class_words, concept.embeddings, prompts=concept.prompts)


def _has_layers(entry: Entry) -> bool:
    prompt = entry.get(PROMPT)
    return prompt is not None and prompt.layers is not None


def _with_layer_contexts(entry: Entry, layers: int) -> Entry:
    """Return an entry with one context per layer; a prompt with a single context repeats it."""
    context = entry.get("cross_attn")
    if context is None:
        return entry
    prompt: ConceptPrompt | None = entry.get(PROMPT)
    contexts = None if prompt is None else _layer_contexts(context, prompt)
    if contexts is None:
        contexts = context.unsqueeze(1).expand(-1, layers, -1, -1)
    return {**entry, "model_conds": {**entry["model_conds"], LAYERS: CONDLayers(contexts)}}


def _layer_contexts(context: Tensor, prompt: ConceptPrompt) -> Tensor | None:
    """Return a prompt's contexts by layer, followed by the tokens that other nodes have appended.

    None is returned if the prompt has a single context, or if another node has changed the context
    in another way; then every layer reads the changed context.

    Args:
        context: Present context of the entry, ``(batch, token, dim)``.
        prompt: The prompt's contexts as they were encoded.
    """
    layers, encoded = prompt.layers, prompt.context
    if layers is None:
        return None
    same = context.shape[0] == encoded.shape[0] and context.shape[2] == encoded.shape[2]
    if same and torch.equal(context[:, : encoded.shape[1]], encoded):
        appended = context[:, None, encoded.shape[1] :]
        return torch.cat([layers, appended.expand(-1, layers.shape[1], -1, -1)], 2)
    if context.any():  # all zeros come from Conditioning Zero Out and are intended
        warn_on_node(
            "another node has changed the prompt of "
            f"{', '.join(f'<{name}>' for name, _ in prompt.concepts)} since it was encoded; all "
            "layers read the changed text, without rows of their own"
        )
    return None

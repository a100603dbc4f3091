"""The concept nodes in short form, and hooks that serve as their oracle under a sampler."""

from contextlib import ExitStack, contextmanager

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from pack.nodes.concepts.nodes_use import ApplyConcept, EncodeConceptPrompt
from pack.nodes.text.concept_prompt import PROMPT
from tiny import tiny, tiny_clip, tiny_latent

NAME, LAYERS = "sd15_layers", 4
EXACT = 1e-5  # relative error of the latent after four steps in fp32
PROMPT_TEXT, NEGATIVE = "a photo of <sks> on a beach", "blurry, red"
LONG = "a very long prompt of many words about a house, a tree, a star and a ball, " * 6


def wires(concepts):
    return {f"concept{number}": (one,) for number, one in enumerate(concepts)}


def apply_concepts(model, concepts, strength_model=1.0, strength_clip=1.0, clip=None):
    clip = tiny_clip() if clip is None else clip
    return ApplyConcept.execute(model, clip, wires(concepts), strength_model, strength_clip).result


def encode(clip, concepts, text=PROMPT_TEXT):
    return EncodeConceptPrompt.execute(clip, wires(concepts), text)[0]


def latent(batch=1, name=NAME, side=8):
    return torch.zeros_like(tiny_latent(tiny(name), side, side, batch=batch)["samples"])


def contexts_of(conditioning):
    """Return a prompt's contexts, ``(layer, token, dim)``; all layers share one that has no layers."""
    ((context, options),) = conditioning
    layers = options[PROMPT].layers if PROMPT in options else None
    return context.expand(LAYERS, -1, -1) if layers is None else layers[0]


@contextmanager
def contexts_by_hook(model, by_list):
    """Replace the context of every cross-attention by hooks, depending on the list of each row."""
    transformers = [
        m for m in model.model.diffusion_model.modules() if isinstance(m, SpatialTransformer)
    ]

    def exchanger(layer):
        def exchange(module, args, kwargs):
            lists = kwargs["transformer_options"]["cond_or_uncond"]
            rows = args[0].shape[0] // len(lists)
            tokens = kwargs["context"].shape[1]
            own = [by_list[i][layer] for i in lists]
            own = [context.repeat(tokens // len(context), 1) for context in own]
            kwargs["context"] = torch.stack(own).repeat_interleave(rows, 0)
            return args, kwargs

        return exchange

    with ExitStack() as stack:
        for layer, transformer in enumerate(transformers):
            for block in transformer.transformer_blocks:
                hook = block.attn2.register_forward_pre_hook(exchanger(layer), with_kwargs=True)
                stack.callback(hook.remove)
        yield

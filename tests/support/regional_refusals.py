"""Inputs that the nodes for regions refuse."""

import comfy.hooks
import comfy.ldm.flux.math
import comfy.ldm.modules.attention
import comfy.model_management
import torch
from comfy import model_base
from comfy_extras.nodes_hooks import SetClipHooks
from concept_inputs import concept_for
from pack.lora_ops import Region
from pack.nodes.regions.nodes_apply import RegionPrompt
from regional_case import LEFT, WHOLE, cond, ksample, latent_of, lora_of, region_prompts, regional
from tiny import tiny, tiny_clip


def prompt(region="left", text="", negative="", before=None, **more):
    return RegionPrompt.execute(region, text, negative, "", 1.0, before, **more)[0]


def unknown_concept():
    concept = concept_for(tiny("sd15_layers"), "sks")
    prompt(text="a <cat>", clip=tiny_clip(), concepts={"concept0": (concept,)})


def lora_hooks():
    return comfy.hooks.create_hook_lora(dict(lora_of("sd15")), 1.0, 1.0)


def scheduled_clip():
    hooks = lora_hooks()
    frames = comfy.hooks.HookKeyframeGroup()
    frames.add(comfy.hooks.HookKeyframe(strength=1.0))
    frames.add(comfy.hooks.HookKeyframe(strength=0.5, start_percent=0.5))
    hooks.set_keyframes_on_hooks(frames)
    return SetClipHooks().apply_hooks(tiny_clip(), True, True, hooks)[0]


PROMPTS = {
    "text without CLIP": (
        lambda: prompt(text="a cat"),
        "must have a CLIP that reads its text, got none",
    ),
    "a negative text without CLIP": (
        lambda: prompt(negative="a cat"),
        "must have a CLIP that reads its negative",
    ),
    "no name": (
        lambda: prompt(" ", "a cat", clip=tiny_clip()),
        "must name its region, got an empty name",
    ),
    "two prompts for one region": (
        lambda: prompt("left", before=prompt("left", "a cat", clip=tiny_clip())),
        'each region must have one prompt, got two for "left"',
    ),
    "text and CONDITIONING": (
        lambda: prompt(text="a cat", clip=tiny_clip(), positive_conditioning=cond("sd15")),
        "its text as a text or as CONDITIONING, got both",
    ),
    "combined CONDITIONING": (
        lambda: prompt(positive_conditioning=[*cond("sd15"), *cond("sd15", 1)]),
        "must be one prompt, got 2 combined parts",
    ),
    "a concept that is not connected": (
        unknown_concept,
        "every <name> in the prompt must be a connected concept",
    ),
    "a CLIP with scheduled hooks": (
        lambda: prompt(text="a cat", clip=scheduled_clip()),
        "must be one prompt, got 2 combined parts",
    ),
}


def with_mask():
    return [[cond("sd15")[0][0], {"mask": torch.ones(1, 8, 8)}]]


def with_hooks():
    return comfy.hooks.set_hooks_for_conditioning(cond("sd15"), lora_hooks())


def behind_common_words():
    first = RegionPrompt.execute("a", "a cat", "", "in ink,", 1.0, clip=tiny_clip())[0]
    prompt("b", before=first, positive_conditioning=cond("sd15"))


NOTES = {
    "a mask on a ready CONDITIONING": (
        lambda: prompt(positive_conditioning=with_mask()),
        ['region "left" leaves out the mask of its text'],
    ),
    "hooks on a ready CONDITIONING": (
        lambda: prompt(positive_conditioning=with_hooks()),
        [
            'region "left" leaves out the hooks of its text',
            "connect a LoRA of the region to its lora input",
        ],
    ),
    "common words and a ready CONDITIONING": (
        behind_common_words,
        ['the common words do not stand before the CONDITIONING of region "b"'],
    ),
    "no region": (lambda: regional(tiny("sd15"), []), ["there is no region"]),
}


def with_unknown_network():
    class Unknown(torch.nn.Module):
        pass

    model = tiny("sd15", fresh=True)
    model.model.diffusion_model = Unknown()
    return model


def with_model_class(name, kind):
    """Return a model of another model class with an unchanged network, as LongCat-Image has."""
    model = tiny(name, fresh=True)
    model.model.__class__ = kind
    return model


def with_more_text_layers():
    class More(type(tiny("wan21").model.diffusion_model)):
        pass

    model = tiny("wan21", fresh=True)
    model.model.diffusion_model.__class__ = More
    return model


MODELS = {
    "a prompt of no region": (
        lambda: regional(tiny("sd15"), [LEFT], region_prompts(("dog", cond("sd15"), None))),
        "every region prompt must name a region, got \"dog\", where there is 'left'",
    ),
    "a prompt where there is no region": (
        lambda: regional(tiny("sd15"), [], region_prompts(("dog", cond("sd15"), None))),
        'every region prompt must name a region, got "dog", where there is none',
    ),
    "a LoRA of another architecture": (
        lambda: regional(
            tiny("flux"), [LEFT], region_prompts(("left", None, None, {"lora": lora_of("sd15")}))
        ),
        'region "left": the LoRA must be made for this architecture, Flux',
    ),
    "regions given twice": (
        lambda: regional(regional(tiny("sd15"), [LEFT]), [LEFT]),
        "from one Apply Regional Attention",
    ),
    "a network without regions": (
        lambda: regional(with_unknown_network(), [LEFT]),
        "of SD1.5.*, got BaseModel with Unknown",
    ),
    "LongCat-Image": (
        lambda: regional(with_model_class("flux", model_base.LongCatImage), [LEFT]),
        "of SD1.5.*, got LongCatImage with",
    ),
    "Chroma": (
        lambda: regional(with_model_class("flux", model_base.Chroma), [LEFT]),
        "of SD1.5.*, got Chroma with",
    ),
    "Wan VACE": (
        lambda: regional(with_model_class("wan21", model_base.WAN21_Vace), [LEFT]),
        "of SD1.5.*, got WAN21_Vace with",
    ),
    "a network with more text layers": (
        lambda: regional(with_more_text_layers(), [LEFT]),
        "of SD1.5.*, got WAN21 with More",
    ),
}


def on_left(name="sd15"):
    return regional(tiny(name), [LEFT], region_prompts(("left", cond(name, 2), None)))


def on_a_wide_mask():
    mask = Region("all", WHOLE.box, mask=torch.ones(8, 16))
    return regional(tiny("sd15"), [mask], region_prompts(("all", cond("sd15", 2), None)))


def on_two_gpus():
    model = on_left()
    model.set_additional_models("multigpu", [tiny("sd15")])
    return model


def in_tiles():
    def tiled(apply_model, arguments):
        tile = arguments["input"][..., :4]
        out = apply_model(tile, arguments["timestep"], **arguments["c"])
        return torch.cat([out, out], -1)

    model = on_left()
    model.set_model_unet_function_wrapper(tiled)
    return model


def sample(model, name="sd15"):
    """Return the latent of core's KSampler."""
    return ksample(model, cond(name), cond(name, 1), latent_of(name))


REFUSED_SAMPLING = {
    "a mask of another size": (
        on_a_wide_mask,
        "must have the proportions of the picture, got 16 x 8 for a latent of 8 x 8",
        ValueError,
    ),
    "several GPUs": (on_two_gpus, "regions must run on a single GPU", ValueError),
    "a node that draws in tiles": (
        in_tiles,
        "regions must see the whole picture in one call, got a part of 4 x 8 of 8 x 8",
        RuntimeError,
    ),
}


def leave_no_room(patch):
    """Report hardly any free memory to ComfyUI."""
    patch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: 1000)


def take_no_masks(patch):
    """Let ComfyUI use an attention function that accepts no masks."""

    @comfy.ldm.modules.attention.wrap_attn
    def attention_sage(q, k, v, heads, mask=None, **kwargs):
        assert mask is None
        return comfy.ldm.modules.attention.attention_pytorch(q, k, v, heads, **kwargs)

    patch.setattr(comfy.ldm.flux.math, "optimized_attention", attention_sage)

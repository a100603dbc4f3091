"""Which token hears which text and meets which LoRA, in the first block of every kind of network.

There no token has met another region yet, so what each gives is known from runs of one text alone.
"""

from contextlib import contextmanager

import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from gated_loras import hook_count, relative
from pack.lora_ops import Box, Region
from regional_case import EXACT, WHOLE, cond, ksample, latent_of, lora_of, region_prompts, regional
from tiny import tiny

HEIGHT, WIDTH = 8, 12
NETWORKS = ["sd15", "sd3", "flux", pytest.param("flux2", marks=pytest.mark.full), "wan21"]
SIDES = {"sd15": 1, "flux2": 1}  # latent pixels of a token; 2 elsewhere
FRAMES = 3  # of the tiny video

CORNER = Region("corner", Box(0, 0, 1 / 3, 0.5))
STRIP = Region("strip", Box(0.5, 0.75, 1, 1))


def first_block(model, name):
    network = model.model.diffusion_model
    if name == "sd15":
        return next(m for m in network.modules() if isinstance(m, BasicTransformerBlock)).attn2
    return getattr(network, {"sd3": "joint_blocks", "wan21": "blocks"}.get(name, "double_blocks"))[
        0
    ]


@contextmanager
def kept(module):
    """Hold what a module gives first."""
    outputs = []
    handle = module.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def tokens(model, name, positive):
    """Return the image tokens behind the first block, ``(frame, row, column, channel)``."""
    latent = latent_of(name, HEIGHT, WIDTH)
    if name == "wan21":
        latent = latent.expand(-1, -1, FRAMES, -1, -1).clone()
    with kept(first_block(model, name)) as outputs:
        ksample(model, positive, [], latent, cfg=1.0, steps=1)
    found = outputs[0]
    if isinstance(found, tuple):
        found = found[1 if name == "sd3" else 0]
    side = SIDES.get(name, 2)
    return found[0].unflatten(0, (-1, HEIGHT // side, WIDTH // side))


def with_pooled(text, source):
    """Return a text beside another's pooled vector."""
    return [[text[0][0], dict(source[0][1])]]


def inside(region, like):
    """Return which tokens a box holds, ``(row, column)``; its edges are those of tokens."""
    rows, columns = like.shape[1:3]
    held = torch.zeros(rows, columns, dtype=torch.bool)
    box = region.box
    held[
        round(box.top * rows) : round(box.bottom * rows),
        round(box.left * columns) : round(box.right * columns),
    ] = True
    return held


@pytest.mark.parametrize("name", NETWORKS)
def test_each_token_hears_the_text_of_its_region_and_no_other(name):
    """Two boxes that a turned or mirrored grid would move, on a canvas that is not square."""
    positive, own, other = (cond(name, seed) for seed in range(3))
    other = [[other[0][0][:, :7], other[0][1]]]  # texts of different lengths
    alone = {
        title: tokens(tiny(name), name, with_pooled(text, positive))
        for title, text in (("global", positive), ("corner", own), ("strip", other))
    }
    prompts = region_prompts(("corner", own, None), ("strip", other, None))
    model = regional(tiny(name), [CORNER, STRIP], prompts, pooled="global prompt's")
    found = tokens(model, name, positive)
    wanted = alone["global"].clone()
    for region in (CORNER, STRIP):
        held = inside(region, found)
        wanted[:, held] = alone[region.name][:, held]
        assert relative(alone[region.name][:, held], alone["global"][:, held]) > 1e-3
    assert (found - wanted).abs().max() < EXACT * wanted.abs().max()


@pytest.mark.parametrize("name", ["sd15", "wan21"])
def test_masks_weights_and_blends_mix_by_their_coefficients(name):
    """A soft mask against a box of another weight and a share of the global prompt."""
    positive, own, other = (cond(name, seed) for seed in range(3))
    alone = [module_tokens(tiny(name), name, text) for text in (positive, own, other)]
    rows, columns = alone[0].shape[1:3]
    scale = HEIGHT // rows
    soft = torch.rand(rows, columns, generator=torch.Generator().manual_seed(4))
    soft[0, 0] = 1.0
    mask = soft.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    regions = [
        Region("soft", WHOLE.box, mask=mask, weight=2.0),
        Region("strip", STRIP.box, weight=0.5, blend=0.3),
    ]
    prompts = region_prompts(("soft", own, None), ("strip", other, None))
    found = module_tokens(regional(tiny(name), regions, prompts), name, positive)
    pulls = torch.stack([soft * 2.0, inside(STRIP, found) * 0.5])
    covered = (soft + inside(STRIP, found)).clamp(max=1)
    pulls = pulls / pulls.sum(0) * covered
    shares = [1 - covered + 0.3 * pulls[1], pulls[0], 0.7 * pulls[1]]
    wanted = sum(share[None, :, :, None] * one for share, one in zip(shares, alone, strict=True))
    assert relative(found, wanted) < EXACT


def module_tokens(model, name, positive):
    """Return what the first text layer itself gives; behind it the network is not linear."""
    if name == "sd15":
        return tokens(model, name, positive)
    latent = latent_of(name, HEIGHT, WIDTH)
    with kept(first_block(model, name).cross_attn) as outputs:
        ksample(model, positive, [], latent, cfg=1.0, steps=1)
    return outputs[0][0].unflatten(0, (-1, HEIGHT // 2, WIDTH // 2))


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux", "wan21"])
def test_what_masks_weights_and_blends_mean_at_their_ends(name):
    """A mask of ones is the whole picture, a blend of 1 the global prompt, one text any weight."""
    positive, negative, own = (cond(name, seed) for seed in range(3))

    def found(*regions, prompts=None):
        prompts = prompts or region_prompts(("all", own, None))
        model = regional(tiny(name), regions, prompts, pooled="global prompt's")
        return ksample(model, positive, negative, latent_of(name))

    whole = found(WHOLE)
    assert relative(found(Region("all", WHOLE.box, mask=torch.ones(64, 64))), whole) < EXACT
    assert relative(found(Region("all", WHOLE.box, weight=0.3)), whole) < EXACT
    plain = ksample(tiny(name), positive, negative, latent_of(name))
    assert relative(found(Region("all", WHOLE.box, blend=1.0)), plain) < EXACT
    half = found(Region("all", WHOLE.box, blend=0.5))
    assert min(relative(half, whole), relative(half, plain)) > 1e-4


LAYERS = {
    "sd3": {
        "image": ["joint_blocks.0.x_block.attn.qkv"],
        "text": ["joint_blocks.0.context_block.attn.qkv"],
    },
    "flux": {
        "image": ["double_blocks.0.img_attn.qkv", "double_blocks.0.img_mlp.0"],
        "text": ["double_blocks.0.txt_attn.qkv"],
        "both": ["single_blocks.0.linear1"],
    },
    "wan21": {
        "image": ["blocks.0.self_attn.k", "blocks.0.cross_attn.q", "blocks.0.ffn.0"],
        "text": ["blocks.0.cross_attn.k"],
    },
}
ROWS = HEIGHT // 2
HALVES = [Region("left", Box(0, 0, 0.5, 1)), Region("right", Box(0.5, 0, 1, 1))]


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_of_a_transformer_changes_by_the_regions_own_lora(name):
    """Image tokens by their half; a text's tokens by the LoRA of its region, the global one's not."""
    model = regional(
        tiny(name),
        HALVES,
        region_prompts(
            (
                "left",
                cond(name, 2),
                None,
                {"lora": lora_of(name, 1, "all linear"), "strength": 0.5},
            ),
            ("right", cond(name, 3), None, {"lora": lora_of(name, 2, "all linear")}),
        ),
    )
    blocks = dict(model.model.diffusion_model.named_modules())
    names = {layer: kind for kind, layers in LAYERS[name].items() for layer in layers}
    seen = {layer: [] for layer in names}

    def keep(layer):
        def after(module, args, output):
            seen[layer].append((args[0].clone(), output.clone()))

        return after

    def behind_ours(apply_model, arguments):
        handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in names]
        try:
            return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        finally:
            for handle in handles:
                handle.remove()

    model.set_model_unet_function_wrapper(behind_ours)
    ksample(model, cond(name), [], latent_of(name, HEIGHT, WIDTH), cfg=1.0, steps=1)
    image = torch.zeros(2, ROWS, WIDTH // 2)
    image[0, :, : WIDTH // 4], image[1, :, WIDTH // 4 :] = 0.5, 1.0
    text = torch.zeros(2, 36)
    text[0, 12:24], text[1, 24:] = 0.5, 1.0
    shares = {"image": image.flatten(1), "text": text}
    shares["both"] = torch.cat([text, image.flatten(1)], 1)
    assert hook_count(model) == 0
    for layer, kind in names.items():
        x, output = seen[layer][0]
        change = output - blocks[layer](x)
        wanted = torch.zeros_like(change)
        for seed, share in zip((1, 2), shares[kind], strict=True):
            lora = lora_of(name, seed, "all linear")
            down, up, scale = parts_of(lora, f"diffusion_model.{layer}")
            wanted += share[:, None] * scale * (x @ down.T @ up.T)
        torch.testing.assert_close(change, wanted, rtol=1e-3, atol=1e-4)
        assert bool(change.any())


def parts_of(lora, key):
    down, up = lora[f"{key}.lora_A.weight"], lora[f"{key}.lora_B.weight"]
    alpha = lora.get(f"{key}.alpha")
    return down, up, 1.0 if alpha is None else float(alpha) / down.shape[0]

"""Which layer reads which context, in UNets of the real structures."""

import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ops
import comfy.utils
import torch
from concept_case import NAME
from pack.nodes.text.layer_contexts import context_layers, with_layers
from tiny import random_state, tiny

# Each cross-attention of SD1.5 in the order of the released code, with its query's width over 320.
RELEASED_MAP = [
    *[(f"down_blocks.{level}.attentions.{n}", 2**level) for level in range(3) for n in range(2)],
    ("mid_block.attentions.0", 4),
    *[
        (f"up_blocks.{level}.attentions.{n}", 2 ** (3 - level))
        for level in (1, 2, 3)
        for n in range(3)
    ],
]
SD15_STRUCTURE = {
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}
SDXL_STRUCTURE = {
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_linear_in_transformer": True,
}


def narrow_unet(**changes):
    """Return a UNet of the real class and the real structure, one tenth as wide."""
    config = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_heads": 4,
        "context_dim": 16,
        "use_spatial_transformer": True,
        **changes,
    }
    network = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel(
        **config, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    network.load_state_dict(random_state(network, 0, torch.float32))
    return network, config


def contexts_seen(network, layers):
    """Return which layer's context every cross-attention reads, by module path."""
    seen = {}

    def watch(path):
        def hook(module, args):
            found = args[0].flatten()[0].item()
            seen[path] = round(found)

        return hook

    hooks = [
        module.register_forward_pre_hook(watch(path))
        for path, module in network.named_modules()
        if path.endswith("attn2.to_k")
    ]
    layered = torch.arange(float(layers))[None, :, None, None].expand(1, -1, 3, 16)
    options = with_layers({}, layered)
    with torch.no_grad():
        network(
            torch.randn(1, 4, 16, 16),
            torch.ones(1),
            torch.zeros(1, 3, 16),
            transformer_options=options,
        )
    for hook in hooks:
        hook.remove()
    return seen


def test_layers_stand_in_the_order_of_the_released_code():
    network, config = narrow_unet(**SD15_STRUCTURE)
    seen = contexts_seen(network, 16)
    names = comfy.utils.unet_to_diffusers(config)
    diffusers = {native: name for name, native in names.items()}
    found = {}
    for path, layer in seen.items():
        name = diffusers[f"{path}.weight"]
        width = network.get_submodule(path.replace("to_k", "to_q")).weight.shape[0] // 32
        found[layer] = (name.split(".transformer_blocks")[0], width)
    assert [found[layer] for layer in range(16)] == RELEASED_MAP


def test_sdxl_has_one_context_per_transformer_module():
    network, _ = narrow_unet(**SDXL_STRUCTURE)
    seen = contexts_seen(network, 11)
    assert len(seen) == 70
    order = [path.split(".transformer_blocks")[0] for path in seen]
    modules = list(dict.fromkeys(order))
    assert len(modules) == 11
    assert [seen[path] for path in seen] == [modules.index(name) for name in order]
    assert [name.split("_")[0] for name in modules] == ["input"] * 4 + ["middle"] + ["output"] * 6


def test_the_models_own_count_of_contexts():
    assert {name: context_layers(tiny(name)) for name in ("sd15", "sd15_middle", NAME, "sdxl")} == {
        "sd15": 1,
        "sd15_middle": 2,
        NAME: 4,
        "sdxl": 4,
    }
    assert context_layers(tiny("sd3")) == context_layers(tiny("flux")) == 1

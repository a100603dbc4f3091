"""Model families against the ComfyUI at hand: its classes, their layers, and a family of one file."""

import importlib
from dataclasses import replace
from functools import cache

import comfy.ldm.lightricks.model
import comfy.model_base
import comfy.ops
import comfy.sd
import comfy.supported_models
import pytest
import torch
from narrow_networks import small_qwen, small_z_image
from pack.nodes.bridge.families import (
    identify,
    is_exactly,
    layers_by_path,
    network_blocks,
    network_family,
)
from pack.nodes.regions.sampling.networks import regional_network
from pack.nodes.text.training_cond import training_cond, training_latent
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.target_layers import training_sites
from pack.training import FAMILIES, Example, TrainingConfig, train
from pack.training.families.defaults import HALF, PAIR_TRANSFORMER, plain_transformer
from pack.training.families.family import (
    Blocks,
    ComfyClasses,
    Family,
    TargetLayers,
    matches,
)
from pack.training.families.networks import FLOW_SAMPLINGS, MASKED_TEXT_KEYS
from pack.training.recipes import Single
from tiny import random_state, tiny, tiny_cond, tiny_latent

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
MODELS = {
    "SD1.5": "sd15_layers",
    "SD2": "sd21_v",
    "SDXL": "sdxl",
    "SD3": "sd3",
    "Flux": "flux",
    "Flux.2": "flux2",
    "Wan 2.1": "wan21",
}
SD3_CLASSES = FAMILIES["SD3"].classes
NARROW = {"Qwen-Image": small_qwen, "Z-Image": small_z_image}
TEXT = 12  # tokens


def test_every_family_has_a_small_network():
    assert {*MODELS, *NARROW} == set(FAMILIES)


@cache
def narrow(name):
    """Return a narrow network of a family's class with random weights."""
    with torch.device("meta"):
        layout = NARROW[name](comfy.ops.disable_weight_init)
    network = NARROW[name](comfy.ops.disable_weight_init)
    network.load_state_dict(random_state(layout, 0, torch.float32), strict=False)
    return network.requires_grad_(False)


def network_of(family):
    """Return a small network of the family's class."""
    name = family.name
    return tiny(MODELS[name]).model.diffusion_model if name in MODELS else narrow(name)


def comfy_class(name):
    """Return the class that a family names below ``comfy.ldm``."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(f"comfy.ldm.{module}"), last)


@families
def test_comfyui_has_every_class_that_a_family_names(family):
    for config in family.classes.configs:
        assert issubclass(
            getattr(comfy.supported_models, config),
            comfy.supported_models.supported_models_base.BASE,
        )
    assert issubclass(getattr(comfy.model_base, family.classes.model), comfy.model_base.BaseModel)
    named = [family.classes.network, *family.blocks.classes]
    if family.regions is not None and family.regions.cross_attention_class:
        named.append(family.regions.cross_attention_class)
    for name in named:
        assert issubclass(comfy_class(name), torch.nn.Module)
    assert is_exactly(network_of(family), family.classes.network)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_recognised_by_its_configuration_and_by_its_network(name):
    model = tiny(MODELS[name])
    assert identify(model) is FAMILIES[name]
    # SD1.5 and SD2 have the same classes, and the same facts of their networks.
    assert network_family(model).regions == FAMILIES[name].regions
    if FAMILIES[name].regions is not None:
        assert regional_network(model) == (FAMILIES[name].attention_layout, FAMILIES[name].regions)


@families
def test_the_patterns_find_layers_of_the_network(family):
    network = network_of(family)
    paths = [
        path for path, module in network.named_modules() if isinstance(module, torch.nn.Linear)
    ]
    layers = family.layers
    for pattern in (layers.attention, layers.feed_forward, layers.blocks):
        assert any(matches(pattern, path) for path in paths)
    for pattern in (layers.text_keys_values, layers.fused_attention):
        assert not pattern or any(matches(pattern, path) for path in paths)
    for pattern, _ in layers.shared_inputs:
        assert any(matches(pattern, path) for path in paths)
    assert network_blocks(network, family)
    regions = family.regions
    if regions is not None:
        for pattern in (regions.without_tokens, regions.text, regions.image_keys_values):
            assert not pattern or any(matches(pattern, path) for path in paths)
        for pattern in (regions.text_and_image, regions.fused_image):
            assert not pattern or any(matches(pattern, path) for path in paths)
        for layer in layers_by_path(network, regions.cross_attention):
            assert is_exactly(layer, regions.cross_attention_class)
        assert regions.text_positions == tuple(
            getattr(getattr(network, "params", None), "txt_ids_dims", ())
        )


def seen_attention(family):
    """Return the widths of inputs of the text's keys, and tokens of every attention's q and k."""
    network, tokens, widths = network_of(family), [], []

    def note(function, q, k, v, *args, **kwargs):
        tokens.append((q.shape[-2], k.shape[-2]))
        return function(q, k, v, *args, **kwargs)

    handles = [
        layer.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[-1]))
        for layer in layers_by_path(network, family.layers.text_keys_values)
    ]
    options = {"optimized_attention_override": note}
    try:
        if family.name in NARROW:
            frames = (1,) if family.packs_latents else ()
            extra = {} if family.packs_latents else {"num_tokens": TEXT}
            network(
                torch.randn(1, 16, *frames, 8, 8),
                torch.tensor([0.3]),
                context=torch.randn(1, TEXT, 48),
                transformer_options=options,
                **extra,
            )
        else:
            forward_once(tiny(MODELS[family.name]), options)
    finally:
        for handle in handles:
            handle.remove()
    return widths, tokens


def text_width(model):
    """Return the width of the text that a tiny model reads."""
    return tiny_cond(model, TEXT)[0][0].shape[-1]


def example(model):
    """Return one training example of random numbers."""
    latent = training_latent(model, tiny_latent(model, 8, 8)["samples"])[0]
    return Example(latent, training_cond(model, tiny_cond(model, TEXT), latent))


def forward_once(model, options):
    """Run a tiny model once under options that its attention sees."""
    shown = example(model)
    with open_denoiser(model) as denoiser, torch.no_grad():
        apply = denoiser.model.apply_model

        def with_options(*args, transformer_options, **kwargs):
            return apply(*args, transformer_options={**transformer_options, **options}, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(denoiser.model, "apply_model", with_options)
            denoiser.denoise(
                shown.latent[None], denoiser.sigma_at(torch.tensor([0.5])), [shown.cond]
            )


@families
def test_the_attention_layout_is_that_of_the_network(family):
    widths, tokens = seen_attention(family)
    assert tokens
    if family.attention_layout == "joint":
        assert all(queries == keys for queries, keys in tokens)
        assert any(queries > TEXT for queries, _ in tokens)
        assert not widths
        return
    assert any(queries != keys for queries, keys in tokens)
    raw = text_width(tiny(MODELS[family.name]))
    # UNets make keys of the text itself, the others of what they have embedded it to.
    assert {width == raw for width in widths} == {family.attention_layout == "unet"}


LTXV = Family(
    name="LTX-Video",
    architecture="ltx-video/lora",
    base_version="ltxv",
    kohya_keys=False,
    classes=ComfyClasses(configs=("LTXV",), model="LTXV", network="lightricks.model.LTXVModel"),
    attention_layout="cross",
    layers=TargetLayers(
        attention=r"^transformer_blocks\.\d+\.attn[12]\.(to_[qkv]|to_out\.0)$",
        feed_forward=r"^transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)$",
        blocks=r"^transformer_blocks\.",
        text_keys_values=r"\.attn2\.to_[kv]$",
    ),
    blocks=Blocks(lists=("transformer_blocks",), in_place_residuals=True),
    regions=None,
    fusion_stages=("text", "spatial"),
    text_encoders=(),
    text_keys=MASKED_TEXT_KEYS,
    resolution=512,
    multiple=32,
    samplings=FLOW_SAMPLINGS,
    pair=PAIR_TRANSFORMER,
    plain=plain_transformer("uniform", 768),
    half=HALF,
)


def tiny_ltxv():
    """Return a tiny LTX-Video, a family that the pack does not have."""
    with torch.device("meta"):
        layout = comfy.ldm.lightricks.model.LTXVModel(
            num_layers=2,
            attention_head_dim=4,
            cross_attention_dim=128,
            operations=comfy.ops.disable_weight_init,
            dtype=torch.float32,
        )
    state = random_state(layout, 0, torch.float32)
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})


def test_the_data_of_one_file_make_a_new_family_trainable(monkeypatch):
    model = tiny_ltxv()
    with pytest.raises(ValueError, match=r"must be one of SD1.5.*, got LTXV"):
        identify(model)
    monkeypatch.setitem(FAMILIES, LTXV.name, LTXV)
    assert identify(model) is LTXV
    assert network_family(model) is LTXV
    with pytest.raises(ValueError, match="got LTXV with LTXVModel"):
        regional_network(model)
    latent = training_latent(model, torch.randn(1, 128, 1, 4, 4))[0]
    text = [[torch.randn(1, TEXT, 4096), {"attention_mask": torch.ones(1, TEXT)}]]
    cond = training_cond(model, text, latent)
    config = TrainingConfig(steps=2, rank=2, learning_rate=1e-2, seed=0)
    for checkpointing in (False, True):
        with open_denoiser(model, checkpointing=checkpointing) as denoiser:
            sites = training_sites(denoiser.patcher, "attention")
            trained = train(denoiser, sites, Single([Example(latent, cond)]), config)
        assert len(sites) == 16
        assert all(name.startswith("diffusion_model.transformer_blocks.") for name in sites)
        assert all(torch.isfinite(torch.tensor(trained.losses["loss"])))


def test_a_supported_model_is_refused_where_its_family_is_taken_away(monkeypatch):
    monkeypatch.delitem(FAMILIES, "SD3")
    with pytest.raises(ValueError, match=r"must be one of SD1.5, SD2, SDXL, Flux, .*, got SD3"):
        identify(tiny("sd3"))
    monkeypatch.setitem(FAMILIES, "Other", replace(LTXV, name="Other", classes=SD3_CLASSES))
    assert identify(tiny("sd3")).name == "Other"

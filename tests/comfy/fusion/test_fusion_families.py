"""Fusion on SDXL, SD3 and Flux, and LoRAs of every usual kind."""

import re
from types import SimpleNamespace

import comfy.lora
import comfy.ops
import comfy.sd
import pytest
import torch
from comfy.clip_model import CLIPTextModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from concept_encoders import clip_of
from concept_inputs import concept_for, text_lora
from fusion_families_case import assert_stock_loader_agrees, encoder_of, factor
from fusion_inputs import NAME, lora_to_fuse, plain_lora, queue_fusion
from pack.lora_ops import LowRank
from pack.nodes.fusion.changes import ConceptChanges, WeightSlice
from pack.nodes.fusion.layers import context_index, layout_of
from pack.nodes.trainer.target_layers import training_sites
from pack.training.families import FAMILIES
from pack.training.files.lora_state import LoraState, lora_state
from tiny import tiny
from torch import nn


def test_sdxl_has_two_text_encoders_and_many_layers():
    model = tiny("sdxl")
    encoders = ("clip_l", "clip_g")
    trained = concept_for(model, "sks", seed=1, encoders=encoders)
    lora = {
        **{k.replace("lora_te_", "lora_te1_"): v for k, v in trained.lora.items()},
        **dict(lora_state(wide_text_lora(1), {})),
    }
    trained = (replaced(trained, lora),)
    out = queue_fusion([trained, lora_to_fuse(plain_lora(model, 2, text=False))], "sdxl", steps=1)
    stages = {stage.stage: stage for stage in out.result[5].stages}
    assert stages["cross"].layers + stages["spatial"].layers == 48
    assert stages["text"].layers == 8 + 4
    assert any(key.startswith("lora_te2_") for key in out.result[2])
    assert_stock_loader_agrees("sdxl", out)
    for layer in out.result[5].layers:
        for ours, average in zip(layer.residuals, layer.average_residuals, strict=True):
            assert ours is None or ours < average


def wide_text_lora(seed):
    prefix = "lora_te2_text_model_encoder_layers_0_self_attn"
    return {
        f"{prefix}_{part}": LowRank(factor(4, 1280, seed=seed + i), factor(1280, 4, seed=seed + i))
        for i, part in enumerate(("q_proj", "k_proj", "v_proj", "out_proj"))
    }


def replaced(concept, lora):
    from dataclasses import replace

    return replace(concept, lora=LoraState(lora, concept.lora.metadata))


@pytest.mark.parametrize("name", ["sd3_read", "flux_read"])
def test_transformers_fuse_image_and_text_streams_by_their_inputs(name):
    model = tiny(name)
    loras = [plain_lora(model, seed, text=False) for seed in (1, 2)]
    wires = [
        lora_to_fuse(lora, f"a {word}", name=word, strength=1.0)
        for lora, word in zip(loras, ("boat", "tower"), strict=True)
    ]
    out = queue_fusion(wires, name, steps=1, clip=encoder_of(name))
    (stage,) = out.result[5].stages
    assert (stage.stage, stage.layers, stage.passes) == (
        "spatial",
        len(training_sites(model, "attention")),
        2,
    )
    assert_stock_loader_agrees(name, out)
    lost = [share for layer in out.result[5].layers for share in layer.residuals]
    averaged = [share for layer in out.result[5].layers for share in layer.average_residuals]
    assert sum(lost) < 0.3 * sum(averaged)


def test_split_and_fused_qkv_are_brought_into_line():
    model = tiny("sd3_read")
    whole = plain_lora(model, 1, text=False)
    split = {}
    for number, part in enumerate(("q", "k", "v")):
        layer = f"transformer.transformer_blocks.0.attn.to_{part}"
        split[f"{layer}.lora_A.weight"] = factor(3, 128, seed=10 + number)
        split[f"{layer}.lora_B.weight"] = factor(128, 3, seed=20 + number)
    wires = [
        lora_to_fuse(whole, "a boat"),
        lora_to_fuse(LoraState(split, {}), "a tower", name="tower"),
    ]
    out = queue_fusion(wires, "sd3_read", steps=1, clip=clip_of("sd3"))
    layers = {layer.name: layer for layer in out.result[5].layers}
    assert "diffusion_model.joint_blocks.0.x_block.attn.qkv" in layers
    assert not [name for name in layers if name.startswith("transformer.")]
    assert layers["diffusion_model.joint_blocks.0.x_block.attn.qkv"].rank == 3 + 9
    assert_stock_loader_agrees("sd3_read", out)
    # two split files stay split
    other = LoraState({key: value * 2 for key, value in split.items()}, {})
    wires = [
        lora_to_fuse(LoraState(split, {}), "a boat"),
        lora_to_fuse(other, "a tower", name="tower"),
    ]
    out = queue_fusion(wires, "sd3_read", steps=1, clip=clip_of("sd3"))
    assert len(out.result[5].layers) == 3
    assert max(layer.rank for layer in out.result[5].layers) <= 6
    assert_stock_loader_agrees("sd3_read", out)


def test_other_kinds_of_adapters_and_convolutions():
    q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    v = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_v"
    feed = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj"
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    norm = "lora_unet_down_blocks_0_attentions_0_norm"
    kinds = {
        **{f"{q}.hada_w1_a": factor(320, 2), f"{q}.hada_w1_b": factor(2, 320, seed=1)},
        **{f"{q}.hada_w2_a": factor(320, 2, seed=2), f"{q}.hada_w2_b": factor(2, 320, seed=3)},
        **{f"{v}.lokr_w1": factor(4, 4), f"{v}.lokr_w2": factor(80, 80, seed=1)},
        f"{conv}.lora_down.weight": factor(2, 320, 3, 3),
        f"{conv}.lora_up.weight": factor(320, 2, 1, 1, seed=1),
        f"{norm}.w_norm": factor(320),
        f"{norm}.b_norm": factor(320, seed=1),
    }
    plain = plain_lora(tiny(NAME), 1)
    plain = LoraState(
        {
            **plain,
            f"{conv}.lora_down.weight": factor(3, 320, 3, 3, seed=4),
            f"{conv}.lora_up.weight": factor(320, 3, 1, 1, seed=5),
            f"{feed}.lora_down.weight": factor(3, 320, seed=4),
            f"{feed}.lora_up.weight": factor(2560, 3, seed=5),
        },
        {},
    )
    wires = [
        lora_to_fuse(plain, "a boat"),
        lora_to_fuse(LoraState(kinds, {}), "a tower", name="tower"),
    ]
    out = queue_fusion(wires, steps=1)
    assert "LoHa kept with 100.00% of the energy" in out.result[4]
    assert "LoKr kept with" in out.result[4]
    assert "2 left out (biases, norms, embeddings)" in out.result[4]
    layers = {layer.name: layer for layer in out.result[5].layers}
    assert layers[conv].rank == 5
    assert layers[conv].residuals[0] < layers[conv].average_residuals[0]
    assert_stock_loader_agrees(NAME, out)


def test_wide_layers_are_fused_within_a_span(monkeypatch):
    from pack.nodes.fusion import layers as fusion_sites
    from pack.nodes.fusion import stages as fusion_stages

    wires = [
        lora_to_fuse(plain_lora(tiny(NAME), seed), f"a {word}", name=word, strength=1.0)
        for seed, word in ((1, "boat"), (2, "tower"))
    ]
    full = queue_fusion(wires, steps=1).result[5]
    monkeypatch.setattr(fusion_stages, "WIDEST", 300)
    monkeypatch.setattr(fusion_sites, "WIDEST", 300)
    out = queue_fusion(wires, steps=1)
    assert "layers wider than 4096 fused within the span of the LoRAs" in out.result[4]
    assert_stock_loader_agrees(NAME, out)
    for layer, other in zip(out.result[5].layers, full.layers, strict=True):
        if layer.stage != "cross":
            assert sum(other.residuals) <= sum(layer.residuals) + 0.02  # the full form fits better
            assert sum(layer.residuals) < sum(layer.average_residuals)


def test_a_wide_layer_that_only_one_lora_changes(monkeypatch):
    from pack.nodes.fusion import layers as fusion_sites
    from pack.nodes.fusion import stages as fusion_stages

    monkeypatch.setattr(fusion_stages, "WIDEST", 300)
    monkeypatch.setattr(fusion_sites, "WIDEST", 300)
    some = {k: v for k, v in plain_lora(tiny(NAME), 2).items() if "attn1_to_q" in k}
    wires = [
        lora_to_fuse(plain_lora(tiny(NAME), 1), "a boat"),
        lora_to_fuse(LoraState(some, {}), "a tower", name="tower"),
    ]
    assert_stock_loader_agrees(NAME, queue_fusion(wires, steps=1))


def test_a_lora_of_the_text_encoder_alone():
    text = LoraState(lora_state(text_lora(3), {}), {})
    wires = [
        lora_to_fuse(text, "a boat"),
        lora_to_fuse(plain_lora(tiny(NAME), 2), "a tower", name="tower"),
    ]
    out = queue_fusion(wires, steps=1)
    assert out.result[5].layers[0].stage == "text"
    assert_stock_loader_agrees(NAME, out)


class Layers(nn.Module):
    """A model or a CLIP of real size without weights, as far as fusion looks at it."""

    def __init__(self, **parts):
        super().__init__()
        self.model_config = SimpleNamespace(unet_config=SD15)
        for name, part in parts.items():
            setattr(self, name, part)


SD15 = {
    **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320},
    **{"num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "num_heads": 8},
    **{"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1},
    **{"transformer_depth_output": [1] * 9 + [0] * 3, "context_dim": 768},
    "use_spatial_transformer": True,
}


def test_layers_and_inputs_of_a_whole_sd15():
    """F4: 48, 32 and 96 layers, that read 24, 16 and 64 distinct inputs."""
    clip_config = {
        **{"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12},
        **{"intermediate_size": 3072, "hidden_act": "quick_gelu", "eos_token_id": 49407},
        **{"max_position_embeddings": 77, "projection_dim": 768},
    }
    operations = comfy.ops.disable_weight_init
    with torch.device("meta"):
        unet = UNetModel(**SD15, operations=operations, dtype=torch.float32)
        text = CLIPTextModel(clip_config, torch.float32, None, operations)
    model = SimpleNamespace(model=Layers(diffusion_model=unet))
    clip = SimpleNamespace(cond_stage_model=Layers(clip_l=Layers(transformer=text)))
    pattern = re.compile(r"attn[12]\.to_(q|k|v|out\.0)\.weight$|self_attn\.\w+_proj\.weight$")
    factors = {
        WeightSlice(key, 0, len(weight)): LowRank(
            torch.ones(4, weight.shape[1]), torch.ones(len(weight), 4)
        )
        for root in (model.model, clip.cond_stage_model)
        for key, weight in root.named_parameters()
        if pattern.search(key)
    }
    layout = layout_of(
        model, clip, FAMILIES["SD1.5"], [ConceptChanges(None, factors, 0, (), (), {})]
    )
    for stage, layers, inputs in (("text", 48, 24), ("cross", 32, 16), ("spatial", 96, 64)):
        found = layout.of_stage(stage)
        assert (len(found), len({layer.site for layer in found})) == (layers, inputs)
    numbers = sum(f.down.numel() + f.up.numel() for f in layout.factors[0].values())
    assert numbers + 2 * 16 * 768 == 1_116_672  # the authors' count, with two words of 16 rows
    assert len(context_index(model)) == 16
    assert all(
        layer.name.startswith(("lora_unet_", "lora_te_text_model_")) for layer in layout.layers
    )

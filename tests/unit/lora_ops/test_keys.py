"""File keys of every usual trainer."""

import pytest
from pack.lora_ops.keys import (
    LayerPart,
    changes_text_encoder,
    factor_keys,
    kohya_layer,
    parse_key,
    part_key,
    parts_by_layer,
)

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2"


@pytest.mark.parametrize(
    ("key", "layer", "part"),
    [
        (f"{KOHYA}_to_k.lora_down.weight", f"{KOHYA}_to_k", "down"),
        (f"{KOHYA}_to_k.lora_up.weight", f"{KOHYA}_to_k", "up"),
        (f"{KOHYA}_to_k.lora_mid.weight", f"{KOHYA}_to_k", "mid"),
        (f"{KOHYA}_to_k.alpha", f"{KOHYA}_to_k", "alpha"),
        ("diffusion_model.blocks.0.q.lora_A.weight", "diffusion_model.blocks.0.q", "down"),
        ("diffusion_model.blocks.0.q.lora_B.weight", "diffusion_model.blocks.0.q", "up"),
        ("transformer.blocks.0.q.lora_A.default.weight", "transformer.blocks.0.q", "down"),
        (f"unet.{BLOCK}.to_out.0.lora.down.weight", f"unet.{BLOCK}.to_out.0", "down"),
        (f"unet.{BLOCK}.processor.to_q_lora.up.weight", f"unet.{BLOCK}.processor.to_q", "up"),
        ("text_encoder.a.q_proj.lora_linear_layer.up.weight", "text_encoder.a.q_proj", "up"),
        ("blocks.0.q.lora_B", "blocks.0.q", "up"),
        ("diffusion_model.norm.diff_b", "diffusion_model.norm", "diff_b"),
        ("diffusion_model.norm.diff", "diffusion_model.norm", "diff"),
        ("lora_unet_x.hada_w1_a", "lora_unet_x", "hada_w1_a"),
    ],
)
def test_every_spelling_names_a_layer_and_a_part(key, layer, part):
    assert parse_key(key) == LayerPart(layer, part)


@pytest.mark.parametrize(
    "key", ["model.diffusion_model.out.2.weight", ".alpha", "alpha", "", "x.lora_down.bias"]
)
def test_a_key_of_no_trainer_is_not_guessed(key):
    assert parse_key(key) is None


@pytest.mark.parametrize(
    ("layer", "renamed"),
    [
        (f"unet.{BLOCK}.to_k", f"{KOHYA}_to_k"),
        (f"unet.{BLOCK}.to_out.0", f"{KOHYA}_to_out_0"),
        (f"unet.unet.{BLOCK}.to_out.0", f"{KOHYA}_to_out_0"),
        (f"unet.{BLOCK}.processor.to_out", f"{KOHYA}_to_out_0"),
        (f"{BLOCK}.to_v", f"{KOHYA}_to_v"),
        (f"unet.base_model.model.{BLOCK}.to_q", f"{KOHYA}_to_q"),
        (f"base_model.model.{BLOCK}.to_q", f"{KOHYA}_to_q"),
        ("unet.mid_block.resnets.0.conv1", "lora_unet_mid_block_resnets_0_conv1"),
        ("unet.conv_in", "lora_unet_conv_in"),
    ],
)
def test_diffusers_unet_names_become_kohyas(layer, renamed):
    assert kohya_layer(layer) == renamed


@pytest.mark.parametrize(
    "layer",
    [
        f"{KOHYA}_to_k",
        "diffusion_model.input_blocks.1.1.proj_in",
        "transformer.transformer_blocks.0.attn.to_q",
        "base_model.model.transformer_blocks.0.attn.to_q",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    ],
)
def test_names_that_comfyui_maps_stay(layer):
    assert kohya_layer(layer) == layer


@pytest.mark.parametrize("layer", [f"{KOHYA}_to_k", "diffusion_model.blocks.0.self_attn.q"])
def test_our_own_keys_are_read_back(layer):
    keys = factor_keys(layer)
    assert parts_by_layer(keys) == {layer: {"down": keys.down, "up": keys.up, "alpha": keys.alpha}}
    assert [part_key(layer, part) for part in ("down", "up", "alpha")] == list(keys)


def test_a_layer_with_a_middle_factor_keeps_the_spelling_comfyui_finds_it_under():
    layer = "diffusion_model.out.2"
    keys = [part_key(layer, part, has_mid=True) for part in ("down", "mid", "up")]
    assert keys == [f"{layer}.lora_{part}.weight" for part in ("down", "mid", "up")]


def test_one_layer_under_two_names_is_refused():
    keys = [f"unet.{BLOCK}.to_k.lora_A.weight", f"{KOHYA}_to_k.lora_down.weight"]
    with pytest.raises(ValueError, match="must hold each tensor once"):
        parts_by_layer(keys)


def test_text_encoder_layers_are_told_apart():
    assert changes_text_encoder("lora_te2_text_model_encoder_layers_0_mlp_fc1")
    assert changes_text_encoder("text_encoders.t5xxl.transformer.encoder.block.0")
    assert not changes_text_encoder(f"{KOHYA}_to_k")

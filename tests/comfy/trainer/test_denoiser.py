"""The Denoiser on tiny real models: loss space, packing, loading and clean-up."""

import logging

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from pack.nodes.bridge.conditioning import encode_prompt
from pack.nodes.bridge.families import identify, identify_for_training
from pack.nodes.text.training_cond import Framing, training_cond, training_latent
from pack.nodes.trainer.denoiser import open_denoiser
from pack.training.denoiser import Example
from pack.training.objective import output_errors
from tiny import (
    TINY_NAMES,
    tiny,
    tiny_clip,
    tiny_cond,
    tiny_latent,
    tiny_scaled_fp8,
    weights_hash,
)

FAMILY = {
    "sd15": "SD1.5",
    "sd21_v": "SD2",
    "sdxl": "SDXL",
    "sdxl_v": "SDXL",
    "sd3": "SD3",
    "flux": "Flux",
    "flux2": "Flux.2",
    "wan21": "Wan 2.1",
}
FLOW = {"sd3", "flux", "flux2", "wan21"}


def example(model, seed=0, tokens=12, size=8) -> Example:
    latent = training_latent(model, tiny_latent(model, size, size, seed=seed)["samples"])[0]
    return Example(latent, training_cond(model, tiny_cond(model, tokens, seed=seed), latent))


@pytest.mark.parametrize("name", TINY_NAMES)
def test_family_is_identified(name):
    assert identify_for_training(tiny(name)).name == FAMILY[name]


def test_unknown_class_is_refused_by_name():
    model = tiny("sd15", fresh=True)
    model.model.model_config = type("Chroma", (), {})()
    with pytest.raises(ValueError, match=r"must be one of SD1\.5, .* got BaseModel \(Chroma\)"):
        identify(model)


def test_inpainting_model_is_refused():
    model = tiny("sd15", fresh=True)
    model.model.model_config.unet_config["in_channels"] = 9
    with pytest.raises(ValueError, match="inpainting and edit models are not supported"):
        identify(model)


def test_fast_fp8_base_is_refused_for_training_only():
    model = tiny("sd15", fresh=True)
    model.model.model_config.optimizations["fp8"] = True
    assert identify(model).name == "SD1.5"
    with pytest.raises(ValueError, match=r"training needs a base in fp32.*got a base in fp8"):
        identify_for_training(model)


class GGUFModelPatcher(ModelPatcher):
    """Named as the GGUF loader's class is."""


class NunchakuFluxTransformer(torch.nn.Module):
    """Named as Nunchaku's network is."""


def test_foreign_bases_are_refused_for_training_by_name():
    plain = tiny("flux", fresh=True)
    gguf = GGUFModelPatcher(plain.model, plain.load_device, plain.offload_device)
    with pytest.raises(ValueError, match="got a GGUF base"):
        identify_for_training(gguf)
    assert identify(gguf).name == "Flux"
    plain.model.diffusion_model.single_blocks[0].linear1.quant_format = "int8_tensorwise"
    with pytest.raises(ValueError, match="got a base quantised as int8_tensorwise"):
        identify_for_training(plain)
    plain.model.diffusion_model = NunchakuFluxTransformer()
    with pytest.raises(ValueError, match="got a Nunchaku base"):
        identify_for_training(plain)


def test_scaled_fp8_base_has_the_gradient_of_its_own_prediction():
    """Central differences through the quantised layers, under ComfyUI's own dequantisation."""
    model = tiny_scaled_fp8("flux", "qkv")
    before = weights_hash(model)
    assert isinstance(
        model.model.diffusion_model.double_blocks[0].img_attn.qkv.weight, QuantizedTensor
    )
    row = example(model)
    generator = torch.Generator().manual_seed(4)
    along, weights = (torch.randn(1, *row.latent.shape, generator=generator) for _ in range(2))
    with open_denoiser(model) as denoiser:
        sigma = denoiser.sigma_at(torch.tensor([0.5]))

        def value(x):
            return (denoiser.denoise(x, sigma, [row.cond]) * weights).sum()

        x = row.latent[None].clone().requires_grad_()
        value(x).backward()
        slope = (x.grad * along).sum().item()
        with torch.no_grad():
            difference = (value(x + 3e-3 * along) - value(x - 3e-3 * along)).item() / 6e-3
    assert slope == pytest.approx(difference, rel=5e-3)
    assert weights_hash(model) == before


@pytest.mark.parametrize("name", TINY_NAMES)
def test_error_is_the_model_outputs_error(name):
    """(denoised - x0) / b equals the error of eps, v or velocity by their direct formulas."""
    model = tiny(name)
    row = example(model)
    latent = row.latent[None]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    with open_denoiser(model) as denoiser, torch.no_grad():
        sigma = denoiser.sigma_at(torch.tensor([0.4]))
        x = denoiser.noised(latent, noise, sigma)
        denoised = denoiser.denoise(x, sigma, [row.cond])
        found = output_errors(denoised, latent, denoiser.output_scale(sigma, latent))
    s = sigma.double().view(-1, *[1] * (latent.ndim - 1))
    x0, eps, prediction = latent.double(), noise.double(), denoised.double()
    if name in FLOW:
        noised = (1 - s) * x0 + s * eps
        output = (noised - prediction) / s
        target = eps - x0
    elif name.endswith("_v"):
        noised = x0 + s * eps
        output = (noised / (s**2 + 1) - prediction) * (s**2 + 1).sqrt() / s
        target = (eps - s * x0) / (s**2 + 1).sqrt()
    else:
        noised = x0 + s * eps
        output = (noised - prediction) / s
        target = eps
    torch.testing.assert_close(x.double(), noised, rtol=1e-5, atol=1e-5)
    expected = (output - target).square().mean()
    torch.testing.assert_close(found[0].double(), expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("name", TINY_NAMES)
def test_noise_levels_are_the_models_table(name):
    model = tiny(name)
    with open_denoiser(model) as denoiser:
        table = model.model.model_sampling.sigmas
        ends = denoiser.sigma_at(torch.tensor([0.0, 1 - 2**-24]))
        assert torch.equal(ends, table[[0, -1]])


@pytest.mark.parametrize("name", TINY_NAMES)
def test_rows_share_a_forward_and_equal_single_rows(name):
    model = tiny(name)
    rows = [example(model, seed) for seed in range(3)]
    x = torch.stack([row.latent for row in rows])
    with open_denoiser(model) as denoiser, torch.no_grad():
        assert len({denoiser.pack_key(row) for row in rows}) == 1
        sigma = denoiser.sigma_at(torch.tensor([0.2, 0.5, 0.9]))
        together = denoiser.denoise(x, sigma, [row.cond for row in rows])
        for i, row in enumerate(rows):
            alone = denoiser.denoise(x[i : i + 1], sigma[i : i + 1], [row.cond])
            error = (together[i] - alone[0]).norm() / alone.norm()
            assert error < 1e-5


def test_prompts_of_unequal_length_get_packs_of_their_own():
    model = tiny("sd3")
    short, long = example(model, tokens=12), example(model, tokens=20)
    with open_denoiser(model) as denoiser:
        assert denoiser.pack_key(short) != denoiser.pack_key(long)
        x, sigma = torch.stack([short.latent, long.latent]), denoiser.sigma_at(torch.rand(2))
        with pytest.raises(ValueError, match="must have equal shapes"):
            denoiser.denoise(x, sigma, [short.cond, long.cond])


def test_prediction_is_the_samplers_own():
    """The same x, sigma and prompt through ComfyUI's guider at cfg 1."""
    model = tiny("sdxl")
    cond, latent = tiny_cond(model), tiny_latent(model, 8, 8)["samples"]
    seen = {}

    def one_step(guider, x, sigmas, extra_args, callback, disable):
        seen["x"], seen["sigma"] = x.clone(), sigmas[:1]
        seen["denoised"] = guider(x, sigmas[:1], **extra_args)
        return seen["denoised"]

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(cond, cond)
    guider.set_cfg(1.0)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    guider.sample(noise, latent, comfy.samplers.KSAMPLER(one_step), torch.tensor([3.0, 0.0]))
    with open_denoiser(model) as denoiser, torch.no_grad():
        caption = training_cond(model, cond, latent[0])
        found = denoiser.denoise(seen["x"], seen["sigma"], [caption])
    assert (found - seen["denoised"]).norm() / found.norm() < 1e-6


def test_sdxl_rows_carry_true_size_and_crop():
    model = tiny("sdxl")
    latent = tiny_latent(model, 8, 8)["samples"][0]
    framing = Framing(640, 480, 24, 8, 512, 448)
    caption = training_cond(model, tiny_cond(model), latent, framing)
    time = model.model.embedder
    numbers = [480, 640, 8, 24, 448, 512]  # height before width, crop top before left
    expected = torch.cat([time(torch.tensor([float(number)])) for number in numbers]).flatten()
    torch.testing.assert_close(caption.model_conds["y"].cond[0, 1280:], expected)


def test_flux_learns_at_distilled_guidance_one():
    model = tiny("flux")
    latent = tiny_latent(model, 8, 8)["samples"][0]
    caption = training_cond(model, tiny_cond(model), latent)
    assert caption.model_conds["guidance"].cond.tolist() == [1.0]


def test_prompts_are_encoded_as_the_core_node_does():
    import nodes

    ours = encode_prompt(tiny_clip(), "a red ball on sand")
    core = nodes.CLIPTextEncode().encode(tiny_clip(), "a red ball on sand")[0]
    assert torch.equal(ours[0][0], core[0][0])
    assert torch.equal(ours[0][1]["pooled_output"], core[0][1]["pooled_output"])


def test_combined_prompts_are_refused_as_captions():
    model = tiny("sd15")
    cond = tiny_cond(model)
    with pytest.raises(ValueError, match="must be one prompt, got one of 2"):
        training_cond(model, cond + cond, tiny_latent(model)["samples"][0])


def forbid(*args, **kwargs):
    raise AssertionError("a sampling-time patch ran in training")


def test_sampling_patches_are_ignored_with_one_warning(caplog):
    plain = tiny("sd15")
    patched = plain.clone()
    patched.set_model_attn1_patch(forbid)
    patched.set_model_sampler_post_cfg_function(forbid)
    row = example(plain)
    results = []
    with caplog.at_level(logging.WARNING):
        for model in (plain, patched):
            with open_denoiser(model) as denoiser, torch.no_grad():
                sigma = denoiser.sigma_at(torch.tensor([0.5]))
                results.append(denoiser.denoise(row.latent[None], sigma, [row.cond]))
    assert torch.equal(*results)
    warnings = [r.getMessage() for r in caplog.records if "Pastiche" in r.getMessage()]
    assert len(warnings) == 1
    assert "transformer_options.patches" in warnings[0]
    assert "sampler_post_cfg_function" in warnings[0]
    assert patched.model_options["transformer_options"]["patches"]["attn1_patch"] == [forbid]


def test_weight_and_object_patches_are_honoured_and_taken_off_again():
    import comfy_extras.nodes_model_advanced as advanced

    model = tiny("sd15", fresh=True)
    before = weights_hash(model)
    key = "diffusion_model.out.2.weight"
    patched = model.clone()
    original = model.model.diffusion_model.out[2].weight.clone()
    change = torch.ones_like(original)
    patched.add_patches({key: ("diff", (change,))}, 0.5)
    patched = advanced.ModelSamplingDiscrete().patch(patched, "v_prediction", True)[0]
    row = example(model)
    with open_denoiser(patched) as denoiser:
        torch.testing.assert_close(model.model.diffusion_model.out[2].weight, original + 0.5)
        sigma = denoiser.sigma_at(torch.tensor([0.999]))
        assert sigma.item() > 1000  # zero terminal SNR
        scale = denoiser.output_scale(sigma, row.latent[None])
        torch.testing.assert_close(scale.flatten()[0], -sigma[0] / (sigma[0] ** 2 + 1).sqrt())
    assert weights_hash(model) == before


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_weights_from_a_loader_node_are_made_differentiable(name):
    model = tiny(name, inference=True)
    before = weights_hash(model)
    with torch.inference_mode():  # every node runs under it
        row = example(model)
        patched = model.clone()
        key = next(
            key for key in model.model.state_dict() if key.endswith(("to_q.weight", "qkv.weight"))
        )
        shape = model.model.state_dict()[key].shape
        patched.add_patches({key: ("diff", (torch.ones(shape),))}, 0.1)
        with open_denoiser(patched) as denoiser:
            assert torch.is_grad_enabled()
            sigma = denoiser.sigma_at(torch.tensor([0.5]))
            x = row.latent[None].clone().requires_grad_()
            denoiser.denoise(x, sigma, [row.cond]).square().sum().backward()
            assert x.grad.isfinite().all()
            assert x.grad.norm() > 0
        assert torch.is_inference_mode_enabled()
    assert weights_hash(model) == before


def test_state_is_restored_after_an_error():
    model = tiny("flux", fresh=True)
    before = weights_hash(model)
    seen = {}

    def fail_inside():
        with open_denoiser(model, "bf16"):
            seen["training"] = comfy.model_management.in_training
            seen["dtype"] = model.model.manual_cast_dtype
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert seen == {"training": True, "dtype": torch.bfloat16}
    assert not comfy.model_management.in_training
    assert model.model.manual_cast_dtype is None
    assert model.model.current_patcher is None
    assert model.clone().model is model.model
    assert all(
        loaded.model.model is not model.model
        for loaded in comfy.model_management.current_loaded_models
    )
    assert weights_hash(model) == before


def test_precision_is_the_one_asked_for():
    model = tiny("sd15", torch.float16)
    dtypes = []
    layer = model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q
    handle = layer.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    row = example(model)
    try:
        for precision in ("auto", "fp32", "bf16"):
            with open_denoiser(model, precision) as denoiser, torch.no_grad():
                denoiser.denoise(
                    row.latent[None], denoiser.sigma_at(torch.tensor([0.5])), [row.cond]
                )
    finally:
        handle.remove()
    assert dtypes == [torch.float32, torch.float32, torch.bfloat16]


def test_mutation_record_does_not_grow_with_the_steps():
    """Flux trains under a record of saved tensors; it must forget finished graphs."""
    model = tiny("flux")
    row = example(model)
    sizes = []
    with open_denoiser(model) as denoiser:
        x = row.latent[None].clone().requires_grad_()
        sigma = denoiser.sigma_at(torch.tensor([0.5]))
        for _ in range(4):
            denoiser.denoise(x, sigma, [row.cond]).sum().backward()
            sizes.append(sum(map(len, denoiser._saved.sid_to_tid.values())))
    assert sizes[-1] <= sizes[0]

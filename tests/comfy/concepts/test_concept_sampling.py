"""Concepts under core's samplers, guiders, masks, ControlNet, hooks, style guidance and text nodes."""

import logging

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider, DualCFGGuider
from concept_case import (
    EXACT,
    LAYERS,
    NAME,
    NEGATIVE,
    apply_concepts,
    contexts_by_hook,
    contexts_of,
    encode,
    latent,
)
from concept_inputs import concept_for, stock
from gated_loras import patched, relative
from guidance_case import ksample, lora_of, observed, sample_with, styled
from pack.nodes.text.layer_contexts import KEY
from tiny import tiny, tiny_clip, tiny_controlnet

import nodes


@pytest.fixture(scope="module")
def concepts():
    """Three concepts of the tiny model with four contexts."""
    model = tiny(NAME)
    return [concept_for(model, name, seed=seed) for seed, name in enumerate(("sks", "ada", "tom"))]


@pytest.mark.parametrize(
    "sampler", ["euler_ancestral", "dpmpp_2m", "ddim", "uni_pc", "lcm", "heun"]
)
def test_every_sampler(concepts, sampler):
    model, clip = apply_concepts(tiny(NAME), concepts[:1], 0.0)
    positive, negative = encode(clip, concepts[:1]), stock(clip, NEGATIVE)

    def run(model):
        return nodes.KSampler().sample(
            model, 3, 3, 5.0, sampler, "karras", positive, negative, {"samples": latent()}
        )[0]["samples"]

    found, base = run(model), tiny(NAME)
    with contexts_by_hook(base, [contexts_of(positive), contexts_of(negative)]):
        assert relative(found, run(base)) < EXACT


def test_other_guiders(concepts):
    model, clip = apply_concepts(tiny(NAME), concepts[:1], 0.0)
    positive, negative = encode(clip, concepts[:1]), stock(clip, NEGATIVE)
    middle = stock(clip, "a tree")
    base = tiny(NAME)
    makers = {
        "basic": (lambda m: BasicGuider.execute(m, positive)[0], [positive]),
        "cfg": (lambda m: CFGGuider.execute(m, positive, negative, 4.0)[0], [positive, negative]),
        "dual": (
            lambda m: DualCFGGuider.execute(m, positive, middle, negative, 4.0, 2.0, "regular")[0],
            [negative, middle, positive],
        ),
    }
    for name, (guider, lists) in makers.items():
        found = sample_with(guider(model), model, latent())
        with contexts_by_hook(base, [contexts_of(one) for one in lists]):
            wanted = sample_with(guider(base), base, latent())
        assert relative(found, wanted) < EXACT, name


def test_masks_areas_and_combined_prompts(concepts):
    model, clip = apply_concepts(tiny(NAME), concepts[:1], 0.0)
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    left = nodes.ConditioningSetMask().append(encode(clip, concepts[:1]), mask, "default", 1.0)[0]
    right = nodes.ConditioningSetArea().append(stock(clip, "a tree"), 32, 64, 32, 0, 1.0)[0]
    later = nodes.ConditioningSetTimestepRange().set_range(
        encode(clip, concepts[:1], "<sks>"), 0.5, 1.0
    )[0]
    positive = [*left, *right, *later]
    negative = stock(clip, NEGATIVE)
    found = ksample(model, positive, negative, latent())

    # The oracle runs every row alone, under hooks with the contexts of its own prompt.
    base = tiny(NAME)
    texts = [*positive, *negative]

    def row_by_row(apply_model, arguments):
        outputs = []
        for row, index in enumerate(arguments["cond_or_uncond"]):
            one = slice(row, row + 1)
            context = arguments["c"]["c_crossattn"][one]
            own = next(contexts_of([text]) for text in texts if torch.equal(text[0], context))
            options = {**arguments["c"]["transformer_options"], "cond_or_uncond": [index]}
            c = {**arguments["c"], "c_crossattn": context, "transformer_options": options}
            with contexts_by_hook(base, {index: own}):
                outputs.append(
                    apply_model(arguments["input"][one], arguments["timestep"][one], **c)
                )
        return torch.cat(outputs)

    oracle = base.clone()
    oracle.set_model_unet_function_wrapper(row_by_row)
    assert relative(found, ksample(oracle, positive, negative, latent())) < EXACT


@pytest.fixture(scope="module")
def controlnet():
    return tiny_controlnet()


def test_a_controlnet_reads_the_ordinary_context(concepts, controlnet):
    model, clip = apply_concepts(tiny(NAME), concepts[:1], 0.0)
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    pair = nodes.ControlNetApplyAdvanced().apply_controlnet(
        encode(clip, concepts[:1]), stock(clip, NEGATIVE), controlnet, hint, 1.0, 0.0, 1.0
    )
    with observed(model) as rows:
        found = ksample(model, *pair, latent())
    assert rows == [2] * 4
    base = tiny(NAME)
    with contexts_by_hook(base, [contexts_of(prompt) for prompt in pair]):
        wanted = ksample(base, *pair, latent())
    assert relative(found, wanted) < EXACT
    bare = ksample(model, encode(clip, concepts[:1]), stock(clip, NEGATIVE), latent())
    assert relative(found, bare) > 1e-3


def test_hook_loras_on_a_prompt(concepts):
    model, clip = apply_concepts(tiny(NAME), concepts[:1], 0.0)
    hooks = comfy.hooks.create_hook_lora(dict(lora_of(NAME)), 1.0, 0.0)
    positive = comfy.hooks.set_hooks_for_conditioning(encode(clip, concepts[:1]), hooks)
    found = ksample(model, positive, [], latent(), cfg=1.0)
    base = patched(tiny(NAME), lora_of(NAME))
    bare = encode(clip, concepts[:1])
    with contexts_by_hook(base, [contexts_of(bare)]):
        wanted = ksample(base, bare, [], latent(), cfg=1.0)
    assert relative(found, wanted) < EXACT


@pytest.mark.parametrize("style_first", [False, True])
@pytest.mark.parametrize("style_text", ["a photo in ink", "a photo of <sks> in ink"])
def test_style_guidance_on_top(concepts, style_first, style_text):
    """One more row that reads its own contexts: equation 10 with the prediction of hooks."""
    base, clip = tiny(NAME), tiny_clip()
    positive, negative = encode(clip, concepts[:1]), stock(clip, NEGATIVE)
    style = encode(clip, concepts[:1], style_text)
    lora = lora_of(NAME)
    if style_first:
        model, _ = apply_concepts(styled(base, lora, style, start=0.0), concepts[:1], 0.0)
    else:
        model = styled(apply_concepts(base, concepts[:1], 0.0)[0], lora, style, start=0.0)
    with observed(model) as rows:
        found = ksample(model, positive, negative, latent())
    assert rows == [3] * 4
    plain = styled(base, lora, [[style[0][0], {}]], start=0.0)
    shown = [contexts_of(positive), contexts_of(negative)]

    # Style rows are shown to the model as the positive's, so the oracle tells them by their text.
    def by_text(module, args, kwargs, layer):
        context = kwargs["context"]
        table = [(positive[0][0][0], shown[0]), (negative[0][0][0], shown[1])]
        table.append((style[0][0][0], contexts_of(style)))
        own = [
            next(c[layer] for text, c in table if torch.allclose(text, row, atol=1e-6))
            for row in context
        ]
        kwargs["context"] = torch.stack(own)
        return args, kwargs

    transformers = [
        m for m in base.model.diffusion_model.modules() if isinstance(m, SpatialTransformer)
    ]
    handles = []
    for layer, transformer in enumerate(transformers):
        for block in transformer.transformer_blocks:
            handles.append(
                block.attn2.register_forward_pre_hook(
                    lambda m, a, k, layer=layer: by_text(m, a, k, layer), with_kwargs=True
                )
            )
    try:
        wanted = ksample(plain, positive, negative, latent())
    finally:
        for handle in handles:
            handle.remove()
    assert relative(found, wanted) < EXACT


def test_attention_patches_of_others_see_each_layers_context(concepts):
    model, clip = apply_concepts(tiny(NAME), concepts[:1], 0.0)
    positive = encode(clip, concepts[:1])
    seen = []

    def watch(n, context, value, options):
        seen.append((options["transformer_index"], context, value))
        return n, context, value

    model.set_model_attn2_patch(watch)
    ksample(model, positive, [], latent(), cfg=1.0)
    assert [index for index, _, _ in seen[:LAYERS]] == list(range(LAYERS))
    for index, context, value in seen[:LAYERS]:
        assert torch.equal(context[0], contexts_of(positive)[index])
        assert torch.equal(value, context)


class TestTextChangedByOtherNodes:
    def drawn(self, concepts, change, wanted_contexts):
        model, clip = apply_concepts(tiny(NAME), concepts[:1], 0.0)
        original = encode(clip, concepts[:1])
        positive = change(clip, original)
        found = ksample(model, positive, [], latent(), cfg=1.0)
        base = tiny(NAME)
        with contexts_by_hook(base, [wanted_contexts(original, positive)]):
            assert relative(found, ksample(base, positive, [], latent(), cfg=1.0)) < EXACT

    def test_zeroed_out(self, concepts, caplog):
        self.drawn(
            concepts,
            lambda clip, prompt: nodes.ConditioningZeroOut().zero_out(prompt)[0],
            lambda before, after: torch.zeros(LAYERS, 77, 768),
        )
        assert "since it was encoded" not in caplog.text

    def test_appended(self, concepts):
        self.drawn(
            concepts,
            lambda clip, prompt: nodes.ConditioningConcat().concat(prompt, stock(clip, "a tree"))[
                0
            ],
            lambda before, after: torch.cat(
                [contexts_of(before), after[0][0][:, 77:].expand(LAYERS, -1, -1)], 1
            ),
        )

    def test_averaged_is_said(self, concepts, caplog):
        with caplog.at_level(logging.WARNING):
            self.drawn(
                concepts,
                lambda clip, prompt: nodes.ConditioningAverage().addWeighted(
                    prompt, stock(clip, "a tree"), 0.5
                )[0],
                lambda before, after: after[0][0].expand(LAYERS, -1, -1),
            )
        assert "changed the prompt of <sks> since it was encoded" in caplog.text


def test_nothing_stays_after_an_error(concepts):
    model, clip = apply_concepts(tiny(NAME), concepts[:1], 0.0)
    positive, negative = encode(clip, concepts[:1]), stock(clip, NEGATIVE)
    wanted = ksample(model, positive, negative, latent())
    before = positive[0][1].copy()

    def fail(*args):
        raise RuntimeError("on purpose")

    broken = model.clone()
    broken.set_model_attn2_patch(fail)
    with observed(model), pytest.raises(RuntimeError, match="on purpose"):
        ksample(broken, positive, negative, latent())
    assert positive[0][1].keys() == before.keys()
    assert "model_conds" not in positive[0][1]
    assert torch.equal(ksample(model, positive, negative, latent()), wanted)
    assert tiny(NAME).get_wrappers(WrappersMP.PREPARE_SAMPLING, KEY) == []

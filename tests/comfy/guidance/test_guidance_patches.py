"""Style guidance beside other guidance, other guiders and other packs' patches."""

import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider, DualCFGGuider, DualModelGuider
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNegGuider
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
from gated_loras import patched, random_lora
from guidance import on_top
from guidance_case import (
    CFG,
    agree,
    empty_latent,
    expected,
    ksample,
    lora_of,
    network,
    observed,
    prompts,
    sample_with,
    styled,
    window,
)
from tiny import tiny, tiny_cond


def cond_or_uncond_patch(model):
    """Return a model with a patch that knows a prompt and a negative, as many packs write it."""

    def weigh(n, context, value, extra_options):
        factors = [(1.0, 0.6)[i] for i in extra_options["cond_or_uncond"]]
        per_row = torch.tensor(factors).repeat_interleave(len(value) // len(factors))
        return n, context, value * per_row[:, None, None]

    clone = model.clone()
    clone.set_model_attn2_patch(weigh)
    return clone


PATCHES = {
    "PAG": ("sd15_middle", lambda m: PerturbedAttentionGuidance.execute(m, 2.0)[0], [2, 1]),
    "SAG": ("sd15_middle", lambda m: SelfAttentionGuidance.execute(m, 0.7, 2.0)[0], [2, 1]),
    "SLG": (
        "flux",
        lambda m: SkipLayerGuidanceDiT.execute(m, 2.0, 0.0, 1.0, "0", "1", 0.3)[0],
        [2, 1],
    ),
    "SLG simple": (
        "flux",
        lambda m: SkipLayerGuidanceDiTSimple.execute(m, 0.0, 1.0, "0", "1")[0],
        [1, 1],
    ),
    "(cond, uncond)[i]": ("sd15", cond_or_uncond_patch, [2]),
}


@pytest.mark.parametrize("kind", PATCHES)
def test_patch(kind):
    """The other guidance is what it was; only the call that holds the positive has style rows."""
    name, patch, plain_rows = PATCHES[kind]
    positive, negative, style = prompts(name, 12)
    latent, lora = torch.zeros(1, empty_latent(name).shape[1], 8, 8), lora_of(name)
    with observed(tiny(name)) as rows:
        model = styled(patch(tiny(name)), lora, style)
        found = ksample(model, positive, negative, latent)
    styled_rows = [plain_rows[0] + 1, *plain_rows[1:]]
    assert rows == plain_rows + 3 * styled_rows
    base = CFGGuider.execute(patch(network(name, "base")), positive, negative, CFG)[0]

    def factory(name, role):
        return patch(network(name, role)) if kind == "(cond, uncond)[i]" else network(name, role)

    factory_options = {"factory": factory} if kind == "(cond, uncond)[i]" else {}
    wanted = expected(
        name,
        positive,
        negative,
        [(lora, style, window(name))],
        latent,
        combine=on_top,
        base=base,
        **factory_options,
    )
    agree(found, wanted)


def guiders(model, positive, negative, role):
    """Return core's other guiders over a model; ``role`` keeps the second model apart."""
    third = tiny_cond(tiny("flux"), 12, seed=9)
    other = patched(network("flux", f"negative {role}"), random_lora(tiny("flux"), seed=500))
    return {
        "PerpNeg": lambda: PerpNegGuider.execute(model, positive, negative, third, CFG, 0.8),
        "DualCFG": lambda: DualCFGGuider.execute(
            model, positive, third, negative, 3.0, 2.0, "regular"
        ),
        "DualCFG nested": lambda: DualCFGGuider.execute(
            model, positive, third, negative, 3.0, 2.0, "nested"
        ),
        "DualModel": lambda: DualModelGuider.execute(model, positive, CFG, other, negative),
        "DualModel at 1": lambda: DualModelGuider.execute(model, positive, 1.0, other, negative),
    }


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        ("PerpNeg", 3),
        ("DualCFG", 3),
        ("DualCFG nested", 3),
        ("DualModel", 1),
        ("DualModel at 1", 1),
    ],
)
def test_guider(kind, plain):
    """The style's term is added once, unscaled, to whatever the guider predicts."""
    positive, negative, style = prompts("flux", 12)
    latent, lora = empty_latent("flux"), lora_of("flux")
    model = styled(tiny("flux"), lora, style)
    with observed(model) as rows:
        guider = guiders(model, positive, negative, "found")[kind]()[0]
        found = sample_with(guider, model, latent)
    assert rows == [plain, plain + 1, plain + 1, plain + 1]
    base = guiders(network("flux", "base"), positive, negative, "wanted")[kind]()[0]
    styles = [(lora, style, window("flux"))]
    agree(
        found,
        expected("flux", positive, negative, styles, latent, combine=on_top, base=base),
    )


@pytest.mark.parametrize("name", ["flux", "sd15"])
def test_upstream_lora_is_part_of_every_prediction(name):
    positive, negative, style = prompts(name, 12)
    latent, lora, upstream = empty_latent(name), lora_of(name), lora_of(name, 3)
    model = patched(tiny(name), upstream)
    with observed(model) as rows:
        found = ksample(styled(model, lora, style), positive, negative, latent)
    assert rows == [2, 3, 3, 3]
    styles = [(lora, style, window(name))]
    agree(found, expected(name, positive, negative, styles, latent, upstream=upstream))


def windows(model):
    """Return the model with core's context windows of three frames."""
    return ContextWindowsManualNode.execute(
        model, 3, 1, "standard_static", 1, False, "pyramid", 2, False
    )[0]


def test_context_windows_are_refused_where_they_cut():
    positive, negative, style = prompts("wan21", 12)
    model = styled(windows(tiny("wan21")), lora_of("wan21"), style)
    short, long = torch.zeros(1, 16, 3, 4, 4), torch.zeros(1, 16, 7, 4, 4)
    plain = ksample(styled(tiny("wan21"), lora_of("wan21"), style), positive, negative, short)
    with observed(model):
        assert torch.equal(ksample(model, positive, negative, short), plain)
    with observed(model), pytest.raises(RuntimeError, match="got context windows; remove"):
        ksample(model, positive, negative, long)


def test_several_gpus_are_refused():
    positive, negative, style = prompts("flux", 12)
    model = styled(tiny("flux"), lora_of("flux"), style)
    model.set_additional_models("multigpu", [network("flux", "base")])
    with observed(model), pytest.raises(ValueError, match="must run on a single GPU"):
        ksample(model, positive, negative, empty_latent("flux"))


def test_guider_without_a_positive_is_refused():
    positive, _, style = prompts("flux", 12)
    model = styled(tiny("flux"), lora_of("flux"), style)
    guider = BasicGuider.execute(model, positive)[0]
    guider.original_conds = {"prompt": guider.original_conds["positive"]}
    with observed(model), pytest.raises(ValueError, match="with prompt; use KSampler"):
        sample_with(guider, model, empty_latent("flux"))


def test_calls_that_hide_the_positive_are_refused():
    """Copies of the conditioning, as tiling packs make them: an error rather than no style."""
    positive, negative, style = prompts("flux", 12)
    model = styled(tiny("flux"), lora_of("flux"), style)

    def copies(args):
        conds = [list(cond) for cond in args["conds"]]
        return comfy.samplers.calc_cond_batch(
            args["model"], conds, args["input"], args["sigma"], args["model_options"]
        )

    model.set_model_sampler_calc_cond_batch_function(copies)
    with observed(model), pytest.raises(RuntimeError, match="must find the positive prompt"):
        ksample(model, positive, negative, empty_latent("flux"))


def test_regrouped_rows_are_refused():
    positive, negative, style = prompts("flux", 12)
    model = styled(tiny("flux"), lora_of("flux"), style)

    def row_by_row(apply_model, args):
        rows = []
        for i in range(len(args["input"])):
            one = slice(i, i + 1)
            tensors = {k: v[one] for k, v in args["c"].items() if isinstance(v, torch.Tensor)}
            rows.append(
                apply_model(args["input"][one], args["timestep"][one], **args["c"] | tensors)
            )
        return torch.cat(rows)

    model.set_model_unet_function_wrapper(row_by_row)
    with observed(model), pytest.raises(RuntimeError, match="must know each row"):
        ksample(model, positive, negative, empty_latent("flux"))


@pytest.mark.parametrize(
    "error",
    [KeyError, comfy.model_management.InterruptProcessingException],
    ids=lambda e: e.__name__,
)
def test_nothing_is_left_after_an_error_or_a_cancel(error):
    positive, negative, style = prompts("flux", 12)
    latent = empty_latent("flux")
    model = styled(tiny("flux"), lora_of("flux"), style)
    before = ksample(model, positive, negative, latent)
    failing = model.clone()
    calls = []

    def fail(apply_model, args):
        calls.append(len(args["input"]))
        if len(calls) == 3:
            raise error
        return apply_model(args["input"], args["timestep"], **args["c"])

    failing.set_model_unet_function_wrapper(fail)
    with observed(model), pytest.raises(error):
        ksample(failing, positive, negative, latent)
    assert calls == [2, 3, 3]
    assert torch.equal(ksample(model, positive, negative, latent), before)

"""Regions under real samplers: whom each token hears, on every kind of network."""

import math
from contextlib import contextmanager

import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from gated_loras import hook_count, relative
from pack.lora_ops import Box, Region
from pack.nodes.regions.layout.sets import WHOLE_CELLS
from regional_case import (
    EXACT,
    LEFT,
    RIGHT,
    WHOLE,
    cond,
    ksample,
    latent_of,
    region_prompts,
    regional,
)
from tiny import tiny, tiny_cond

CROSS = ("sd15", "sd21_v", "sdxl", "wan21")
ALL = (*CROSS, "sd3", "flux", "flux2")
# Minutes on a slow core; what they share with SD1.5 is tested on that.
SLOW = {"sd21_v", "sdxl", "flux2"}


def networks(*names):
    """Return parameters, the slow networks only with ``--full``."""
    marked = {name: pytest.mark.full for name in SLOW}
    return [pytest.param(name, marks=marked.get(name, ())) for name in names]


@pytest.fixture(autouse=True)
def _nothing_is_left():
    """After every test the shared networks are as they were."""
    yield
    for name in ("sd15", "sd3", "flux", "wan21"):
        assert hook_count(tiny(name)) == 0


@pytest.mark.parametrize("name", ALL)
def test_one_full_frame_region_is_that_prompt_alone(name):
    positive, negative, own, unwanted = (cond(name, seed) for seed in range(4))
    wanted = ksample(tiny(name), own, unwanted, latent_of(name))
    model = regional(tiny(name), [WHOLE], region_prompts(("all", own, unwanted)))
    found = ksample(model, positive, negative, latent_of(name))
    assert relative(found, wanted) < EXACT
    # Without a negative of its own, the sampler's holds.
    model = regional(tiny(name), [WHOLE], region_prompts(("all", own, None)))
    wanted = ksample(tiny(name), own, negative, latent_of(name))
    assert relative(ksample(model, positive, negative, latent_of(name)), wanted) < EXACT


@pytest.mark.parametrize("name", networks(*ALL))
def test_no_region_is_the_plain_sampler_bit_for_bit(name):
    positive, negative, own = (cond(name, seed) for seed in range(3))
    plain = ksample(tiny(name), positive, negative, latent_of(name))
    for regions, prompts in (
        ([], None),
        ([Region("later", WHOLE.box, weight=0.0)], region_prompts(("later", own, None))),
    ):
        model = regional(tiny(name), regions, prompts, pooled="global prompt's")
        assert torch.equal(ksample(model, positive, negative, latent_of(name)), plain)


@pytest.mark.parametrize("name", networks(*CROSS))
def test_equal_prompts_everywhere_are_the_plain_sampler(name):
    positive, negative = cond(name, 0), cond(name, 1)
    plain = ksample(tiny(name), positive, negative, latent_of(name))
    prompts = region_prompts(("left", positive, negative), ("right", positive, None))
    regions = [LEFT, Region("right", Box(0.3, 0.2, 1, 1), feather=0.2)]
    found = ksample(regional(tiny(name), regions, prompts), positive, negative, latent_of(name))
    assert relative(found, plain) < EXACT


BOXES = {"one": Box(0.1, 0.1, 0.62, 0.8), "two": Box(0.4, 0.3, 0.95, 1.0)}


@contextmanager
def slow_regions(model, texts, height, width):
    """Give each cross-attention the paper's routing, token by token, from outside.

    Args:
        model: A UNet's patcher.
        texts: By list index and region: a context, or None for the row's own.
        height: Of the latent.
        width: Of the latent.
    """

    def covering(y, x, rows, columns):
        found = []
        for name, box in BOXES.items():
            inside_y = math.ceil(box.top * rows) <= y < math.floor(box.bottom * rows)
            inside_x = math.ceil(box.left * columns) <= x < math.floor(box.right * columns)
            if inside_y and inside_x:
                found.append(name)
        return found

    def attention(layer, q, text):
        k, v = layer.to_k(text), layer.to_v(text)
        q, k, v = (z.unflatten(-1, (layer.heads, -1)).movedim(-2, 0) for z in (q, k, v))
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return (scores @ v).movedim(0, -2).flatten(-2)

    def exchange(layer, args, kwargs, output):
        x, context = args[0], kwargs["context"]
        lists = kwargs["transformer_options"]["cond_or_uncond"]
        batch = x.shape[0] // len(lists)
        level = math.sqrt(height * width / x.shape[1])
        rows, columns = round(height / level), round(width / level)
        out = []
        for row in range(x.shape[0]):
            q = layer.to_q(x[row])
            own = texts[lists[row // batch]]
            heard = {name: attention(layer, q, own[name]) for name in own if own[name] is not None}
            plain = attention(layer, q, context[row])
            tokens = []
            for token in range(x.shape[1]):
                names = covering(*divmod(token, columns), rows, columns)
                parts = [heard.get(name, plain)[token] for name in names] or [plain[token]]
                tokens.append(sum(parts) / len(parts))
            out.append(torch.stack(tokens))
        return layer.to_out(torch.stack(out))

    handles = [
        module.attn2.register_forward_hook(exchange, with_kwargs=True)
        for module in model.model.diffusion_model.modules()
        if isinstance(module, BasicTransformerBlock)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("name", "height", "width", "batch"),
    [("sd15", 8, 8, 1), ("sd15", 7, 9, 3), pytest.param("sdxl", 8, 12, 1, marks=pytest.mark.full)],
)
def test_the_papers_routing(name, height, width, batch):
    """Overlapping boxes, a negative in one of them, against attention token by token."""
    positive, negative, one, two, unwanted = (cond(name, seed) for seed in range(5))
    regions = [Region(title, box) for title, box in BOXES.items()]
    # prompts of another length than the global one
    two = tiny_cond(tiny(name), 24, seed=9)
    prompts = region_prompts(("one", one, unwanted), ("two", two, None))
    model = regional(tiny(name), regions, prompts, cells=WHOLE_CELLS, pooled="global prompt's")
    latent = latent_of(name, height, width, batch)
    found = ksample(model, positive, negative, latent, steps=2)
    texts = {
        0: {"one": one[0][0][0], "two": two[0][0][0]},
        1: {"one": unwanted[0][0][0], "two": None},
    }
    with slow_regions(tiny(name), texts, height, width):
        wanted = ksample(tiny(name), positive, negative, latent, steps=2)
    assert relative(found, wanted) < EXACT
    assert relative(found, ksample(tiny(name), positive, negative, latent, steps=2)) > 1e-2


@pytest.mark.parametrize("name", networks("sd15", "sdxl", "sd3", "flux", "wan21"))
@pytest.mark.parametrize(("height", "width", "batch"), [(8, 8, 3), (7, 9, 1), (16, 16, 1)])
def test_batches_odd_sizes_and_a_second_pass(name, height, width, batch):
    """Each size has the regions where they are; a full frame of two halves is one prompt."""
    positive, negative, own = (cond(name, seed) for seed in range(3))
    prompts = region_prompts(("left", own, None), ("right", own, None))
    model = regional(tiny(name), [LEFT, RIGHT], prompts)
    small = ksample(model, positive, negative, latent_of(name, batch=batch), steps=2)
    latent = torch.nn.functional.interpolate(
        small.flatten(0, -4) if small.ndim == 5 else small, (height, width)
    )
    latent = latent.reshape(*small.shape[:-2], height, width)
    found = ksample(model, positive, negative, latent, steps=2, denoise=0.6)
    if name in ("sd15", "sdxl", "wan21"):  # joint attention has two streams of the same words
        wanted = ksample(tiny(name), own, negative, latent, steps=2, denoise=0.6)
        assert relative(found, wanted) < EXACT
    plain = ksample(tiny(name), positive, negative, latent, steps=2, denoise=0.6)
    assert relative(found, plain) > 1e-3
    assert bool(found.isfinite().all())


def first_cross_attention(model):
    return next(
        module.attn2
        for module in model.model.diffusion_model.modules()
        if isinstance(module, BasicTransformerBlock)
    )


def test_a_text_has_no_part_in_tokens_of_another_region():
    """Within one attention call the gradient of text A is exactly zero on tokens only in B."""
    positive, own, other = (cond("sd15", seed) for seed in range(3))
    seen = {}

    def gradient_of(layer, args, kwargs, output):
        if "a" in seen:
            return
        with torch.enable_grad():
            texts = [z[0][0].clone().requires_grad_() for z in (own, other)]
            run["backend"]._kept.clear()
            for text, mine in zip(run["entries"][0].texts, texts, strict=True):
                object.__setattr__(text, "context", mine)
            seen["a"] = None  # the call below meets this hook again
            again = layer(*args, **kwargs)
            left, right = again.unflatten(1, (8, 8)).split(4, dim=2)
            seen["a"] = torch.autograd.grad(right.square().sum(), texts, retain_graph=True)
            seen["b"] = torch.autograd.grad(left.square().sum(), texts)

    run = {}
    model = regional(
        tiny("sd15"), [LEFT, RIGHT], region_prompts(("left", own, None), ("right", other, None))
    )

    def keep_run(apply_model, arguments):
        wrappers = arguments["c"]["transformer_options"]["wrappers"]["apply_model"]
        ours = wrappers["pastiche_regions"][0].__self__
        run.update(backend=ours._backend, entries=ours._entries)
        # announce the layer once more for the second call
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    model.set_model_unet_function_wrapper(keep_run)
    layer = first_cross_attention(model)

    class Again:
        """Keeps what the attention layer was announced with, for a second call of it."""

        def __call__(self, module, args, kwargs):
            backend = run["backend"]
            if backend._layer is None:
                backend._layer = run["layer"]
            run["layer"] = backend._layer

    before = layer.register_forward_pre_hook(Again(), with_kwargs=True)
    after = layer.register_forward_hook(gradient_of, with_kwargs=True)
    try:
        ksample(model, positive, [], latent_of("sd15"), cfg=1.0, steps=1)
    finally:
        before.remove()
        after.remove()
    (own_on_right, other_on_right), (own_on_left, other_on_left) = seen["a"], seen["b"]
    assert not own_on_right.any()
    assert not other_on_left.any()
    assert other_on_right.any()
    assert own_on_left.any()


@pytest.mark.parametrize("name", ["sd15", "flux", "wan21"])
def test_start_and_end_percent(name):
    """Outside of its part of the run a region is not there."""
    positive, negative, own = (cond(name, seed) for seed in range(3))
    late = Region("all", WHOLE.box, start_percent=0.5)
    early = Region("all", WHOLE.box, end_percent=0.5)
    prompts = region_prompts(("all", own, None))
    calls = {}
    for title, region in (("late", late), ("early", early)):
        model = regional(tiny(name), [region], prompts, pooled="global prompt's")
        calls[title] = ksample(model, positive, negative, latent_of(name))

    def swapping(first, second):
        """Return a model that takes one text until half of the run, the other then."""
        half = tiny(name).get_model_object("model_sampling").percent_to_sigma(0.5)

        def swap(apply_model, arguments):
            c, sigma = dict(arguments["c"]), float(arguments["timestep"][0])
            text = first if sigma > half else second
            lists = arguments["cond_or_uncond"]
            texts = [text[0][0] if i == 0 else negative[0][0] for i in lists]
            c["c_crossattn"] = torch.cat(texts)
            return apply_model(arguments["input"], arguments["timestep"], **c)

        clone = tiny(name).clone()
        clone.set_model_unet_function_wrapper(swap)
        return ksample(clone, positive, negative, latent_of(name))

    assert relative(calls["late"], swapping(positive, own)) < EXACT
    assert relative(calls["early"], swapping(own, positive)) < EXACT


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_pooled_vectors_are_mixed_by_area_or_left_alone(name):
    positive, negative, own = (cond(name, seed) for seed in range(3))
    prompts = region_prompts(("left", own, None))
    seen = []

    def record(apply_model, arguments):
        lists = arguments["cond_or_uncond"]
        seen.append(arguments["c"]["y"][lists.index(0)].clone())
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    for pooled in ("mean by area", "global prompt's"):
        model = regional(tiny(name), [LEFT], prompts, pooled=pooled)
        model.set_model_unet_function_wrapper(record)
        ksample(model, positive, negative, latent_of(name), steps=1)
    vectors = [text[0][1]["pooled_output"][0] for text in (positive, own)]
    width = vectors[0].shape[-1]
    torch.testing.assert_close(seen[0][:width], (vectors[0] + vectors[1]) / 2)
    torch.testing.assert_close(seen[1][:width], vectors[0])

"""Attention that keeps each prompt to its region: golden numbers, loops, properties."""

import random

import pytest
import regional
import torch
import torch.nn.functional as F
from least_squares import wave
from pack.lora_ops.mixing import (
    area_weights,
    mix_outputs,
    mix_regions,
    pooled_mean,
    regional_attention,
    stream_bias,
)
from pack.lora_ops.regions import Box, Region, token_grid, token_masks

HEADS = 2


# R1: methods/mix_of_show.md, section 5, found with the authors' attention processor.
GOLDEN_BOXES = [(10, 20, 100, 130), (30, 100, 128, 250)]


def golden_layer():
    weights = {
        name: 0.5 * wave(8, inputs, rate=rate, phase=phase)
        for name, inputs, rate, phase in [
            ("q", 8, 0.31, 0.1),
            ("k", 6, 0.47, 0.2),
            ("v", 6, 0.53, 0.3),
            ("out", 8, 0.29, 0.4),
        ]
    }
    q = wave(2, 512, 8, rate=0.013, phase=0.0) @ weights["q"].mT
    contexts = [wave(2, 16, 5, 6, rate=0.11, phase=0.6)[:, 3]]
    contexts += [wave(2, 16, 5, 6, rate=0.17 + 0.06 * i, phase=0.7 + i)[:, 3] for i in range(2)]
    text = [(c @ weights["k"].mT, c @ weights["v"].mT) for c in contexts]
    bias = wave(8, rate=0.7, phase=0.5)
    return q, text, lambda x: x @ weights["out"].mT + bias


def test_golden_regional_attention():
    q, (base, *texts), to_out = golden_layer()
    regions = [
        Region(f"{i}", Box(box[1] / 256, box[0] / 128, box[3] / 256, box[2] / 128))
        for i, box in enumerate(GOLDEN_BOXES)
    ]
    grid = token_grid(128, 256, 512)
    assert grid == (16, 32)
    masks = token_masks(regions, grid, rule="paper")
    out = to_out(regional_attention(q, *base, texts, mix_regions(masks), heads=HEADS))
    plain = to_out(regional_attention(q, *base, [], mix_regions(masks[:0]), heads=HEADS))
    assert float(out.sum()) == pytest.approx(196.075583, abs=5e-7)
    assert float(out.abs().sum()) == pytest.approx(5773.887251, abs=5e-7)
    assert float(out.norm()) == pytest.approx(71.646735, abs=5e-7)
    assert float(plain.sum()) == pytest.approx(208.482218, abs=5e-7)
    assert float(plain.norm()) == pytest.approx(72.355356, abs=5e-7)
    assert int(((out - plain)[0].abs().amax(-1) > 1e-12).sum()) == 322
    at = out.view(2, 16, 32, 8)
    for place, wanted in [
        ((0, 0, 0), [0.485070, 0.794519, 1.127974, 0.405562]),
        ((0, 2, 3), [0.190764, 1.323870, 0.701244, 0.457464]),
        ((1, 2, 3), [0.692308, 0.532454, 1.277698, 0.463686]),
        ((1, 15, 31), [0.488487, 1.228953, 0.532809, 0.781809]),
    ]:
        assert at[place][:4].tolist() == pytest.approx(wanted, abs=6e-7)


def test_attention_against_a_loop_over_tokens():
    generator = torch.Generator().manual_seed(0)
    draw = random.Random(1)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for grid in [(4, 6), (5, 3), (1, 9)]:
        q = noise(2, grid[0] * grid[1], 8)
        texts = [(noise(2, size, 8), noise(2, size, 8)) for size in (5, 5, 7, 3)]
        boxes, found = [], []
        for _ in range(3):
            top, left = draw.random() * 0.7, draw.random() * 0.7
            box = (top, left, top + 0.05 + draw.random() * 0.2, left + 0.3)
            boxes.append(Region("a", Box(box[1], box[0], box[3], box[2])))
            found.append(regional.centre_cells(box, grid))
        out = regional_attention(
            q, *texts[0], texts[1:], mix_regions(token_masks(boxes, grid)), heads=HEADS
        )
        wanted = regional.regional_attention(q, texts[0], texts[1:], found, grid[1], HEADS)
        torch.testing.assert_close(out, wanted)


def plain(q, k, v):
    split = [x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def small_case(regions: int, tokens: int = 12):
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(2, tokens, 8, generator=generator)
    texts = [
        tuple(torch.randn(2, 5, 8, generator=generator) for _ in range(2))
        for _ in range(regions + 1)
    ]
    return q, texts


def test_no_region_is_bit_equal_to_plain_attention():
    q, (base,) = small_case(0)
    out = regional_attention(q, *base, [], mix_regions(torch.zeros(0, 12)), heads=HEADS)
    assert out.equal(plain(q, *base))


def test_one_region_over_everything_is_its_prompt_alone():
    q, (base, own) = small_case(1)
    masks = token_masks([Region("all", Box(0, 0, 1, 1))], (3, 4))
    out = regional_attention(q, *base, [own], mix_regions(masks), heads=HEADS)
    torch.testing.assert_close(out, plain(q, *own))


def test_tokens_that_hear_one_prompt_each_are_sorted_and_put_back():
    """Hard regions that don't touch, in any arrangement, against a loop over tokens."""
    generator = torch.Generator().manual_seed(8)
    heard = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 0, 2, 1])
    q, (base, one, two, unheard) = small_case(3)
    masks = torch.stack([(heard == number).float() for number in (1, 2, 3)])
    mixed = mix_regions(masks)
    assert mixed.token_order is not None
    assert mixed.token_order.counts == (4, 4, 4, 0)
    calls = []

    def attend(q, k, v):
        calls.append(q.shape[1])
        return plain(q, k, v)

    out = regional_attention(q, *base, [one, two, unheard], mixed, heads=HEADS, attend=attend)
    for token, number in enumerate(heard.tolist()):
        wanted = plain(q, *(base, one, two)[number])[:, token]
        torch.testing.assert_close(out[:, token], wanted)
    assert calls == [4, 4, 4]
    order = torch.randperm(12, generator=generator)
    again = mix_regions(masks[:, order])
    shuffled = regional_attention(q[:, order], *base, [one, two, unheard], again, heads=HEADS)
    torch.testing.assert_close(shuffled, out[:, order])
    bands = mix_regions(torch.stack([torch.arange(12) >= 6]).float())
    assert bands.token_order.order is None  # already in order: nothing is gathered
    overlapping = mix_regions(torch.ones(2, 12))
    assert overlapping.token_order is None


def test_equal_prompts_everywhere_are_plain_attention():
    q, (base, *_) = small_case(0)
    regions = [Region("a", Box(0, 0, 0.6, 0.7), feather=0.4), Region("b", Box(0.3, 0.2, 1, 1))]
    mixed = mix_regions(token_masks(regions, (3, 4)), weights=[0.3, 2.0], blends=[0.5, 0.0])
    out = regional_attention(q, *base, [base, base], mixed, heads=HEADS)
    torch.testing.assert_close(out, plain(q, *base))


def test_a_region_without_a_prompt_is_served_by_the_global_one():
    q, (base, own) = small_case(1)
    mixed = mix_regions(torch.tensor([[1.0] * 6 + [0.0] * 6, [0.0] * 6 + [1.0] * 6]))
    out = regional_attention(q, *base, [None, own], mixed, heads=HEADS)
    torch.testing.assert_close(out[:, :6], plain(q, *base)[:, :6])
    torch.testing.assert_close(out[:, 6:], plain(q, *own)[:, 6:])


def test_a_prompt_has_no_gradient_outside_its_region():
    q, (base, left, right) = small_case(2)
    for tensor in (*base, *left, *right):
        tensor.requires_grad_()
    regions = [Region("left", Box(0, 0, 0.5, 1)), Region("right", Box(0.5, 0, 1, 1))]
    masks = token_masks(regions, (3, 4))
    out = regional_attention(q, *base, [left, right], mix_regions(masks), heads=HEADS)
    out[:, masks[1] > 0].square().sum().backward()
    assert all(t.grad is None or bool((t.grad == 0).all()) for t in (*base, *left))
    assert all(bool((t.grad != 0).any()) for t in right)


def test_mixing_means_weights_and_blend():
    masks = torch.tensor([[1.0, 1.0, 0.0, 0.25], [0.0, 1.0, 0.0, 0.25]])
    even = mix_regions(masks).coefficients.float()
    torch.testing.assert_close(
        even, torch.tensor([[0, 0, 1, 0.5], [1, 0.5, 0, 0.25], [0, 0.5, 0, 0.25]])
    )
    uneven = mix_regions(masks, weights=[3.0, 1.0], blends=[0.2, 0.0]).coefficients.float()
    torch.testing.assert_close(uneven[:, 0], torch.tensor([0.2, 0.8, 0.0]))
    torch.testing.assert_close(uneven[:, 1], torch.tensor([0.15, 0.6, 0.25]))
    silent = mix_regions(masks, weights=[0.0, 1.0]).coefficients.float()
    torch.testing.assert_close(silent[:, 0], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(silent[:, 1], torch.tensor([0.0, 0.0, 1.0]))


def test_mixing_always_sums_to_one():
    masks = torch.rand(5, 300, generator=torch.Generator().manual_seed(0))
    masks[masks < 0.4] = 0.0
    found = mix_regions(masks, weights=[1.0, 0.0, 3.0, 0.5, 1.0], blends=[0.0, 0.3, 1.0, 0.0, 0.1])
    torch.testing.assert_close(found.coefficients.sum(0), torch.ones(300).double())
    assert bool((found.coefficients >= 0).all())


def test_soft_neighbours_leave_nothing_to_the_global_prompt():
    regions = [
        Region("a", Box(0, 0, 0.37, 1), feather=0.3),
        Region("b", Box(0.37, 0, 1, 1), feather=0.3),
    ]
    mixed = mix_regions(token_masks(regions, (31, 47)))
    assert bool((mixed.coefficients[0] == 0).all())
    assert len(mixed.places[0]) == 0


def test_area_weights_and_the_pooled_vector():
    regions = [Region("a", Box(0, 0, 0.5, 1)), Region("b", Box(0.5, 0, 1, 0.5))]
    mixed = mix_regions(token_masks(regions, (4, 4)))
    assert area_weights(mixed).tolist() == [0.25, 0.5, 0.25]
    vectors = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[4.0, 4.0]]])
    found = pooled_mean(vectors[0], [vectors[1], vectors[2]], mixed)
    torch.testing.assert_close(found, torch.tensor([[1.25, 1.5]]))
    found = pooled_mean(vectors[0], [None, vectors[2]], mixed)
    torch.testing.assert_close(found, torch.tensor([[1.75, 1.0]]))


# joint attention, where prompts and image tokens share one stream
def joint(q, k, v, bias):
    split = [x.unflatten(-1, (HEADS, -1)).transpose(0, 1) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*split, attn_mask=bias).transpose(0, 1).flatten(1)


def test_joint_attention_against_a_loop_over_queries():
    generator = torch.Generator().manual_seed(0)
    lengths, tokens = [2, 3, 1], 5
    q, k, v = (torch.randn(6 + tokens, 8, generator=generator).double() for _ in range(3))
    masks = torch.tensor([[1.0, 1.0, 0.0, 0.25, 0.0], [0.0, 1.0, 1.0, 0.25, 0.0]])
    mixed = mix_regions(masks)
    found = joint(q, k, v, stream_bias(mixed, lengths).double())
    owner = [0, 0, 1, 1, 1, 2]
    for query in range(6 + tokens):
        shares = []
        for key in range(6 + tokens):
            if query < 6 and key < 6:
                shares.append(float(owner[query] == owner[key]))
            elif query >= 6 and key >= 6:
                shares.append(1.0)
            else:
                text, token = min(query, key), max(query, key) - 6
                shares.append(float(mixed.coefficients[owner[text], token]))
        for head in range(HEADS):
            part = slice(4 * head, 4 * head + 4)
            scores = (k[:, part] @ q[query, part] / 2).exp() * torch.tensor(shares).double()
            torch.testing.assert_close(
                found[query, part], scores @ v[:, part] / scores.sum(), rtol=1e-6, atol=1e-7
            )


def test_one_region_over_everything_leaves_the_global_prompt_unheard():
    bias = stream_bias(mix_regions(torch.ones(1, 4)), [2, 3])
    assert bias[2:, 2:].equal(torch.zeros(7, 7))
    assert bool((bias[:2, 2:] == float("-inf")).all())
    assert bool((bias[2:, :2] == float("-inf")).all())
    assert bias[:2, :2].equal(torch.zeros(2, 2))


def test_a_text_stream_has_no_gradient_on_tokens_of_another_region():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(9, 8, generator=generator) for _ in range(3))
    v.requires_grad_()
    k.requires_grad_()
    masks = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    bias = stream_bias(mix_regions(masks), [1, 2, 2])
    joint(q, k, v, bias)[7:].square().sum().backward()  # tokens of the second region
    for grad in (k.grad, v.grad):
        assert bool((grad[:3] == 0).all())
        assert bool((grad[3:5] != 0).any())


def test_a_wrong_number_of_things_is_refused():
    q, (base, own) = small_case(1)
    with pytest.raises(ValueError, match="a prompt or None for each region, got 1 for 2"):
        regional_attention(q, *base, [own], mix_regions(torch.ones(2, 12)), heads=HEADS)
    with pytest.raises(ValueError, match="masks for 12 tokens, got 9"):
        regional_attention(q, *base, [own], mix_regions(torch.ones(1, 9)), heads=HEADS)
    with pytest.raises(ValueError, match="one weight for each region, got 1 for 2"):
        mix_regions(torch.ones(2, 12), weights=[1.0])
    with pytest.raises(ValueError, match="a length for each prompt, got 1 for 2"):
        stream_bias(mix_regions(torch.ones(1, 4)), [5])


@pytest.mark.parametrize("seed", range(20))
def test_outputs_of_whole_layers_mix_as_attention_does(seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(3, 12, generator=generator)
    masks = masks.round() if seed % 2 else masks
    mixed = mix_regions(masks, weights=[1, 2, 0.5], blends=[0, 0.3, 0])
    base, *outputs = torch.randn(4, 2, 12, 5, generator=generator, dtype=torch.float64)
    outputs[1] = None
    wanted = torch.zeros_like(base)
    for token in range(12):
        for region, one in enumerate([base, outputs[0], base, outputs[2]]):
            wanted[:, token] += mixed.coefficients[region, token] * one[:, token]
    torch.testing.assert_close(mix_outputs(base, outputs, mixed), wanted)


def test_a_slot_that_a_prompt_does_not_fill_is_heard_by_nobody():
    mixed = mix_regions(torch.tensor([[1.0, 1, 0, 0], [0, 0, 0.5, 1]]))
    full = stream_bias(mixed, (3, 2, 1))
    found = stream_bias(mixed, (3, 4, 2), (3, 2, 1))
    filled = [0, 1, 2, 3, 4, 7, *range(9, 13)]
    empty = [5, 6, 8]
    assert torch.equal(found[filled][:, filled], full)
    assert torch.equal(found[empty].exp(), torch.eye(13)[empty])
    assert torch.equal(found[:, empty].exp(), torch.eye(13)[:, empty])

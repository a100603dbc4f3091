"""A prompt with concepts, against ComfyUI's own encoding of the same rows as ``embedding:`` words."""

import copy

import comfy.hooks
import pytest
import torch
from concept_inputs import (
    clip_with,
    concept_for,
    rows_of,
    stock,
    text_lora,
    tiny_sdxl_clip,
    write_embedding,
)
from concept_prompt_case import BAD, LAYERS, concept, encoded
from pack.nodes.concepts.nodes_use import EncodeConceptPrompt
from pack.nodes.text.concept_prompt import PROMPT, bound_prompt, encode_concept_prompt
from pack.training.files.concept import Concept
from pack.training.files.lora_state import LoraState, lora_state
from tiny import tiny, tiny_clip

LONG = "a very long prompt of many words about a house, a tree, a star and a ball, " * 6


def as_embedding(text, concepts, folder, layer):
    """Return the prompt with ComfyUI's own words for the same rows."""
    for one in concepts:
        word = write_embedding(folder, f"{one.name}_{layer}", one, layer)
        text = text.replace(f"<{one.name}>", word)
    return text


PROMPTS = {
    "one": "a photo of <sks> on a beach",
    "first": "<sks> on a beach",
    "weighted": "a (photo of <sks>:1.3) in the (snow:0.7)",
    "weighted alone": "a (<sks>) and ( <sks> :1.4) dog",
    "three": "<sks> beside <ada> and (<tom>:1.2) , ink",
    "over 77 tokens": f"{LONG} <sks> {LONG} with <ada> , red",
    "at the edge of a chunk": f"{'house ' * 74} <sks> tree",
    "escaped brackets": r"a \(real\) photo of <sks> \(old\)",
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_each_layer_reads_what_core_makes_of_its_rows(tmp_path, prompt):
    clip = clip_with(tmp_path)
    concepts = [concept("sks", 0), concept("ada", 1), concept("tom", 2)]
    context, layers, options = encoded(clip, concepts, prompt)
    for layer in range(LAYERS):
        ((wanted, _),) = stock(clip, as_embedding(prompt, concepts, tmp_path, layer))
        assert torch.equal(layers[:, layer], wanted)
    ((mean, mean_options),) = stock(clip, as_embedding(prompt, concepts, tmp_path, None))
    assert torch.equal(context, mean)
    assert torch.equal(options["pooled_output"], mean_options["pooled_output"])


def test_equal_layers_are_plain_conditioning():
    clip = tiny_clip()
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    words = [clip.tokenize(word)["l"][0][1][0] for word in ("red", "dog")]
    rows = table[words].float()[:, None].expand(-1, LAYERS, -1).clone()
    context, layers, _ = encoded(clip, [concept(rows={"clip_l": rows})], "a (<sks>:1.2) on grass")
    ((wanted, _),) = stock(clip, "a (red dog:1.2) on grass")
    assert all(torch.equal(layers[:, layer], wanted) for layer in range(LAYERS))
    assert torch.allclose(context, wanted, atol=1e-6)  # of the mean of equal rows


def test_a_prompt_without_concepts_is_cores_own(tmp_path):
    clip = clip_with(tmp_path)
    write_embedding(tmp_path, "worse", concept(seed=4), 0)
    for text in ("", "blurry, (bad:1.2) embedding:worse , red", LONG):
        context, layers, options = encoded(clip, [concept()], text)
        ((wanted, wanted_options),) = stock(clip, text)
        assert torch.equal(context, wanted)
        assert layers is None
        assert torch.equal(options["pooled_output"], wanted_options["pooled_output"])


def test_embedding_words_work_beside_concepts(tmp_path):
    clip, one = clip_with(tmp_path), concept()
    other = write_embedding(tmp_path, "mine", concept(seed=4), 1)
    text = f"<sks> in {other} style, {other}<sks> again"
    _, layers, _ = encoded(clip, [one], text)
    for layer in range(LAYERS):
        word = write_embedding(tmp_path, "row", one, layer)
        ((wanted, _),) = stock(clip, f"{word} in {other} style, {other} {word} again")
        assert torch.equal(layers[:, layer], wanted)


def test_break_begins_a_chunk():
    clip, one = tiny_clip(), concept()
    context, layers, _ = encoded(clip, [one], "a photo of <sks> BREAK in the (snow:1.2) <sks>")
    first = encoded(clip, [one], "a photo of <sks>")
    second = encoded(clip, [one], "in the (snow:1.2) <sks>")
    assert layers.shape[2] == 154
    # The same weights, though not the same call: the chunks of a prompt are encoded together.
    assert torch.allclose(context, torch.cat([first[0], second[0]], 1), atol=1e-5)
    assert torch.allclose(layers, torch.cat([first[1], second[1]], 2), atol=1e-5)
    lower, _, _ = encoded(clip, [one], "a break in the clouds")
    assert torch.equal(lower, stock(clip, "a break in the clouds")[0][0])


def test_rows_of_a_word_stay_in_one_chunk():
    clip = tiny_clip()
    for before in range(70, 78):
        bound = bound_prompt(clip, f"{'house ' * before}<sks> tree", {"sks": 2})
        marked = [[isinstance(token, torch.Tensor) for token, _ in c] for c in bound.tokens["l"]]
        assert sorted(map(sum, marked)) == [0, 2] or sorted(map(sum, marked)) == [2]
        assert all(len(chunk) == 77 for chunk in marked)


def test_upper_and_lower_case_are_the_same_name():
    clip = tiny_clip()
    one = Concept("Ärger_2", "dog", rows_of(LAYERS), LoraState({}))
    first = encoded(clip, [one], "a <Ärger_2>")[1]
    assert torch.equal(first, encoded(clip, [one], "a <ärger_2>")[1])


def test_sdxl_pools_the_mean_of_the_rows(tmp_path):
    clip = clip_with(tmp_path, tiny_sdxl_clip())
    one = concept_for(tiny("sdxl"), lora=False, encoders=("clip_l", "clip_g"))
    assert one.layers == 4
    text = "a (photo:1.1) of <sks> on a beach"
    context, layers, options = encoded(clip, [one], text)
    for layer in range(one.layers):
        ((wanted, _),) = stock(clip, as_embedding(text, [one], tmp_path, layer))
        assert torch.equal(layers[:, layer], wanted)
    ((mean, mean_options),) = stock(clip, as_embedding(text, [one], tmp_path, None))
    assert torch.equal(context, mean)
    assert torch.equal(options["pooled_output"], mean_options["pooled_output"])
    assert not torch.equal(layers[:, 0], layers[:, 1])


def test_clip_hooks_are_kept(tmp_path):
    lora = dict(lora_state(text_lora(3), {}))
    _, clip, hooks = comfy.hooks.load_hook_lora_for_models(None, tiny_clip(), lora, 0.0, 1.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.2, 0.5)):
        frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    hooks.set_keyframes_on_hooks(frames)
    clip.patcher.forced_hooks = hooks.clone()
    clip.use_clip_schedule = True
    clip = clip_with(tmp_path, clip)
    one = concept()
    entries = encode_concept_prompt(clip, [one], "a <sks> dog")
    wanted = [
        stock(clip, as_embedding("a <sks> dog", [one], tmp_path, layer)) for layer in range(LAYERS)
    ]
    assert len(entries) == 2
    for number, (_, options) in enumerate(entries):
        assert options["clip_start_percent"] == wanted[0][number][1]["clip_start_percent"]
        for layer in range(LAYERS):
            assert torch.equal(options[PROMPT].layers[:, layer], wanted[layer][number][0])
    assert not torch.equal(entries[0][0], entries[1][0])


def test_training_and_sampling_encode_alike():
    """The same tokens with live parameters: equal contexts, and gradients for named rows alone."""
    clip, one, other = tiny_clip(), concept(), concept("ada", 1)
    _, layers, _ = encoded(clip, [one, other], "a photo of <sks> on a beach")
    rows = {
        key: {"clip_l": torch.nn.Parameter(c.embeddings["clip_l"].clone())}
        for key, c in (("sks", one), ("ada", other))
    }
    prompt = bound_prompt(clip, "a photo of <sks> on a beach", {"sks": 2, "ada": 2})
    model = clip.cond_stage_model.clip_l
    model.set_clip_options({"execution_device": torch.device("cpu")})
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        tokens = [[token for token, _ in prompt.at(rows, layer)["l"][0]] for layer in range(LAYERS)]
        contexts = model.encode(tokens)[0]  # (layer, token, dim)
        contexts[2].sum().backward()
    assert torch.allclose(contexts, layers[0], atol=1e-6)
    gradient = rows["sks"]["clip_l"].grad
    assert gradient[:, 2].abs().amax(-1).min() > 0
    assert gradient[:, [0, 1, 3]].abs().max() == 0
    assert rows["ada"]["clip_l"].grad is None


def test_a_clip_is_never_changed():
    clip = tiny_clip()
    before = copy.copy(vars(clip.tokenizer.clip_l))
    encoded(clip, [concept()], "a <sks> BREAK b")
    assert vars(clip.tokenizer.clip_l) == before
    assert clip.tokenizer.clip_l._try_get_embedding.__self__ is clip.tokenizer.clip_l


def test_an_embedding_that_is_shared_by_all_layers_needs_no_layers():
    clip, shared = tiny_clip(), concept(layers=1)
    _, layers, options = encoded(clip, [shared], "a <sks> dog")
    assert layers is None
    assert options[PROMPT].concepts == (("sks", shared.digest),)
    mixed = encoded(clip, [shared, concept("ada", 1)], "a <sks> dog")[1]
    assert mixed is None  # <ada> is not in it
    both = encoded(clip, [shared, concept("ada", 1)], "a <sks> and <ada>")[1]
    assert both.shape[:3] == (1, LAYERS, 77)


@pytest.mark.parametrize(("text", "concepts", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused(text, concepts, message):
    with pytest.raises(ValueError, match=message) as error:
        encoded(tiny_clip(), [make() for make in concepts], text)
    assert "\n" not in str(error.value)


def test_no_clip_is_refused():
    with pytest.raises(ValueError, match="connect the checkpoint's CLIP"):
        EncodeConceptPrompt.execute(None, {"concept0": (concept(),)}, "a <sks>")

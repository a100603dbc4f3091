"""Bad halves, pictures, prompts and tokens: one plain sentence, nothing trained, nothing left."""

from collections.abc import Callable
from pathlib import Path

import folder_paths
import pytest
from comfy.sd import CLIP, VAE
from half_inputs import b4m, half, joint_inputs, make
from half_refusals import SPOILT_ALL, SPOILT_HALVES, SPOILT_MAKES, UNFIT, content, style
from pack.training import LoraState
from pair_inputs import progress
from resume_case import left_behind
from tiny import tiny


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def resolved(changes: dict) -> dict:
    return {key: made() if callable(made) else made for key, made in changes.items()}


def refused(output: Path, action: Callable[[], object], message: str, model=None) -> None:
    """Check that an action is refused in one sentence before anything is encoded.

    It must leave no file behind and the model as it was.
    """

    def encode(*args, **more):
        raise AssertionError("nothing must be encoded")

    before = None if model is None else left_behind(model)
    files = sorted(output.rglob("*"))
    with pytest.MonkeyPatch.context() as patch, progress() as steps:
        patch.setattr(VAE, "encode", encode)
        patch.setattr(CLIP, "encode_from_tokens_scheduled", encode)
        with pytest.raises(ValueError, match=message) as caught:
            action()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300, text
    assert steps == []
    assert sorted(output.rglob("*")) == files
    assert before is None or left_behind(model) == before


@pytest.mark.parametrize("case", SPOILT_HALVES)
def test_a_half_is_refused_before_anything_is_encoded(case, output):
    changes, message = SPOILT_HALVES[case]
    changes = {"model": tiny("sd3"), **resolved(changes)}
    refused(output, lambda: half(**changes), message, changes["model"])


def imported(half: LoraState) -> LoraState:
    """Return a half that says no more of itself than one of the released code."""
    said = ("pastiche.role", "pastiche.content_owns")
    metadata = {name: half.metadata[name] for name in said}
    return LoraState(half, {**metadata, "pastiche.basis": "imported"})


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("case", UNFIT)
def test_halves_that_do_not_fit_are_refused(case, steps, output):
    ours, other, message = UNFIT[case]
    halves = [ours()], [other()]
    tuned = joint_inputs() if steps else {}
    refused(output, lambda: make(*halves, **tuned), message, tuned.get("model"))


def test_ranks_of_halves_without_a_basis_of_this_pack_are_told_apart(output):
    ours, other = imported(content()), imported(style(rank=3))
    refused(output, lambda: make([ours], [other]), "must have one rank, got 2 and 3 at layer")
    other = imported(style(basis_seed=1))
    refused(output, lambda: make([ours], [other]), "got frozen halves that differ at layer")


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_halves_that_name_no_base_are_held_against_the_model(name, output):
    halves = [imported(content(name="sd21_v"))], [imported(style(name="sd21_v"))]
    tuned = joint_inputs(name)
    message = r"must fit the model, got \d+ of \d+ layers that it lacks or has in another shape"
    refused(output, lambda: make(*halves, **tuned), message, tuned["model"])


@pytest.mark.parametrize("name", ["flux", "sd15"])
def test_halves_that_name_no_base_are_trained_on_a_model_that_fits(name, output):
    tuned = joint_inputs(name)
    halves = [imported(content(name=name))], [imported(style(name=name))]
    (lora,), losses = make(*halves, **{**tuned, "steps": 1}).result
    assert lora.keys() == halves[0][0].keys()
    assert len(losses["loss"]) == 1


@pytest.mark.parametrize("case", SPOILT_MAKES)
def test_a_joint_training_is_refused_before_anything_is_encoded(case, output):
    build, message = SPOILT_MAKES[case]
    changes = build()
    halves = [content()], [style()]
    refused(output, lambda: make(*halves, **changes), message, changes.get("model"))


@pytest.mark.parametrize("role", ["content", "style"])
def test_two_halves_of_a_role_are_not_trained_together(role, output):
    halves = {"content": [content()], "style": [style()]}
    halves[role] = halves[role] * 2
    numbers = "2 and 1" if role == "content" else "1 and 2"
    tuned = joint_inputs()
    refused(
        output,
        lambda: make(*halves.values(), **tuned),
        f"one content and one style half, .* got {numbers}; set steps to 0 or connect one of each",
        tuned["model"],
    )


def test_a_make_without_halves_is_refused(output):
    refused(output, lambda: make([], [style()]), "at least one content and one style half, got 0")


@pytest.mark.parametrize("case", SPOILT_ALL)
def test_all_stages_are_checked_before_the_first(case, output):
    changes, message = SPOILT_ALL[case]
    changes = {"model": tiny("sd3"), **resolved(changes)}
    refused(output, lambda: b4m(**changes), message, changes["model"])


@pytest.mark.parametrize("role", ["content", "style"])
def test_no_auxiliary_pictures_are_allowed_and_said(role, output):
    node = half(role=role, steps=1)
    (text,) = node.ui["text"]
    assert "without auxiliary pictures or prompts" in text
    assert "write a few auxiliary_prompts" in text
    assert node.result[2].keys() == {"loss", "main"}
    (text,) = b4m(steps=1, make_steps=0).ui["text"]
    assert text.count("without auxiliary pictures or prompts") == 2

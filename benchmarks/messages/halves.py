"""Collect the answers of the Break-for-Make nodes to bad input, with the cases of the tests."""

from __future__ import annotations

from collections.abc import Callable

import folder_paths
import half_refusals
import half_sheet_case
import safetensors.torch
from half_inputs import b4m, half, joint_inputs, make
from half_refusals import content, style
from half_sheet_case import run_sheet, two_by_two
from lora_files_case import unet_lora
from pack.nodes.break_for_make.nodes_files import LoadHalf, SaveHalf
from pack.training import TrainingSettings
from pack.training.files.half import FROM_FILE
from tiny import tiny

from .page import Page, evaluate


def _train_half(page: Page) -> None:
    folder_paths.output_directory = str(page.folder("halves"))
    for title, train, cases in (
        ("Train Half", half, half_refusals.SPOILT_HALVES),
        (
            "Train Content and Style (B4M): said before anything is trained",
            b4m,
            half_refusals.SPOILT_ALL,
        ),
    ):
        page.add_section(title)
        for case, (changes, _) in cases.items():
            inputs = {name: evaluate(value) for name, value in changes.items()}
            page.add_refusal(case, lambda train=train, inputs=inputs: train(**inputs))
    page.add_section("Train Half: what is taken, and what is said of it")
    alone = half(steps=1).ui["text"][0].split("\n")[1]
    page.add_answer("no auxiliary pictures nor prompts", alone, "without auxiliary" in alone)
    settings = TrainingSettings(optimizer="Scaled AdamW", damping=0.0)
    lines = half(start="exact", rank=4, settings=settings).ui["text"][0].split("\n")
    messages = [line for line in lines if "pseudo-inverse" in line]
    page.add_answer("damping 0 with a singular Gram", "; ".join(messages), len(messages) == 1)


def _make_lora(page: Page) -> None:
    page.add_section("Make LoRA of Halves")
    for case, (ours, other, _) in half_refusals.UNFIT.items():
        halves = [ours()], [other()]
        page.add_refusal(case, lambda halves=halves: make(*halves))
    halves = [content()], [style()]
    for case, (changes, _) in half_refusals.SPOILT_MAKES.items():
        page.add_refusal(case, lambda changes=changes: make(*halves, **changes()))
    page.add_refusal(
        "two contents, with steps", lambda: make(halves[0] * 2, halves[1], **joint_inputs())
    )
    page.add_section("Half Sheet")
    for case, (changes, _) in half_sheet_case.REFUSED.items():
        inputs = {name: evaluate(value) for name, value in changes.items()}
        page.add_refusal(case, lambda inputs=inputs: run_sheet(**{**two_by_two("sd3"), **inputs}))


def _half_files(page: Page) -> None:
    folder = page.folder("half files")
    folder_paths.folder_names_and_paths["loras"][0].insert(0, str(folder))
    page.add_section("Save Half and Load Half")
    lora = unet_lora(tiny("sd15"))
    page.add_refusal("an ordinary LoRA, saved", lambda: SaveHalf.execute(lora, "x", "fp16"))
    (name,) = SaveHalf.execute(content(), "half", "fp16").result
    for case, choices in {
        "another role than the file's": ("style", FROM_FILE),
        "another owner than the file's": (FROM_FILE, "up"),
    }.items():
        page.add_refusal(case, lambda choices=choices: LoadHalf.execute(name, *choices))
    (folder / "cut.safetensors").write_bytes((folder / name).read_bytes()[:-10])
    page.add_refusal("a file cut short", lambda: LoadHalf.execute("cut.safetensors"))
    page.add_refusal(
        "a name that is not in the list", lambda: LoadHalf.execute("absent.safetensors")
    )
    safetensors.torch.save_file(dict(lora), folder / "plain.safetensors")
    for role in (FROM_FILE, "content"):
        case = f"an ordinary LoRA, role {role}"
        page.add_refusal(case, lambda role=role: LoadHalf.execute("plain.safetensors", role))


HALF_SECTIONS: tuple[Callable[[Page], None], ...] = (_train_half, _make_lora, _half_files)

"""Collect the answers of the nodes of LoRAs and style guidance to bad input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import folder_paths
import mutations
import torch
from bad_loras import ARCHITECTURE, KINDS, adapter, bad_files, lora_for
from mutations import mutants
from pack.nodes.guidance.nodes import ApplyStyleGuidance, StylePrompts
from pack.nodes.lora.nodes import ApplyLora, LoadLora, SaveLora
from tiny import tiny, tiny_clip, tiny_cond

from .page import Page

MUTANTS = 500


def _lora_files(page: Page) -> None:
    folder = page.folder("loras")
    folder_paths.folder_names_and_paths["loras"][0].insert(0, str(folder))
    page.add_section("Load LoRA (Pastiche)")
    for name in bad_files(folder):
        page.add_refusal(name, lambda name=name: LoadLora.execute(name))
    page.add_refusal(
        "a name that is not in the list", lambda: LoadLora.execute("absent.safetensors")
    )
    page.add_section(
        f"Load LoRA and Apply LoRA: {MUTANTS} spoilt files",
        "| kind | files | refused by Load | refused by Apply | the first thing that is said of one |",
    )
    whole = (folder / "good.safetensors").read_bytes()
    written, loading, applying, example = Counter(), Counter(), Counter(), {}
    for mutant in mutants([whole], MUTANTS):
        written[mutant.kind] += 1
        (folder / "mutant.safetensors").write_bytes(mutant.data)
        stage = loading
        page.warnings.clear()
        try:
            (lora,) = LoadLora.execute("mutant.safetensors").result
            stage = applying
            ApplyLora.execute(tiny("sd15"), lora, 1.0, 1.0)
            message = "".join(page.warnings[:1])
        except ValueError as error:
            stage[mutant.kind] += 1
            message = str(error)
        except Exception as error:
            page.faults.append(f"{mutant.name}: {error!r}")
            continue
        if message:
            example.setdefault(mutant.kind, message)
    for kind in mutations.KINDS:
        message = example.get(kind, "(whole, and other than it was)")
        page.add_row(kind.replace("_", " "), written[kind], loading[kind], applying[kind], message)


def _apply_lora(page: Page) -> None:
    def apply(base: str, lora: dict, clip: Any = None) -> Callable[[], Any]:
        return lambda: ApplyLora.execute(tiny(base), lora, 1.0, 1.0, clip=clip)

    page.add_section("Apply LoRA (Pastiche)")
    page.add_refusal("SDXL's on SD1.5", apply("sd15", lora_for("sdxl")))
    named = lora_for("flux", {"modelspec.architecture": ARCHITECTURE["flux"]})
    page.add_refusal("Flux's, which says so, on SDXL", apply("sdxl", named))
    page.add_refusal("not a LoRA", apply("sd15", {"x": torch.ones(2)}))
    text = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 768),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(3072, 2),
    }
    page.add_refusal("the text encoder's alone, without CLIP", apply("sd15", text))
    spoilt = dict(lora_for("sd15"))
    next(iter(spoilt.values()))[0, 0] = float("nan")
    page.add_refusal("NaN from another pack's loader", apply("sd15", spoilt))
    for kind, shapes in KINDS.items():
        part = next(iter(shapes))
        wrong = {**shapes, part: (*shapes[part][:-1], shapes[part][-1] + 1)}
        page.add_refusal(f"{kind}, {part} of a wrong shape", apply("sd15", adapter(wrong)))
        missing = {name: shape for name, shape in shapes.items() if name != part}
        if missing:
            page.add_refusal(f"{kind} without {part}", apply("sd15", adapter(missing)))


def _save_lora(page: Page) -> None:
    page.add_section("Save LoRA (Pastiche)")
    lora = lora_for("sd15")
    for name in ("../x", "/abs/x", "D:x", "NUL", " "):
        page.add_refusal(
            f"filename `{name}`", lambda name=name: SaveLora.execute(lora, name, "fp16")
        )
    page.add_refusal("nothing in it", lambda: SaveLora.execute({}, "x", "fp16"))
    huge = {
        key: tensor * (1e8 if "up" in key else 1e-8) for key, tensor in lora_for("sd15").items()
    }
    page.add_refusal("numbers beyond fp16", lambda: SaveLora.execute(huge, "x", "fp16"))
    known = folder_paths.folder_names_and_paths["loras"]
    blocked = page.place / "a file"
    blocked.write_text("")
    folder_paths.folder_names_and_paths["loras"] = ([str(blocked)], known[1])
    page.add_refusal("no folder can be written to", lambda: SaveLora.execute(lora, "x", "fp16"))
    folder_paths.folder_names_and_paths["loras"] = known


def _style_guidance(page: Page) -> None:
    def guide(lora: dict, schedule: str = "", window: tuple[float, float] = (0.2, 1.0)) -> Any:
        model = tiny("sd15")
        return lambda: ApplyStyleGuidance.execute(
            model, lora, tiny_cond(model), 3.0, *window, 1.0, schedule
        )

    page.add_section("Apply Style Guidance and Style Prompts")
    valid = lora_for("sd15")
    for schedule in ("0:1, x", "0:1; 1:0", "0:1, 2:0", "0.5:1, 0.2:0", "0:nan"):
        page.add_refusal(f"schedule `{schedule}`", guide(valid, schedule))
    page.add_refusal("the window ends before it starts", guide(valid, window=(0.8, 0.2)))
    page.add_refusal("Flux's LoRA on SD1.5", guide(lora_for("flux")))
    page.add_refusal("a LoHa", guide(adapter(KINDS["LoHa"])))
    page.add_refusal(
        "style words absent", lambda: StylePrompts.execute(tiny_clip(), "a dog", "", dict(valid))
    )


LORA_SECTIONS: tuple[Callable[[Page], None], ...] = (
    _lora_files,
    _apply_lora,
    _save_lora,
    _style_guidance,
)

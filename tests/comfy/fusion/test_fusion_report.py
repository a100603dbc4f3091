"""A fusion's report as plot and table."""

import pytest
import torch
from pack.nodes.fusion.nodes import FusionReportNode
from pack.nodes.fusion.plot import AVERAGED, FUSED
from pack.nodes.fusion.report import (
    ConceptResult,
    FusionReport,
    LayerResult,
    StageResult,
    summary,
    table,
)

STAGES = ("text", "cross", "spatial")


def concept(name, **changes):
    values = {
        **{"name": name, "has_words": name == "sks", "prompts": ("a",), "strength": 0.7},
        **{"weight": 1.0, "used": 3, "ignored": 0, "missing": 0, "kept_energy": ()},
        **changes,
    }
    return ConceptResult(**values)


def layer(number, stage, left=(0.01, 0.02), averaged=(0.4, 0.6), **changes):
    values = {
        **{"name": f"layer_{number}", "stage": stage, "rank": 7, "norm": 1.25},
        **{
            "average_norm": 0.5,
            "norms": (1.0, 0.8),
            "residuals": left,
            "average_residuals": averaged,
        },
        **{"damping": 1e-3, "solver": "cholesky", "cut": 0.0, **changes},
    }
    return LayerResult(**values)


@pytest.fixture
def report():
    stages = tuple(
        StageResult(
            **{"stage": stage, "layers": 1, "passes": 2, "reused": 1, "collecting_seconds": 3.25},
            **{
                "solving_seconds": 0.5,
                "statistics_bytes": 3 * 2**20,
                "peak_bytes": 900 * 2**20,
                "in_span": 0,
            },
        )
        for stage in STAGES
    )
    layers = (
        layer(0, "text", (0.01, None), (0.4, None), solver="eigenvalues"),
        layer(1, "cross", cut=0.025, objective=0.5, loss=0.02),
        layer(2, "spatial", (0.02, 9.0), (0.5, 0.6)),
    )
    kept = (("LoHa", 0.9991),)
    concepts = (
        concept("sks", strength=1.0),
        concept("boat", ignored=2, missing=4, kept_energy=kept),
    )
    return FusionReport(concepts, stages, layers, ("boat is connected twice",))


def test_the_summary_says_keys_seconds_memory_and_losses(report):
    lines = summary(report).splitlines()
    assert lines[0] == "sks: words and LoRA at strength 1, weight 1, 3 layers fused"
    assert lines[1] == (
        "boat: LoRA at strength 0.7, weight 1, 3 layers fused, 2 left out (biases, norms, "
        "embeddings), 4 not in this model, LoHa kept with 99.91% of the energy"
    )
    assert lines[2] == (
        "text encoder: 1 layers, 2 concepts read, 1 found in the store, 3.2 s, solved in 0.5 s, "
        "statistics 3 MiB, peak 900 MiB, 1 layers with singular statistics solved by eigenvalues"
    )
    assert lines[3].endswith(
        "the limit on the rank costs up to 2.50% of a layer's energy and raises the objective by "
        "4.00% in the median layer"
    )
    assert lines[5] == (
        "sks: 1.0% of its effect is lost in the median layer, 40.0% by plain averaging"
    )
    assert lines[-1] == "boat is connected twice"


def test_the_table_has_a_line_for_each_layer(report):
    rows = [line.split("\t") for line in table(report).split("\n\n")[1].splitlines()]
    heads, *cells = rows
    assert {len(row) for row in rows} == {16}
    assert heads[8:] == [
        "objective",
        "loss",
        "norm of sks",
        "norm of boat",
        "lost of sks",
        "lost of boat",
        "lost of sks by averaging",
        "lost of boat by averaging",
    ]
    assert [row[0] for row in cells] == ["layer_0", "layer_1", "layer_2"]
    assert cells[0][8:] == ["", "", "1", "0.8", "0.0100", "", "0.4000", ""]
    assert cells[1][8:10] == ["0.5", "0.02"]


def test_the_plot_has_a_panel_for_each_concept(report):
    out = FusionReportNode.PREPARE_CLASS_CLONE(None).execute(report)
    plot, text = out.result
    assert plot.shape == (1, 44 + 2 * 220, 960, 3)
    assert plot.dtype == torch.float32
    assert text == table(report)

    def marks(panel, colour):
        part = plot[0, 44 + 220 * panel : 44 + 220 * (panel + 1)]
        found = (part * 255).round().eq(torch.tensor(colour)).all(-1)
        rows = found.nonzero()[:, 0].float()
        return int(found.sum()), float(rows.mean())

    # three layers of the first concept, two of the second; what is lost more stands higher
    assert marks(0, FUSED)[0] > marks(1, FUSED)[0] > 0
    assert marks(0, FUSED)[1] > marks(0, AVERAGED)[1]


def test_one_concept_alone_has_an_empty_plot():
    out = FusionReportNode.PREPARE_CLASS_CLONE(None).execute(FusionReport((concept("sks"),)))
    assert out.result[0].shape == (1, 44 + 220, 960, 3)
    assert summary(FusionReport((concept("sks"),))).startswith("sks: words and LoRA")

"""Learning rates of the study by optimiser."""

from __future__ import annotations

RATES = {
    "AdamW": (1e-4, 1e-3, 1e-2),
    "SGD": (1.0, 10.0, 100.0),
    "Scaled SGD": (1.0, 10.0, 100.0),
    "Scaled AdamW": (1e-4, 1e-3, 1e-2),
    "LoRA-RITE": (1e-4, 1e-3, 1e-2),
}
MATRIX_RATES = {
    "AdamW": (1e-3, 1e-2, 1e-1),
    "SGD": (1e-2, 1e-1, 1.0),
    "Scaled SGD": (1e-2, 1e-1, 1.0),
    "Scaled AdamW": (1e-3, 1e-2, 1e-1),
    "LoRA-RITE": (1e-4, 1e-3, 1e-2),
}
MATRIX_STEPS = 400

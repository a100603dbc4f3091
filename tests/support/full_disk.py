"""Simulate a full disk."""

from pack.nodes.fusion import run as fusion_run


def leave_no_space(patch):
    """Report hardly any free disk space to the fusion."""
    patch.setattr(fusion_run.shutil, "disk_usage", lambda path: type("d", (), {"free": 1000}))

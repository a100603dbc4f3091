"""A disk without space."""

from pack.nodes.fusion import run as fusion_run


def leave_no_space(patch):
    """Let the fusion find hardly any free space on the disk."""
    patch.setattr(fusion_run.shutil, "disk_usage", lambda path: type("d", (), {"free": 1000}))

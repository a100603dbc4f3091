"""The development environment: an interpreter with all packages, and the ComfyUI it serves."""

from .environment import (
    REPOSITORY,
    Environment,
    cache_folder,
    install_debian_packages,
    prepare,
)

__all__ = ["REPOSITORY", "Environment", "cache_folder", "install_debian_packages", "prepare"]

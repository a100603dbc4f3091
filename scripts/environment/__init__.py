"""The development environment: an interpreter with all packages, and a ComfyUI to run with it."""

from .environment import (
    REPOSITORY,
    Environment,
    cache_folder,
    install_debian_packages,
    prepare,
)

__all__ = ["REPOSITORY", "Environment", "cache_folder", "install_debian_packages", "prepare"]

"""Adapters to ComfyUI's own types and services, shared by several folders of nodes/."""

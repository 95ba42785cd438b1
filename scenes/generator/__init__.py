"""Procedural scenes, cameras and path tracing behind `make_scenes.py`."""

"""Typed configuration of a run: the recipe, the named presets, and overrides by `path=value`."""

"""Recipes: one YAML per published or played-through run, shipped as data (``mmalign recipes list``)."""

"""mmalign: align image generators with human preference."""

__version__ = "0.1.0"

"""mmalign: align image generators and vision-language models with human preference."""

__version__ = "0.1.0"

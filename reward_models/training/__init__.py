"""Training of reward models on preference pairs: the family ``reward`` of ``mmalign train``."""

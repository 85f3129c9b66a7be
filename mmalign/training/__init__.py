"""Training: one configuration schema, one loop for every family, atomic checkpoints."""

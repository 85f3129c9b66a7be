"""Published reward models for generated pictures, one file each, found by mmalign through its entry points.

Built from the classes of open_clip and transformers; weights stay where their authors publish them.
"""

"""The embedded world: scenes of coloured shapes, captions, an oracle that reads pixels, and tiny models.

Nothing is downloaded and no label is bought: :func:`~mmalign.playground.scene.sample_scene` draws a scene,
:func:`~mmalign.playground.renderer.render` paints it, :func:`~mmalign.playground.captions.caption` describes it, and
:func:`~mmalign.playground.oracle.judge` says which of a caption's attributes a picture shows.
"""

"""The app people open first: compare two models, vote blind, read the leaderboard, export the votes.

    python -m app                                        the embedded models, no download
    python -m app --base NAME --aligned RUN_DIR          a model and what a run made of it
    python -m app --base VLM --aligned RUN_DIR           answers of vision-language models (--pictures DIR)
    python -m app --models models.yaml                   several, of one family
    python -m app --gallery OUT/base OUT/aligned         pictures of ``mmalign generate``, no model loaded

Handlers are plain functions (``compare``, ``arena``, ``board``, ``dataset``), layouts are the ``*_tab`` modules beside
them, and every check of what a visitor sends is in ``validation``.
"""

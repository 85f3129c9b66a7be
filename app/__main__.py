"""``python -m app``; see :mod:`app.serve`."""

from app.serve import main

main()

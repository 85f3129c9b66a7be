"""What the terminal shows: our progress bars and messages, once, and not the libraries' chatter."""

import os


def hush_logs() -> None:
    """Ask transformers and diffusers for errors only; a value that the user has set stays."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def hush_progress_bars() -> None:
    """Switch off the bars for reading and writing weight files; downloads from the hub keep theirs."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def is_main_process() -> bool:
    """True for the one process, of those that ``accelerate launch`` or ``torchrun`` started, that speaks and checks."""
    return os.environ.get("RANK", "0") == "0"

"""Every key of ``LOSSES`` has one row, with numbers that were worked out by hand."""

from loss_cases import Case
from loss_table_others import OTHERS
from loss_table_pairwise import PAIRWISE
from loss_table_visual import VISUAL

CASES: dict[str, Case] = PAIRWISE | OTHERS | VISUAL

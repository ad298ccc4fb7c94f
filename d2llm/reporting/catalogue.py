"""The names of all tables and figures, for the workflow, which must not import what draws them.

A table of a name is in `tables.TABLES`, a figure is the module `d2llm/reporting/figure_<name>.py`.
"""

TABLES = ("nli", "sts", "ir")
FIGURES = ("main", "leads", "phenomena")


def figure_module(name: str) -> str:
    """The file that is a figure."""
    return f"d2llm.reporting.figure_{name}"

"""All tables and figures with the collected files each is made of, for the workflow, which must not import what draws them.

A table of a name is in `tables.TABLES`, a figure is the module `d2llm/reporting/figure_<name>.py`. Files are named as in `d2llm.paths.Paths`.
"""

TABLES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("nli", "sts", "ir"), ("scores", "comparisons")),
    "settings": ("scores", "trainings", "curves", "card_json"),
}
FIGURES: dict[str, tuple[str, ...]] = {
    "main": ("scores",),
    "leads": ("scores", "comparisons"),
    "phenomena": ("scores",),
    "phenomena_sts": ("scores",),
    "phenomena_ir": ("scores",),
    "agreement": ("scores", "predictions"),
    "losses": ("curves",),
    "dev": ("curves", "scores"),
    "runtime": ("runtime",),
    "latency": ("scores", "runtime"),
    "architecture": (),  # of the settings alone
}
# The settings a figure shows, besides those all figures depend on.
FIGURE_SETTINGS: dict[str, tuple[str, ...]] = {
    "architecture": ("models.teacher", "models.decoder", "teacher.symmetric", "teacher.asymmetric", "methods"),
    "dev": ("training.dev_sample",),
}


def figure_module(name: str) -> str:
    """The file that is a figure."""
    return f"d2llm.reporting.figure_{name}"

"""All tables and figures with the collected files each is made of, for the workflow, which must not import what draws them.

A table of a name is in `tables.TABLES`, a figure is the module `d2llm/reporting/figure_<name>.py`. Files are named as in `d2llm.paths.Paths`.
"""

TABLES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("nli", "sts", "ir"), ("scores", "comparisons")),
    "ablation": ("scores", "ablations"),
    "settings": ("scores", "trainings", "curves", "card_json"),
}
FIGURES: dict[str, tuple[str, ...]] = {
    "main": ("scores",),
    "leads": ("scores", "comparisons"),
    "phenomena": ("scores",),
    "phenomena_sts": ("scores",),
    "phenomena_ir": ("scores",),
    "agreement": ("scores", "predictions"),
    "sweep_nli": ("scores",),
    "sweep_ir": ("scores",),
    "losses": ("curves",),
    "dev": ("curves", "scores"),
    "runtime": ("runtime",),
    "latency": ("scores", "runtime"),
    "architecture": (),  # of the settings alone, but for `BESIDES`
}
# What a figure tells more by and does without: widths of checkpoints, which no setting holds.
BESIDES: dict[str, tuple[str, ...]] = {"architecture": ("about",)}
# The settings a table or figure shows, besides those all depend on.
VARIED = ("include", "seeds", "variant_seeds", "methods")
TABLE_SETTINGS: dict[str, tuple[str, ...]] = {
    "ablation": ("variants", "sweeps", *VARIED),
}
FIGURE_SETTINGS: dict[str, tuple[str, ...]] = {
    "sweep_nli": ("sweeps", *VARIED),
    "sweep_ir": ("sweeps", *VARIED),
    "architecture": ("models.teacher", "models.decoder", "teacher.symmetric", "teacher.asymmetric", "methods"),
    "dev": ("training.dev_sample",),
}


def figure_module(name: str) -> str:
    """The file that is a figure."""
    return f"d2llm.reporting.figure_{name}"

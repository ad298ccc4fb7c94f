"""How results are named, coloured and written, in one place for every table and figure. It reads no result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from d2llm.config.catalogue import row_head
from d2llm.run.schemas import SUBJECT

if TYPE_CHECKING:
    import pandas as pd

# Digits after the point of a score.
DECIMALS = 4

CONTROLLED_TEXT = (
    "The texts are generated: this says something about mechanisms on controlled text only and is no evidence "
    "about the paper's numbers."
)


def number(value: float) -> str:
    """A score as it is printed."""
    return f"{value:.{DECIMALS}f}"


def signed(value: float) -> str:
    """A difference as it is printed, with a sign that is as wide as a digit."""
    return f"{value:+.{DECIMALS}f}".replace("-", "−")


# Okabe and Ito's palette, told apart by colour-blind readers; the shape says the same once more. Of D2LLM, and of all
# others in their order.
SUBJECT_LOOK = ("#D55E00", "D")
LOOKS: tuple[tuple[str, str], ...] = (
    *(("#0072B2", "o"), ("#56B4E9", "s"), ("#009E73", "^"), ("#E69F00", "v"), ("#CC79A7", "P")),
    *(("#332288", "X"), ("#AA4499", "*"), ("#44AA99", "h"), ("#882255", "<")),
)
# Of a reference row whose head names none: colour, mark in plots by row, mark in the plane.
ROW_LOOK = ("#7F7F7F", "|", "8")
# Of models as published, in their order.
PUBLISHED_LOOKS = (("#7F7F7F", "1", "p"), ("#A6761D", "2", "H"), ("#4D4D4D", "3", "d"), ("#B15928", "4", ">"))
# Of arrows and terms that stand for imitation.
IMITATION = LOOKS[0][0]

# Loss terms, told apart by line as well; those that meet in one panel differ, and differ from the method's own colour.
TERM_LOOKS: dict[str, tuple[str, str]] = {
    "info_nce": ("#000000", "-"),
    "ci": ("#0072B2", "--"),
    "cl": ("#E69F00", "-"),
    "ri_phn": ("#009E73", "-."),
    "ri_ehn": ("#CC79A7", "--"),
    "fi": ("#000000", ":"),
    "p2q": ("#56B4E9", "-"),
    "encoder_mlm": ("#E69F00", "--"),
    "decoder_mlm": ("#CC79A7", "-."),
    "language_model": ("#E69F00", "--"),
    "ebae": ("#CC79A7", "-."),
    "ebar": ("#0072B2", ":"),
}
TERM_TITLES: dict[str, str] = {
    "loss": "sum",
    "ci": "CI",
    "cl": "CL",
    "ri_phn": "RI-PHN",
    "ri_ehn": "RI-EHN",
    "fi": "FI",
    "p2q": "P2Q",
    "info_nce": "InfoNCE",
    "encoder_mlm": "encoder MLM",
    "decoder_mlm": "decoder MLM",
    "language_model": "LM",
    "ebae": "EBAE",
    "ebar": "EBAR",
}

# Behind the line of a task, and of their average.
BAND, BAND_AVERAGE = "#f6f6f6", "#ececec"
AVERAGE_TITLE = "Average"
GROUP_TITLES: dict[str, str] = {"nli": "NLI", "sts": "STS", "ir": "Retrieval"}


def look(name: str, methods: Sequence[str], published: Sequence[str] = ()) -> tuple[str, str]:
    """Colour and marker of a method, or of a reference row: its own, or that of its place among the published models."""
    if name == SUBJECT:
        return SUBJECT_LOOK
    others = [other for other in methods if other != SUBJECT]
    if name not in others:
        color, marker, _ = row_look(name, published)
        return color, marker
    return LOOKS[others.index(name) % len(LOOKS)]


def row_look(name: str, published: Sequence[str]) -> tuple[str, str, str]:
    """Colour of a reference row, its mark in plots by row and that in the plane."""
    if name in published:
        return PUBLISHED_LOOKS[published.index(name) % len(PUBLISHED_LOOKS)]
    return row_head(name).get("LOOK", ROW_LOOK)


def point(name: str, methods: Sequence[str], published: Sequence[str] = ()) -> tuple[str, str]:
    """`look` for a mark in the plane: reference rows have strokes in plots by row, which there need a middle."""
    color, marker = look(name, methods, published)
    return color, marker if name in methods or name == SUBJECT else row_look(name, published)[2]


def duration(seconds: float) -> str:
    """Seconds as they are printed: three digits in the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{float(f'{seconds / size:.3g}'):g} {unit}"
    return f"{float(f'{seconds / 1e-9:.3g}'):g} ns"


def term_look(name: str, terms: list[str]) -> tuple[str, str]:
    """Colour and line of a loss term; terms without a fixed look take the spare colours in their order."""
    if name in TERM_LOOKS:
        return TERM_LOOKS[name]
    place, spare = [other for other in terms if other not in TERM_LOOKS].index(name), LOOKS[5:]
    return spare[place % len(spare)][0], ("-", "--", "-.", ":")[place // len(spare) % 4]


def where(runtime: pd.DataFrame) -> str:
    """What run times were measured on: "CPU, 2 threads", or the GPU's name."""
    device, threads = runtime["device"].iloc[0], runtime["threads"].iloc[0]
    return device if device != "CPU" else f"CPU, {threads} thread{'s' if threads > 1 else ''}"

"""Teacher and student as configured: what is computed of what, in which size, and which loss carries what from one to
the other.

Drawn from the settings (the paper's Figure 1 in our words, docs/method.md), and the widths of checkpoints, which
settings do not hold; no result enters. Coordinates are inches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from d2llm.methods.d2llm import METHOD
from d2llm.reporting.bases import size, width
from d2llm.reporting.drawing.figures import empty, note
from d2llm.reporting.drawing.fonts import FIRST_CHINESE, LATIN, families
from d2llm.reporting.style import IMITATION, SUBJECT_LOOK
from d2llm.run.code import constants
from d2llm.teacher.prompts import prompts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from d2llm.config.schema import Config
    from d2llm.config.sections import BaseSettings, PretrainedSettings
    from d2llm.methods.d2llm.recipe import D2LLMRecipe
    from d2llm.reporting.drawing.figures import Data
    from d2llm.teacher.prompts import Prompt

PLACE = 13
READS = ()
ALSO = ("about",)
SETTINGS = ("models.teacher", "models.decoder", "teacher.symmetric", "teacher.asymmetric", "methods")
CAPTION = {
    "section": "training",
    "title": "Architecture",
    "text": (
        "Teacher and student as configured in this run, and which loss ties which of their parts. The paper's Figure 1."
    ),
    "alt": (
        "Diagram: on the left the teacher reads both texts at once; on the right the student embeds them apart and"
        " a small network scores the two vectors; dashed arrows between them are the imitation losses."
    ),
}

WIDTH, HEIGHT, NOTE = 6.9, 4.55, 0.42
# Fills: the teacher's parts, the student's, those that hold texts; dark lines and text on all of them.
TEACHER, STUDENT, TEXT = "#e4e4e4", "#fbe3d3", "#ffffff"
LINE, OFF, ASIDE = "#333333", "#9a9a9a", "#555555"
SMALL = 7
ACTIVATIONS = {"relu": "ReLU", "squared_relu": "ReLU²"}


def title(kind: str, name: str) -> str:
    """What a part of a student is called."""
    return constants(f"d2llm.models.{kind}s.{name}")["TITLE"]


@dataclass(frozen=True)
class Box:
    """A rectangle by its centre and size; arrows end at its sides."""

    x: float
    y: float
    width: float
    height: float

    @property
    def top(self) -> tuple[float, float]:
        return self.x, self.y + self.height / 2

    @property
    def bottom(self) -> tuple[float, float]:
        return self.x, self.y - self.height / 2

    @property
    def left(self) -> tuple[float, float]:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y


# Teacher and student share rows: last state with pair features, answers with the head. The losses stand between them.
PROMPT, T_DECODER = Box(1.17, 0.55, 2.2, 0.84), Box(1.17, 1.51, 2.2, 0.5)
STATE, ANSWERS, SURE = Box(1.17, 2.62, 2.2, 0.36), Box(1.17, 3.24, 2.2, 0.36), Box(1.17, 3.86, 2.2, 0.36)
SIDES = {"query": 4.63, "passage": 6.07}
FIRST, BRANCHES, HEAD = Box(5.35, 2.07, 2.66, 0.36), Box(5.35, 2.62, 2.66, 0.42), Box(5.35, 3.24, 2.66, 0.36)
MODULE, LOGIT = Box(5.35, 2.72, 2.9, 1.84), Box(5.35, 3.99, 2.66, 0.3)
LOSSES_X, LOSS_SIZE = 3.08, (1.0, 0.34)


def draw(data: Data) -> Figure:
    """Draw the teacher left, the student right and the losses with their weights between them, inputs at the bottom."""
    from matplotlib import pyplot

    if METHOD.name not in data.config.methods:
        return empty("No architecture to show: this needs d2llm among the methods.")
    figure = pyplot.figure(figsize=(WIDTH, HEIGHT + NOTE))
    figure.set_layout_engine("none")  # the style's would move what stands where it should
    axis = figure.add_axes((0.0, NOTE / (HEIGHT + NOTE), 1.0, HEIGHT / (HEIGHT + NOTE)))
    axis.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axis.axis("off")
    recipe = cast("D2LLMRecipe", data.config.recipe(METHOD.name))
    about = data.collected.about or {}
    widths = about.get("widths", {})
    _draw_teacher(axis, data.config, widths.get("teacher"), about.get("classifier", False))
    _draw_student(axis, data.config.models.decoder, recipe, widths.get("decoder"))
    _draw_losses(axis, recipe)
    note(
        figure,
        data,
        "Sizes, prompt and weights are this run's settings. Solid arrows: what is computed of what; dashed: what the "
        "student imitates, each loss a term of the total with the weight below its name. The teacher's side is "
        "computed once, before training.",
    )
    return figure


def _draw_teacher(axis: Axes, config: Config, known_width: int | None, classifier: bool) -> None:
    templates = prompts(config.teacher)
    lines, answers, fonts = _shorten_prompt(templates["symmetric"], templates["asymmetric"])
    body, state = "Decoder", "Last state, where the answer follows: $y^T$"
    head = f"LM head, rows of the two answers:\n{answers}"
    if classifier:
        body, state, lines = "Re-ranker", "Pooled state of the pair: $y^T$", ["[text a]", "[text b]"]
        head, fonts = "Its own classifier:\nyes / no, or one logit and 0", [LATIN]
    _write_heading(axis, PROMPT.x, "Teacher: cross-encoder")
    _draw_box(axis, PROMPT, "", TEXT)
    for place, line in enumerate(lines):
        axis.text(
            PROMPT.left[0] + 0.07, PROMPT.top[1] - 0.13 - 0.19 * place, line, fontsize=SMALL, family=fonts, va="center"
        )
    _draw_box(
        axis, T_DECODER, f"{body} reads both texts together\n{size(config.models.teacher, ', ', heads=True)}", TEACHER
    )
    _draw_box(
        axis,
        STATE,
        f"{state}\npair feature, width {width(config.models.teacher, known=known_width)}",
        TEACHER,
    )
    _draw_box(axis, ANSWERS, head, TEACHER, family=fonts)
    _draw_box(axis, SURE, "Softmax of (yes, no): probability $\\hat{p}$\nscore: yes logit − no logit", TEACHER)
    for start, end in ((PROMPT, T_DECODER), (T_DECODER, STATE), (STATE, ANSWERS), (ANSWERS, SURE)):
        _draw_arrow(axis, start.top, end.bottom)


def _shorten_prompt(symmetric: Prompt, asymmetric: Prompt) -> tuple[list[str], str, list[str]]:
    """(lines of the prompt, answers of both modes, fonts with all their characters); English where no font has them."""
    lines = [
        _shorten(symmetric.instruction.strip(), 16),
        f"{_shorten(symmetric.query.strip(), 8)}[text a]",
        f"{_shorten(symmetric.passage.strip(), 8)}[text b]",
        _shorten(symmetric.cue.strip(), 14),
    ]
    answers = f"{symmetric.yes} / {symmetric.no} (or {asymmetric.yes} / {asymmetric.no})"
    fonts = families("".join([*lines, answers]))
    if fonts is None:
        return ["[what is asked]", "[text a]", "[text b]", "[answer:]"], "yes / no", [LATIN]
    return [line for line in lines if line], answers, fonts


def _shorten(text: str, longest: int) -> str:
    """The first characters, a Latin one counting half as it is half as wide."""
    room = 2 * longest
    for place, character in enumerate(text):
        room -= 2 if ord(character) >= FIRST_CHINESE else 1
        if room < 0:
            return text[:place] + "…"
    return text


def _draw_student(
    axis: Axes, decoder: BaseSettings | PretrainedSettings, recipe: D2LLMRecipe, known_width: int | None
) -> None:
    """Two towers that share their weights, and what scores their vectors."""
    _write_heading(axis, HEAD.x, "Student: D2LLM, a bi-encoder with interaction")
    _draw_towers(axis, decoder, recipe, known_width)
    _draw_box(axis, LOGIT, "Logit $z$: score of the pair", TEXT)
    interaction = recipe.interaction
    if interaction.name == "iem":
        _draw_interaction(axis, decoder, recipe, known_width)
        return
    whole = Box(MODULE.x, (FIRST.bottom[1] + HEAD.top[1]) / 2, FIRST.width, HEAD.top[1] - FIRST.bottom[1])
    _draw_box(axis, whole, f"Score: {title('scorer', interaction.name)} of $y_i$ and $y_j$", STUDENT)
    _draw_arrow(axis, whole.top, LOGIT.bottom)


def _draw_towers(
    axis: Axes, decoder: BaseSettings | PretrainedSettings, recipe: D2LLMRecipe, known_width: int | None
) -> None:
    """From both texts to their vectors."""
    ends = []
    for (side, x), text, vector in zip(SIDES.items(), ("a", "b"), ("i", "j"), strict=True):
        source, tower, pool = Box(x, 0.26, 1.32, 0.26), Box(x, 0.85, 1.32, 0.4), Box(x, 1.41, 1.32, 0.36)
        _draw_box(axis, source, f"{side.capitalize()}: text {text}", TEXT)
        _draw_box(axis, tower, "Decoder\n" + size(decoder, ", ").replace(", lowest", ",\nlowest"), STUDENT)
        _draw_box(axis, pool, _describe_pooling(recipe, width(decoder, known=known_width)), STUDENT)
        _draw_arrow(axis, source.top, tower.bottom)
        _draw_arrow(axis, tower.top, pool.bottom)
        target = (x, FIRST.bottom[1])
        _draw_arrow(axis, pool.top, target)
        axis.text(x + 0.06, 1.69, f"$y_{vector}$", fontsize=7, va="center")
        ends.append(tower)
    axis.plot([ends[0].right[0], ends[1].left[0]], [0.85, 0.85], color=LINE, linewidth=2.4, solid_capstyle="butt")
    axis.text(
        HEAD.x,
        0.51,
        f"shared; {_describe_tuning(recipe)}",
        fontsize=SMALL,
        ha="center",
        va="center",
        color=SUBJECT_LOOK[0],
    )


def _draw_interaction(
    axis: Axes, decoder: BaseSettings | PretrainedSettings, recipe: D2LLMRecipe, known_width: int | None
) -> None:
    """The interaction emulation module: first layer, branches and head."""
    from matplotlib.patches import FancyBboxPatch

    axis.add_patch(
        FancyBboxPatch(
            (MODULE.left[0], MODULE.bottom[1]),
            MODULE.width,
            MODULE.height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor="none",
            edgecolor=SUBJECT_LOOK[0],
            linewidth=0.9,
        )
    )
    axis.text(
        MODULE.right[0] - 0.06,
        MODULE.top[1] - 0.1,
        "Interaction emulation module (IEM)",
        fontsize=SMALL,
        ha="right",
        va="center",
        color=SUBJECT_LOOK[0],
    )
    interaction = recipe.interaction
    hidden = interaction.hidden
    _draw_box(
        axis,
        FIRST,
        f"First layer on [$y_i$; $y_j$]\n{width(decoder, 2, known_width)} → {hidden}, "
        f"{ACTIVATIONS[interaction.activation]}",
        STUDENT,
    )
    for box, name in _place_branches(interaction.branches):
        _draw_box(axis, box, f"{name}\n{hidden} → {hidden}, ReLU: $y^S$", STUDENT)
        _draw_arrow(axis, (box.x, FIRST.top[1]), box.bottom)
        _draw_arrow(axis, box.top, (box.x, HEAD.bottom[1]))
    plus = " + learned · cosine" if interaction.skip == "cosine" else ""
    _draw_box(axis, HEAD, f"Shared head, {hidden} → 1{plus}", STUDENT)
    # Left of the module's name.
    _draw_arrow(axis, (SIDES["query"], HEAD.top[1]), (SIDES["query"], LOGIT.bottom[1]))


def _place_branches(kind: str) -> list[tuple[Box, str]]:
    """The two branches side by side, or the only one of the ablation."""
    if kind == "shared":
        return [(BRANCHES, "One branch for both modes")]
    wide = BRANCHES.width / 2 - 0.04
    return [
        (Box(BRANCHES.x + sign * (wide / 2 + 0.04), BRANCHES.y, wide, BRANCHES.height), name)
        for sign, name in ((-1, "Symmetric branch"), (1, "Asymmetric branch"))
    ]


def _draw_losses(axis: Axes, recipe: D2LLMRecipe) -> None:
    """Those on the logit stacked at its height, feature imitation between the features; one of weight 0 is grey and
    joins nothing.
    """
    contrast = {"joint": "CI, with in-batch", "separate": "CI", "none": "CI"}[recipe.in_batch]
    rank = "RI-PHN, batch" if recipe.rank_over == "batch" else "RI-PHN"
    stacked = [(contrast, f"weight {recipe.ci:g}", recipe.ci), (rank, f"α = {recipe.alpha:g}", recipe.alpha)]
    stacked.append(("RI-EHN", f"β = {recipe.beta:g}", recipe.beta))
    for (name, weight_text, weight), y in zip(stacked, (4.15, 3.73, 3.31), strict=True):
        box = Box(LOSSES_X, y, *LOSS_SIZE)
        _draw_loss(axis, box, name, weight_text, weight)
        if weight > 0:
            _draw_arrow(axis, (SURE.right[0], SURE.y), box.left, imitation=True)
            _draw_arrow(axis, box.right, (LOGIT.left[0], LOGIT.y), imitation=True)
    features = Box(LOSSES_X, STATE.y, *LOSS_SIZE)
    _draw_loss(axis, features, "FI", f"γ = {recipe.gamma:g}", recipe.gamma)
    if recipe.gamma > 0:
        _draw_arrow(axis, STATE.right, features.left, imitation=True)
        _draw_arrow(axis, features.right, BRANCHES.left, imitation=True)
    meanings = [
        "CI: contrastive imitation",
        "RI: rank imitation of",
        "  PHN: positive, hard negatives",
        "  EHN: easy, hard negatives",
    ]
    meanings += ["FI: feature imitation, of the", "  branch of the pair's mode"]
    if recipe.passage_to_query > 0:
        meanings.append(f"P2Q: passages' contrast, × {recipe.passage_to_query:g}")
    if recipe.in_batch == "separate":
        meanings.append("CL: in-batch contrast of $z$")
        _draw_loss(
            axis,
            Box(LOSSES_X, 1.9, *LOSS_SIZE),
            "CL, in-batch",
            f"weight {recipe.in_batch_weight:g}",
            recipe.in_batch_weight,
        )
    axis.text(LOSSES_X - 0.67, 0.13, "\n".join(meanings), fontsize=SMALL, va="bottom", linespacing=1.4, color=ASIDE)


def _draw_loss(axis: Axes, box: Box, name: str, weight_text: str, weight: float) -> None:
    color = LINE if weight > 0 else OFF
    _draw_box(
        axis, box, f"{name}\n{weight_text if weight > 0 else 'off'}", "#ffffff", edge=color, color=color, radius=0.15
    )


# --------------------------------------------------------------------------------------------------------------- words
def _describe_pooling(recipe: D2LLMRecipe, states: str) -> str:
    name = title("pooling", recipe.pooling.name)
    heads = f", {recipe.pooling.heads} heads" if recipe.pooling.name == "pma" else ""
    return f"{name}{heads}\n→ width {states}"


def _describe_tuning(recipe: D2LLMRecipe) -> str:
    """Which of the decoder's weights train."""
    kind = recipe.tuning.kind
    return {"lora": f"LoRA of rank {recipe.tuning.r}", "full": "tuned in full", "bitfit": "biases tuned"}[kind]


# -------------------------------------------------------------------------------------------------------------- shapes
def _write_heading(axis: Axes, x: float, text: str) -> None:
    axis.text(x, HEIGHT - 0.1, text, fontsize=8, fontweight="bold", ha="center", va="center")


def _draw_box(
    axis: Axes,
    box: Box,
    text: str,
    fill: str,
    *,
    edge: str = LINE,
    color: str = "black",
    radius: float = 0.04,
    family: list[str] | None = None,
) -> None:
    from matplotlib.patches import FancyBboxPatch

    axis.add_patch(
        FancyBboxPatch(
            (box.left[0], box.bottom[1]),
            box.width,
            box.height,
            boxstyle=f"round,pad=0,rounding_size={radius}",
            facecolor=fill,
            edgecolor=edge,
            linewidth=0.7,
        )
    )
    if text:
        axis.text(
            box.x, box.y, text, fontsize=SMALL, ha="center", va="center", color=color, linespacing=1.25, family=family
        )


def _draw_arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], imitation: bool = False) -> None:
    axis.annotate(
        "",
        end,
        start,
        arrowprops={
            "arrowstyle": "-|>,head_length=0.28,head_width=0.13",
            "shrinkA": 0,
            "shrinkB": 0,
            "linewidth": 0.8,
            "linestyle": (0, (3, 2)) if imitation else "-",
            "color": IMITATION if imitation else LINE,
        },
    )

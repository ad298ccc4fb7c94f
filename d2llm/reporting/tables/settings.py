"""Table 5 of the paper: data and settings, i.e. what each method is trained with and on, and what it is measured on.

Holds no times: those are in `runs.csv`, and no two runs share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from d2llm.config.recipes import PretextStage, Recipe
from d2llm.config.registry import declared
from d2llm.reporting.bases import size
from d2llm.reporting.collected import Collected, given
from d2llm.reporting.context import Context
from d2llm.reporting.layout.formats import Block, PlainTable
from d2llm.reporting.style import CONTROLLED_TEXT, TERM_TITLES
from d2llm.run.code import constants
from d2llm.run.errors import ArtifactError
from d2llm.run.schemas import FINE_TUNING

if TYPE_CHECKING:
    from d2llm.config.schema import Config

PLACE = 5
SETTINGS = ("models", "training", "negatives", "recipes")
READS = ("scores", "trainings", "curves", "card_json")
CAPTION = {
    "section": "training",
    "title": "Data and settings",
    "text": (
        "What each method is trained with (model, trained parameters, pooling, scorer, loss, rates) and on, and "
        "how large every set of examples is."
    ),
}

NOTHING = "–"
KINDS = {"full": "all weights", "lora": "LoRA", "bitfit": "biases, and embeddings of new tokens if any"}
# Weights of D2LLM's terms: title, key of its recipe.
WEIGHTS = (("CI", "ci"), ("RI-PHN", "alpha"), ("RI-EHN", "beta"), ("FI", "gamma"))


class SettingsTable:
    """Two blocks: settings by methods; sets of examples by their sizes."""

    name = "settings"
    heading = "Table 5. Data and settings."

    def build(self, collected: Collected, context: Context, config: Config) -> PlainTable:
        """The table from `runs.csv`, the names of the logged losses, the data card and the resolved recipes.

        Raises:
            ArtifactError: a configured method was not trained.
        """
        blocks = (
            self._describe_methods(collected, context, config),
            self._describe_data(given(collected.card_json, "card_json"), given(collected.scores, "scores")),
        )
        sentences = [
            f"Tier {context.tier}. Methods as configured; every one sees the same pairs in the same order. "
            "Parameters count scalars; rates are the highest of their schedules."
        ]
        if context.generated:
            sentences.append(CONTROLLED_TEXT)
        return PlainTable(self.name, self.heading, " ".join(sentences), blocks)

    def _describe_methods(self, collected: Collected, context: Context, config: Config) -> Block:
        runs, curves = given(collected.trainings, "trainings"), given(collected.curves, "curves")
        runs, curves = (frame[frame["variant"] == "base"] for frame in (runs, curves))
        columns = []
        for name in context.methods:
            trainings = runs[runs["method"] == name]
            if trainings.empty:
                raise ArtifactError(f"runs.csv holds no training of {name}; run `snakemake --cores all` again")
            logged = curves.loc[(curves["method"] == name) & (curves["stage"] == FINE_TUNING), "name"]
            # All seeds of a method are trained alike.
            columns.append(described(name, config, trainings.iloc[0], list(dict.fromkeys(logged))))
        rows = tuple((setting, *(column[setting] for column in columns)) for setting in columns[0])
        titles = [context.titles.get(name, name) for name in context.methods]
        return Block("methods", "Methods", ("Setting", *titles), rows)

    def _describe_data(self, card: Mapping[str, Any], scores: pd.DataFrame) -> Block:
        titles = scores.drop_duplicates("task").set_index("task")["task_title"].to_dict()
        rows = [
            ("training", row["dataset"], row["mode"], count(row["queries"]), count(row["pairs"]), count(row["pool"]))
            for row in card["training"]
        ]
        for row in card["evaluation"]:
            task = row["task"]
            name = f"{titles[task]} ({task})" if task in titles else task
            if "passages" in row:
                relevant = f"{row['relevant_per_query']:g} a query"
                rows.append((row["split"], name, "asymmetric", count(row["n"]), relevant, count(row["passages"])))
            else:
                rows.append((row["split"], name, "symmetric", NOTHING, count(row["n"]), NOTHING))
        rows += [
            (f"teacher, {row['split']}", NOTHING, row["mode"], count(row["groups"]), count(row["pairs"]), NOTHING)
            for row in card["teacher"]
        ]
        header = ("Used for", "Set", "Mode", "Queries", "Pairs", "Passages")
        title = (
            "Data. Pairs: of training, a query and its positive; of retrieval, judged relevant; of the teacher, a "
            "text and a candidate. Passages of training: those that negatives are drawn from"
        )
        return Block("data", title, header, tuple(rows))


def described(name: str, config: Config, run: pd.Series, logged: list[str]) -> dict[str, str]:
    """Setting: text, of one method; `run` is its row of RUNS, `logged` are the names in its log."""
    chosen, recipe = declared(name), config.recipe(name)
    base = config.models.of(chosen.base(recipe))
    lengths = (recipe.max_lengths.query, recipe.max_lengths.passage, recipe.max_lengths.symmetric)
    return {
        "Base model": f"{run['kind']}, {size(base)}",
        "Parameters": count(run["parameters"]),
        "of them trained, base model": count(run["backbone_trained"]),
        "of them trained, pooling and scorer": count(run["head_trained"]),
        "Tuning": tuning(recipe),
        "Pooling": renamed("pooling", run["pooling"]),
        "Scorer": renamed("scorer", run["scorer"].partition(" (")[0]),
        "Loss": " + ".join(TERM_TITLES.get(term, term) for term in logged if term != "loss"),
        "Loss weights": weights(recipe),
        "Teacher's scores": "yes" if chosen.reads_scores(recipe) else "no",
        "Temperature": f"{recipe.temperature:g}",
        "Learning rate": f"{recipe.learning_rate:g}",
        "Learning rate of pooling and scorer": f"{recipe.head_learning_rate or recipe.learning_rate:g}"
        if run["head_trained"]
        else NOTHING,
        "Schedule": f"{recipe.schedule}, warm-up {warmup(recipe.warmup)}",
        "Weight decay": f"{recipe.weight_decay:g}",
        "Hard negatives a query": str(negatives(recipe, int(run["negatives_per_query"]))),
        "Most tokens (query / passage / symmetric)": " / ".join(
            str(min(n, config.training.max_length)) for n in lengths
        ),
        "Own pre-training": pretraining(recipe),
        "Updates × queries": f"{run['updates']} × {run['queries'] // run['updates']}",
    }


def count(value: int) -> str:
    """A number with separators between thousands."""
    return f"{value:,}"


def renamed(kind: Literal["pooling", "scorer"], text: str) -> str:
    """A part's text (`curves.part`) with its name as readers know it."""
    name, bracket, options = text.partition(" (")
    return constants(f"d2llm.models.{kind}s.{name}").get("TITLE", name) + bracket + options


def tuning(recipe: Recipe) -> str:
    """Which weights of the base model train."""
    tuned = recipe.tuning
    more = f", rank {tuned.r}, α {tuned.alpha:g}, dropout {tuned.dropout:g}" if tuned.kind == "lora" else ""
    return KINDS[tuned.kind] + more


def weights(recipe: Recipe) -> str:
    """Weights of the loss terms, where the recipe has any."""
    texts = [f"{title} {getattr(recipe, key):g}" for title, key in WEIGHTS if hasattr(recipe, key)]
    return ", ".join(texts) or NOTHING


def warmup(value: int | float) -> str:
    """Updates, or a share of them."""
    return f"{value} updates" if isinstance(value, int) else f"{value:.0%}"


def negatives(recipe: Recipe, held: int) -> int:
    """Hard negatives used, of those the pairs hold."""
    return held if recipe.hard_negatives is None else min(held, recipe.hard_negatives)


def pretraining(recipe: Recipe) -> str:
    """The method's own stages before fine-tuning, in the order of the recipe, as updates (or epochs) × texts."""
    parts = [(key, value) for key, value in recipe if isinstance(value, PretextStage) and value.steps != 0]
    return ", ".join(f"{key} {_write_length(part)} × {part.batch_size}" for key, part in parts) or NOTHING


def _write_length(stage: PretextStage) -> str:
    """Epochs, or updates."""
    return f"{stage.epochs:g} epochs" if stage.steps is None else str(stage.steps)


TABLE = SettingsTable()

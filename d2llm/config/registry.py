"""Finds methods by name, and what a config has to know of one: its recipe and what it starts from. Importable without
torch.

What a method does is in `d2llm.methods`; no import leads there from here, as methods are found by the names of their
files.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Generic, Literal, TypeVar

from d2llm.config.recipes import Recipe
from d2llm.config.validation import validate
from d2llm.run.errors import ConfigError

R = TypeVar("R", bound=Recipe)
# A part of a student by name and options.
Spec = tuple[str, dict[str, Any]]


class Declaration(Generic[R]):
    """What is known of a method before it does anything, with a recipe of its own type."""

    name: ClassVar[str]
    title: ClassVar[str]
    citation: ClassVar[str]
    # Which base checkpoint it starts from.
    kind: ClassVar[Literal["decoder", "encoder"]]
    uses_teacher: ClassVar[bool] = False
    # Name and options of the pooling and of the scorer of its students.
    pooling: ClassVar[Spec]
    scorer: ClassVar[Spec]
    # Tokens that it adds to the vocabulary.
    new_tokens: ClassVar[int] = 0
    # Keys of the recipe that decide its pre-training stage; none: it has no such stage.
    pretext_keys: ClassVar[tuple[str, ...]] = ()
    # Of the class, like the others; ClassVar may not name a type variable.
    Recipe: type[R] = Recipe  # type: ignore[assignment]  # what a method has without a recipe of its own

    def recipe(self, settings: Mapping[str, Any] | None = None) -> R:
        """The published recipe with `settings` laid over it, sub-sections key by key. Raises ConfigError."""
        return validate(self.Recipe, dict(settings or {}), lambda key: "config", ("methods", self.name))

    def base(self, recipe: R) -> str:
        """Name of the base model it starts from."""
        return recipe.base or self.kind

    def parts(self, recipe: R) -> tuple[Spec, Spec]:
        """Pooling and scorer of its students; to be overridden where the recipe chooses them."""
        return self.pooling, self.scorer

    def imitates(self, recipe: R) -> bool:
        """Whether a loss of this recipe reads the teacher's scores."""
        return self.uses_teacher

    def reads_scores(self, recipe: R) -> bool:
        """Whether a training by this recipe does: its loss, or the choice of its negatives."""
        return self.imitates(recipe) or recipe.negatives.reads

    def imitates_features(self, recipe: R) -> str | None:
        """The key of the recipe by which a loss reads the teacher's pair features; None: none does."""
        return None

    def modules(self, recipe: R) -> tuple[str, ...]:
        """What else it computes with that no import statement names."""
        return ()

    def pair_flops(self, recipe: R, width: int, length: float) -> float:
        """Floating-point operations of scoring a pair from stored vectors of `width` numbers, of texts of `length`
        tokens.
        """
        return 2.0 * width

    def text_flops(self, recipe: R, width: int, length: float) -> float:
        """Of what becomes of a text's states beside the model: pooling, and what its scorer stores of a vector."""
        return 2.0 * width * length

    def indexed_width(self, recipe: R, width: int, longest: int) -> int:
        """Numbers that an index holds of a passage, at most."""
        return max(width, 512)

    def has_pretext(self) -> bool:
        """Whether it has a pre-training stage of its own."""
        return bool(self.pretext_keys)

    def pretext_recipe(self, recipe: R) -> dict[str, Any] | None:
        """What decides the outcome of its pre-training stage; None for a method without one."""
        return recipe.model_dump(mode="json", include={*self.pretext_keys, "base"}) if self.pretext_keys else None

    def phrases(self, recipe: R) -> tuple[str, ...]:
        """Strings fed besides the texts: a vocabulary made in the pipeline has to hold all their words."""
        return ()


def names() -> list[str]:
    """Every method there is: those of the library, then one for each file in `baselines/`."""
    return list(modules())


@cache
def modules() -> dict[str, str]:
    """The module of every method by the method's name: packages in `d2llm/methods/`, then files in `baselines/`."""
    own, others = (
        {
            entry.name: f"{package}.{entry.name}"
            for entry in pkgutil.iter_modules(importlib.import_module(package).__path__)
            if entry.ispkg or package == "baselines"
        }
        for package in ("d2llm.methods", "baselines")
    )
    return {name: module for name, module in (own | dict(sorted(others.items()))).items() if not name.startswith("_")}


def declared(name: str) -> Declaration:
    """The method of that name, as far as a config knows it. Raises ConfigError with the nearest known name."""
    known = modules()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown method {name!r}{hint} Known: {', '.join(known)}")
    module = importlib.import_module(known[name])
    method = getattr(module, "METHOD", None)
    if not isinstance(method, Declaration):
        raise ConfigError(f"{module.__name__} has no METHOD, an instance of d2llm.methods.base.Method")
    parts = type(method).parts is not Declaration.parts or all(hasattr(method, part) for part in ("pooling", "scorer"))
    if not parts:
        raise ConfigError(
            f"{module.__name__}.METHOD names no pooling and scorer of its students: set `pooling` and `scorer`, name and "
            'options, on its class, e.g. ("mean", {}) and ("cosine", {}) (docs/extending.md)'
        )
    if method.name != name:
        raise ConfigError(f"{module.__name__}.METHOD is named {method.name!r}; it must carry its file's name {name!r}")
    return method

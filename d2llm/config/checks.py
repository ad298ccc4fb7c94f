"""What a config may not say beyond the types of its keys: names that do not exist, points that cannot be told apart,
sizes that do not fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from d2llm.config.catalogue import row_names
from d2llm.config.data import TASKS
from d2llm.config.registry import Declaration, declared, modules
from d2llm.config.schema import Config
from d2llm.config.sections import NAME, BaseSettings, StatisticsSettings
from d2llm.config.validation import Key, dotted, show, validate
from d2llm.config.values import merged, nested, plain
from d2llm.run.errors import ConfigError
from d2llm.run.schemas import AVERAGE

if TYPE_CHECKING:
    from d2llm.config.recipes import Recipe


# Words that stand for several, or for none, where a method's name may.
TAKEN = frozenset((AVERAGE, "base", "all", "baselines"))


def check_seeds(config: Config, origin: Callable[[Key], str]) -> None:
    """Refuse a seed twice, which is no second training, and variants' seeds that the method they are compared with
    lacks.
    """
    for name, seeds in (("seeds", config.seeds), ("variant_seeds", config.seeds_of_variants())):
        if len(set(seeds)) < len(seeds):
            raise ConfigError(f"{origin((name,))}: {name}: expected each seed once; found {show(seeds)}")
    if not set(config.seeds_of_variants()) <= set(config.seeds):
        message = f"expected some of seeds {show(config.seeds)}; found {show(config.variant_seeds)}"
        raise ConfigError(f"{origin(('variant_seeds',))}: variant_seeds: {message}")


def check_include(config: Config, origin: Callable[[Key], str]) -> None:
    """Refuse what is neither `sweeps`, `variants` nor a group of variants."""
    groups = dict.fromkeys(variant.group for variant in config.variants.values() if variant.group)
    for name in config.include:
        if name not in ("sweeps", "variants", *groups):
            known = ", ".join(["sweeps", "variants", *groups])
            raise ConfigError(f"{origin(('include',))}: include: expected some of {known}; found {show(name)}")


def check_methods(config: Config, origin: Callable[[Key], str]) -> None:
    """Refuse methods nobody knows, overrides their recipes lack, and variants that name neither."""
    if not config.methods:
        raise ConfigError(f"{origin(('methods',))}: methods: expected at least one method; found none")
    check_named_methods(config, origin)
    for name in config.methods:
        recipe = check_recipe(config, name, "base", origin)
        # A record of a training says what its labels were, and is read as a config too.
        for part, usual in (("base", None), ("teacher", "teacher"), ("labels", config.training.labels)):
            if getattr(recipe, part, usual) not in (None, usual):
                key: Key = ("methods", name, part)
                raise ConfigError(f"{origin(key)}: {dotted(key)}: for variants only; methods share theirs")
    for name, settings in config.variants.items():
        check_recipe(config, settings.method, name, origin)
    for name in config.methods:
        if declared(name).has_pretext() and not declared(name).pretext_keys:
            raise ConfigError(
                f"method {name}: it has a pretext stage, and no pretext_keys to say which keys of its recipe decide it"
            )
    for name in ("teacher", *config.teachers):
        if config.teacher_of(name, origin).targets == "probability" and config.data.source == "files":
            key = ("teacher", "targets") if name == "teacher" else ("teachers", name, "targets")
            raise ConfigError(
                f"{origin(key)}: {dotted(key)}: probability, which only generated text knows (data.source: world); set it to "
                "graded or label"
            )
    taken = sorted({"teacher", "decoder", "encoder", "pretext", "published"} & set(config.models.others))
    if taken:
        raise ConfigError(f"{origin(('models', 'others', taken[0]))}: models.others.{taken[0]}: this name is taken")


def check_named_methods(config: Config, origin: Callable[[Key], str]) -> None:
    """Refuse keys that name a method which is not among the config's."""
    known = ", ".join(config.methods)
    for name in config.training.steps_of:
        if name not in config.methods:
            key: Key = ("training", "steps_of", name)
            raise ConfigError(f"{origin(key)}: {dotted(key)}: expected one of {known}")
    subject = config.statistics.subject
    # The usual one may be away: a run of baselines alone compares nothing.
    if subject not in [*config.methods, StatisticsSettings().subject]:
        key = ("statistics", "subject")
        raise ConfigError(f"{origin(key)}: {dotted(key)}: expected one of {known}; found {subject!r}")
    for name, settings in config.variants.items():
        if name == "base" or name in config.rows():
            raise ConfigError(f"{origin(('variants', name))}: variants.{name}: this name is taken; choose another")
        if settings.method not in config.methods:
            where = origin(("variants", name, "method"))
            raise ConfigError(f"{where}: variants.{name}.method: expected one of {known}; found {settings.method!r}")


def check_recipe(config: Config, method: str, variant: str, origin: Callable[[Key], str]) -> Recipe:
    """The recipe of a method or a variant. Raises ConfigError for a method nobody knows and for keys it lacks."""
    prefix: Key = ("methods", method) if variant == "base" else ("variants", variant, "settings")
    try:
        chosen = declared(method)
    except ConfigError as error:
        raise ConfigError(f"{origin(prefix)}: {dotted(prefix)}: {error}") from None
    recipe = validate(chosen.Recipe, config.overrides(method, variant), origin, prefix)
    check_parts(config, chosen, recipe, origin, prefix)
    used, mined, where = recipe.hard_negatives, config.negatives.per_query, (*prefix, "negatives", "stratified")
    if recipe.negatives.stratified and (used is None or used >= mined or used < 2):
        raise ConfigError(
            f"{origin(where)}: {dotted(where)}: chooses some of the {mined} mined negatives (negatives.per_query); set "
            f"hard_negatives to a number from 2 to {mined - 1}; found {'null, all of them' if used is None else used}"
        )
    return recipe


def check_parts(config: Config, chosen: Declaration, recipe: Recipe, origin: Callable[[Key], str], prefix: Key) -> None:
    """Refuse a recipe that starts from a base model, or learns from a teacher, that the config does not have, or is to
    learn from a teacher alone what it reads no teacher for.
    """
    check_labels(config, chosen, recipe, origin, prefix)
    bases = [name for name in config.models.names() if (name == "encoder") == (chosen.kind == "encoder")]
    for key, known in (("base", bases), ("teacher", ["teacher", *config.teachers])):
        named = getattr(recipe, key, None)
        if named is not None and named not in known:
            where = (*prefix, key)
            raise ConfigError(f"{origin(where)}: {dotted(where)}: expected one of {', '.join(known)}; found {named!r}")


def check_features(config: Config, origin: Callable[[Key], str]) -> None:
    """Refuse trainings that imitate pair features of a teacher that is a file without any."""
    for method, variant in dict.fromkeys((run.method, run.variant) for run in config.runs()):
        recipe = config.recipe(method, variant)
        key = declared(method).imitates_features(recipe)
        teacher = config.teacher_of(getattr(recipe, "teacher", "teacher"), origin)
        if key is not None and teacher.scores is not None and teacher.features is None:
            where, name = config.place(method, variant), getattr(recipe, "teacher", "teacher")
            file: Key = ("teacher", "scores") if name == "teacher" else ("teachers", name, "scores")
            raise ConfigError(
                f"{origin(file)}: {dotted(where)}: {key} above 0 imitates pair features, and the teacher is a file "
                f"without any ({teacher.scores}); set {key} to 0, or name their column in teacher.features"
            )


def check_labels(
    config: Config, chosen: Declaration, recipe: Recipe, origin: Callable[[Key], str], prefix: Key
) -> None:
    """Refuse unlabelled queries for a recipe that reads no teacher's scores, and where no batch has room for them."""
    if (recipe.labels or config.training.labels).rest == "none":
        return
    key: Key = (*prefix, "labels", "rest") if recipe.labels else ("training", "labels", "rest")
    if not chosen.imitates(recipe):
        raise ConfigError(
            f"{origin(key)}: {dotted(key)}: teacher, but {chosen.name} by {dotted(prefix)} reads no teacher's scores; set it to none there"
        )
    if config.training.batch_size < 2 * config.training.pack:
        raise ConfigError(
            f"{origin(key)}: {dotted(key)}: teacher, but a batch of {config.training.batch_size} queries holds one pack; "
            "raise training.batch_size, or lower training.pack"
        )


def check_sweeps(config: Config, origin: Callable[[Key], str]) -> None:
    """Refuse sweeps of unknown methods or settings, and values that cannot tell their points apart."""

    for name, axes in config.sweeps.items():
        if name not in config.methods:
            known = ", ".join(config.methods)
            raise ConfigError(
                f"{origin(('sweeps', name))}: {dotted(('sweeps', name))}: expected one of the methods {known}"
            )
        for axis, values in axes.items():
            key: Key = ("sweeps", name, axis)
            points = {f"{axis}={plain(value)}": value for value in values}
            if len(points) < len(values):
                raise ConfigError(f"{origin(key)}: {dotted(key)}: a value twice (numbers count to six digits)")
            for point, value in points.items():
                check_point(config, point, origin, key)
                settings = merged(config.methods[name], nested({axis: value}))
                recipe = validate(declared(name).Recipe, settings, origin, key)
                check_parts(config, declared(name), recipe, origin, key)


def check_contrasts(config: Config, origin: Callable[[Key], str]) -> None:
    """Refuse a contrast of a row with itself, or of one that no setting of the config makes."""
    key: Key = ("statistics", "contrasts")
    known = [*config.methods, *config.rows(), *(f"{one.method}/{name}" for name, one in config.variants.items())]
    known += [f"{method}/{point}" for method in config.sweeps for point in config.sweep(method)]
    for pair in config.statistics.contrasts:
        for name in pair:
            if name not in known:
                raise ConfigError(
                    f"{origin(key)}: {dotted(key)}: expected a method, method/variant or reference row, such as "
                    f"{', '.join(known[:12])}; found {name!r}"
                )
        if pair[0] == pair[1]:
            raise ConfigError(f"{origin(key)}: {dotted(key)}: {pair[0]!r} against itself; name two rows")


def check_point(config: Config, point: str, origin: Callable[[Key], str], key: Key) -> None:
    """Refuse a point of a grid or sweep whose name cannot be one of a folder, or is taken."""
    if not re.fullmatch(NAME, point):
        raise ConfigError(f"{origin(key)}: {dotted(key)}: {point!r} cannot name a trial; use numbers or plain words")
    if point in config.variants:
        raise ConfigError(f"{origin(key)}: {dotted(key)}: {point!r} is a variant's name already; rename that")


def check_grids(config: Config, origin: Callable[[Key], str]) -> None:
    """Refuse grids of unequal size (a comparison must not be one of tuning budgets), of unknown methods or settings."""

    sizes = {}
    for name in config.tuning.grids:
        key: Key = ("tuning", "grids", name)
        if name not in config.methods:
            known = ", ".join(config.methods)
            raise ConfigError(f"{origin(key)}: {dotted(key)}: expected one of the methods {known}")
        points = config.grid(name)
        size = math.prod(map(len, config.tuning.grids[name].values()))
        if len(points) < size:
            raise ConfigError(f"{origin(key)}: {dotted(key)}: a value twice (numbers count to six digits)")
        for point, settings in points.items():
            check_point(config, point, origin, key)
            recipe = validate(declared(name).Recipe, merged(config.methods[name], nested(settings)), origin, key)
            check_parts(config, declared(name), recipe, origin, key)
        sizes[name] = size
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ConfigError(
            f"{origin(('tuning', 'grids'))}: tuning.grids: every method needs as many trials as the others; found "
            f"{listed}"
        )


def check_models(config: Config, origin: Callable[[Key], str]) -> None:
    """Refuse base models that cannot be made: of text that is not generated, with heads of odd width, grown from what
    does not fit.
    """

    def refuse(key: Key, text: str) -> None:
        key = ("models", *key)
        raise ConfigError(f"{origin(key)}: {dotted(key)}: {text}")

    for name in config.bases():
        settings, place = config.models.of(name), ("others", name) if name in config.models.others else (name,)
        if not isinstance(settings, BaseSettings):
            continue
        if config.data.source != "world":
            refuse(
                place, "only generated text (data.source: world) can make a base model; give the source of a checkpoint"
            )
        if name != "encoder" and settings.hidden_size // settings.heads % 2:
            refuse(
                (*place, "heads"),
                f"expected heads of even width in a decoder; found {settings.hidden_size} / {settings.heads}",
            )
        if settings.grown_from is None:
            continue
        if name in ("encoder", settings.grown_from):
            refuse((*place, "grown_from"), f"{settings.grown_from} cannot be the beginning of {name}; set it to null")
        source = config.models.of(settings.grown_from)
        if isinstance(source, BaseSettings):
            try:
                check_growth(settings, source.model_dump(include=set(GROWN)))
            except ConfigError as error:
                refuse(place, str(error))


# What a model has in common with the one it grows from, and what it has more of.
GROWN = ("hidden_size", "heads", "intermediate_size", "layers")


def check_growth(settings: BaseSettings, source: Mapping[str, int]) -> None:
    """Refuse a model that is not its source's layers and some more; `source` has the sizes of GROWN."""
    for key in GROWN[:-1]:
        if getattr(settings, key) != source[key]:
            raise ConfigError(f"{key} {getattr(settings, key)} is not the {source[key]} of the model it grows from")
    if settings.layers <= source["layers"]:
        raise ConfigError(
            f"layers {settings.layers} is not more than the {source['layers']} of the model it grows from"
        )


def check_tasks(config: Config, origin: Callable[[Key], str]) -> None:
    """Refuse evaluation sets that there are not, and reference rows that cannot be told apart or from methods."""
    if len(config.rows()) < len(config.references):
        named = [row if isinstance(row, str) else row.key for row in config.references]
        raise ConfigError(f"{origin(('references',))}: references: expected each once; found {show(named)}")
    for name, model in config.published().items():
        if name in TAKEN or name in modules() or name in row_names():
            raise ConfigError(
                f"{origin(('references',))}: references: {model.model}: its name {name!r} is taken; give it another "
                "(name: …)"
            )
    if "teacher" in config.references and config.teacher.scores is not None:
        raise ConfigError(
            f"{origin(('references',))}: references: teacher: its scores are those of a file (teacher.scores), and no "
            "model is there to score evaluation sets; take it out, e.g. references: [bm25]"
        )
    if config.evaluation.tasks == "all":
        return
    known = list(config.data.files.tasks if config.data.source == "files" else TASKS)
    for name in config.evaluation.tasks:
        if name not in known:
            key: Key = ("evaluation", "tasks")
            raise ConfigError(f"{origin(key)}: {dotted(key)}: expected some of {', '.join(known)}; found {name!r}")


def check_files(config: Config, origin: Callable[[Key], str]) -> None:
    """Refuse an evaluation set without the split that is evaluated, and a lack of dev splits where they are
    asked for.
    """
    if config.data.source != "files":
        return
    split = config.evaluation.split
    wanted = config.data.files.tasks if config.evaluation.tasks == "all" else config.evaluation.tasks
    for name, task in config.data.files.tasks.items():
        if name in wanted and getattr(task, split) is None:
            key: Key = ("data", "files", "tasks", name)
            raise ConfigError(f"{origin(key)}: {dotted(key)}: no {split} split, which evaluation.split asks for")
    if not any(task.dev for task in config.data.files.tasks.values()):
        for asked, reader in ((config.training.dev_every, "training.dev_every"), (config.tuning.grids, "tuning.grids")):
            if asked:
                key = ("data", "files", "tasks")
                raise ConfigError(f"{origin(key)}: {dotted(key)}: no set has a dev split, which {reader} asks for")

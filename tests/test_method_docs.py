"""docs/method.md names config keys, functions and files; all of them exist, and its defaults are the recipe's."""

import re
from pathlib import Path

import pytest

from d2llm.config.schema import Config
from d2llm.methods.d2llm import losses
from d2llm.methods.d2llm.recipe import D2LLMRecipe
from d2llm.models import interaction, pooling

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
QUOTED = set(re.findall(r"`([^`\n]+)`", TEXT))
SECTIONS = ("methods", "negatives", "teacher", "training", "models", "evaluation", "data")
KEYS = sorted(
    name for name in {q.split(":")[0] for q in QUOTED} if re.fullmatch(rf"({'|'.join(SECTIONS)})(\.\w+)+", name)
)


@pytest.mark.parametrize("key", KEYS)
def test_config_key_exists(key):
    parts = key.split(".")
    model, rest = (D2LLMRecipe, parts[2:]) if parts[0] == "methods" else (Config, parts)
    for part in rest:
        assert part in model.model_fields, f"{key}: no {part}"
        model = model.model_fields[part].annotation


def test_the_page_names_keys_at_all():
    assert len(KEYS) > 30 and {"methods.d2llm.alpha", "negatives.per_query"} <= set(KEYS)


@pytest.mark.parametrize("name", losses.__all__)
def test_every_loss_has_its_place(name):
    assert name in QUOTED or name == "off_diagonal"  # a helper, not an equation


def test_files_exist():
    files = {q for q in QUOTED if re.fullmatch(r"(d2llm|tests|config|docs)/[\w/]+\.\w+", q)}
    assert len(files) >= 8
    missing = [name for name in sorted(files) if not (ROOT / name).exists()]
    assert not missing


def test_weights_are_as_written():
    recipe = D2LLMRecipe()
    assert "(CI 1, CL 1, α 1, β 0.01, γ 0.001)" in TEXT
    assert (recipe.ci, recipe.in_batch_weight, recipe.alpha, recipe.beta, recipe.gamma) == (1, 1, 1, 0.01, 0.001)
    # The release's proportions: CI alpha/K, CL 1/B, FI eta·B at alpha 1, eta 0.001, B 32, K 8; then times K.
    assert (1 / 8, 1 / 32, 0.001 * 32) == (0.125, 0.03125, 0.032)
    assert (8 / 32, 8 * 1, 8 * 0.01, 8 * 0.032) == (0.25, 8, 0.08, 0.256)


@pytest.mark.parametrize(
    ("key", "module", "kind"),
    [("pooling", pooling, "POOLINGS"), ("interaction", interaction, "SCORERS")],
)
def test_every_choice_of_the_recipe_can_be_built(key, module, kind):
    choices = D2LLMRecipe.model_fields[key].annotation.model_fields["name"].annotation.__args__
    assert set(choices) <= set(getattr(module, kind))

"""A trained student as a folder others can load: sentence-transformers' layout, whole, with a model card
(`model_card`).

What the modules do is in `sentence_transformer`; nothing is sent anywhere (`hf upload OWNER/NAME FOLDER` does that).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.config.schema import Run
from d2llm.run.artifacts import atomic, read_json, write_json, write_text
from d2llm.run.errors import ConfigError
from d2llm.run.jobs import check_arguments
from d2llm.run.paths import PROVENANCE, STUDENT, Paths
from d2llm.search.model_card import card, terms

if TYPE_CHECKING:
    from d2llm.config.schema import Config

# Where the licence files of a base model are put.
LICENCES = "licence_of_the_base"


def export(config: Config, method: str, variant: str, seed: int, to: Path) -> Path:
    """Write a finished run's student to `to`, which must not exist. Raises ConfigError for a folder that is there and
    for a run the config has not, ArtifactError for one that is not finished."""
    from d2llm.models.student import Student

    if to.exists():
        raise ConfigError(f"--to {to}: exists already; remove it or choose another folder")
    check_arguments(config, "train", {"method": method, "variant": variant, "seed": seed})
    paths = Paths.of(config)
    run = paths.run(method, variant, seed)
    record = read_json(run / PROVENANCE)
    student = Student.load(run / "model")
    with atomic(to) as folder:
        student.save(folder / STUDENT)
        (folder / "1_Interaction").mkdir()
        write_json(folder / "1_Interaction" / "config.json", {"student": STUDENT})
        write_json(folder / "modules.json", modules())
        write_json(folder / "config_sentence_transformers.json", {"model_type": "SentenceTransformer", "prompts": {}})
        for file in terms(config, method, variant):
            (folder / LICENCES).mkdir(exist_ok=True)
            shutil.copy(file, folder / LICENCES)
        write_text(folder / "README.md", card(config, Run(method, variant, seed), record, student, to.name))
    return to


def modules() -> list[dict[str, Any]]:
    """sentence-transformers' list of modules."""
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"d2llm.sentence_transformer.{kind}"}
        for i, (path, kind) in enumerate(((STUDENT, "Embedder"), ("1_Interaction", "Interaction")))
    ]

"""A trained student as a folder others can load: sentence-transformers' layout, with a model card that holds its scores
and where it comes from.

What the modules do is in `sentence_transformer`; nothing is sent anywhere (`hf upload OWNER/NAME FOLDER` does that).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.config.schema import Run
from d2llm.run.artifacts import atomic, read_json, write_json, write_text
from d2llm.run.code import constants
from d2llm.run.errors import ConfigError
from d2llm.run.jobs import check_arguments
from d2llm.run.paths import PROVENANCE, STUDENT, Paths
from d2llm.version import __version__

if TYPE_CHECKING:
    from d2llm.config.schema import Config
    from d2llm.models.student import Student

CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, d2llm, {method}]
---

# {title}

A student trained by the D2LLM benchmark suite, version {version}: method `{method}`, variant `{variant}`, seed {seed}, tier `{tier}`.
{kind}, {pooling} pooling, embeddings of {width} numbers; pairs are scored by {scorer}.

```python
from d2llm.sentence_transformer import load   # or SentenceTransformer("{folder}", trust_remote_code=True): the classes are the package d2llm's

model = load("{folder}")
queries, documents = model.encode_query(["…"]), model.encode_document(["…", "…"])
scores = model[1].matrix(queries, documents)
```

or, with d2llm alone, `d2llm.load("{folder}")`.

## Scores

{scores}

## Where it comes from

{origin}
Settings of the run, as YAML:

```yaml
{settings}
```
"""


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
        write_text(folder / "README.md", card(config, Run(method, variant, seed), record, student, to.name))
    return to


def card(config: Config, run: Run, record: dict[str, Any], student: Student, folder: str) -> str:
    """The model card of a run's student, for the folder it is exported to."""
    import yaml

    about = student.description()
    method, variant, seed = run
    return CARD.format(
        title=f"{method}, {config.tier}",
        version=record.get("version", __version__),
        method=method,
        variant=variant,
        seed=seed,
        tier=config.tier,
        folder=folder,
        kind=about["kind"].capitalize(),
        pooling=about["pooling"]["name"],
        width=student.width,
        scorer=constants(f"d2llm.models.scorers.{about['scorer']['name']}")["TITLE"],
        scores=scores(Paths.of(config).scores_csv, method, variant, seed),
        origin=origin(record),
        settings=yaml.safe_dump(
            json.loads(json.dumps(record["settings"])), sort_keys=False, allow_unicode=True
        ).rstrip(),
    )


def modules() -> list[dict[str, Any]]:
    """sentence-transformers' list of modules."""
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"d2llm.sentence_transformer.{kind}"}
        for i, (path, kind) in enumerate(((STUDENT, "Embedder"), ("1_Interaction", "Interaction")))
    ]


def scores(path: Path, method: str, variant: str, seed: int) -> str:
    """The run's scores of whole tasks as a table, or that there are none; the breakdown by phenomenon stays in the
    run's own files.
    """
    import pandas as pd

    if not path.exists():
        return "Not evaluated."
    table = pd.read_csv(path)
    own = (table["method"] == method) & (table["variant"] == variant) & (table["seed"] == seed)
    rows = table[own & (table["phenomenon"] == "all")]
    if rows.empty:
        return "Not evaluated."
    lines = ["| task | type | split | metric | value | n |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r.task} | {r.task_type} | {r.split} | {r.metric} | {r.value:.4f} | {r.n} |" for r in rows.itertuples()
    ]
    return "\n".join(lines)


def origin(record: dict[str, Any]) -> str:
    """Provenance in words."""
    code = record.get("code", "")
    lines = [
        f"- trained {record.get('started', '?')}, {record.get('seconds', '?')} s, process seed "
        f"{record.get('process_seed', '?')}"
    ]
    lines += [f"- digest of the code: `{code}`"] if isinstance(code, str) else []
    lines += [
        f"- {name}: {record[name]}"
        for name in ("commit", "device", "processor", "python", "platform")
        if record.get(name)
    ]
    packages = record.get("packages", {})
    if packages:
        lines.append("- " + ", ".join(f"{name} {version}" for name, version in packages.items()))
    return "\n".join(lines) + "\n"

"""The model card of an exported student: how to use it and what it needs, its scores, its data, the licence of its
base, how to cite, where it comes from. Each from the run's own files; what is not there is said to be missing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.config.registry import declared
from d2llm.config.schema import Run
from d2llm.config.sections import PretrainedSettings
from d2llm.run.artifacts import read_json
from d2llm.run.code import constants
from d2llm.run.errors import ConfigError
from d2llm.run.paths import STUDENT, Paths
from d2llm.version import __version__

if TYPE_CHECKING:
    from d2llm.config.schema import Config
    from d2llm.models.student import Student

CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
license: {tag}
tags: [sentence-transformers, feature-extraction, {tags}]
---

# {title}, trained on tier {tier}

A student of the D2LLM benchmark suite, version {version}: method `{method}`, variant `{variant}`, seed {seed}. It is a {kind} with {pooling} pooling. A text becomes {width} numbers; a pair of texts is scored by {scorer}.

## Use

One installation, of the package d2llm (from a clone of its repository), brings all that is needed:

```sh
pip install ./d2llm
```

```python
import d2llm

student = d2llm.load("{folder}")
index = d2llm.Index.build(student, ["passage one", "passage two"])
for rows, scores in index.search(["a question"], depth=2):
    print(rows, scores)
```

In sentence-transformers:

```python
from d2llm.sentence_transformer import load   # or SentenceTransformer("{folder}", trust_remote_code=True)

model = load("{folder}")
queries, documents = model.encode_query(["a question"]), model.encode_document(["passage one", "passage two"])
scores = model[1].matrix(queries, documents)   # model.similarity would be a plain cosine
```

**What it needs of d2llm**: the module that scores pairs ({scorer}), and the pooling with the text formats of training. No code lies in this folder. `{backbone}/` is an ordinary Hugging Face model, whole, which `transformers.AutoModel` reads without d2llm.

## Scores

{scores}

## Data

{data}

## Licence

{licence}

## Citation

```bibtex
{citation}
```

## Where it comes from

{origin}
Settings of the run, as YAML:

```yaml
{settings}
```
"""
CITATION = """@inproceedings{liao2024d2llm,
  title     = {{D2LLM}: Decomposed and Distilled Large Language Models for Semantic Search},
  author    = {Liao, Zihan and Yu, Hang and Li, Jianguo and Wang, Jun and Zhang, Wei},
  booktitle = {Proceedings of the 62nd Annual Meeting of the Association for Computational Linguistics (Volume 1: Long Papers)},
  pages     = {14798--14814},
  year      = {2024},
  url       = {https://aclanthology.org/2024.acl-long.791}
}"""
# Of the files beside a checkpoint's weights those that hold its terms.
TERMS = re.compile("licen[cs]e|notice|copying|terms|use_policy", re.IGNORECASE)


def card(config: Config, run: Run, record: dict[str, Any], student: Student, folder: str) -> str:
    """The model card of a run's student, for the folder it is exported to."""
    import yaml

    about = student.description()
    method, variant, seed = run
    return CARD.format(
        title=declared(method).title,
        tag=licence(config, method, variant)[0],
        tags=", ".join(dict.fromkeys(("d2llm", method))),
        version=record.get("version", __version__),
        method=method,
        variant=variant,
        seed=seed,
        tier=config.tier,
        folder=folder,
        kind=about["kind"],
        pooling=constants(f"d2llm.models.poolings.{about['pooling']['name']}")["TITLE"],
        width=student.width,
        backbone=f"{STUDENT}/backbone",
        scorer=constants(f"d2llm.models.scorers.{about['scorer']['name']}")["TITLE"],
        scores=scores(Paths.of(config).scores_csv, method, variant, seed),
        data=data(Paths.of(config)),
        licence=licence(config, method, variant)[1],
        citation=CITATION,
        origin=origin(record),
        settings=yaml.safe_dump(
            json.loads(json.dumps(record["settings"])), sort_keys=False, allow_unicode=True
        ).rstrip(),
    )


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


def data(paths: Paths) -> str:
    """What it was trained on, out of the run's data card: counts and names, no text."""
    if not paths.card_json.exists():
        return "The run's data card is missing."
    about = read_json(paths.card_json)
    lines = ["| training set | mode | right pairs | queries |", "|---|---|---|---|"]
    lines += [f"| {row['dataset']} | {row['mode']} | {row['pairs']} | {row['queries']} |" for row in about["training"]]
    files = [f"`{Path(row['file']).name}`" for row in about.get("files", []) if "file" in row]
    lines += ["", f"Files read: {', '.join(files)}. Their texts have licences of their own."] if files else []
    return "\n".join(lines)


def licence(config: Config, method: str, variant: str) -> tuple[str, str]:
    """(the card's tag, a paragraph) on the terms of the base model, which hold for what was trained from it."""
    name, settings = base_of(config, method, variant)
    if not isinstance(settings, PretrainedSettings):
        text = f"The base model `{name}` was made by the suite itself, from generated text: Apache License 2.0."
        return "apache-2.0", text
    source = settings.source if settings.origin == "hub" else Path(settings.source).name
    files = ", ".join(f"`{file.name}`" for file in terms(config, method, variant))
    where = f"They are in this folder: {files}." if files else "Read them where it was published."
    text = f"The base model is `{source}`. Its terms hold for this model too. {where} The suite's own part is under the Apache License 2.0."
    return "other", text


def terms(config: Config, method: str, variant: str) -> list[Path]:
    """Files with the terms of the base model, where its folder has any."""
    from d2llm.models.base.pretrained import located

    name, settings = base_of(config, method, variant)
    if not isinstance(settings, PretrainedSettings) or settings.origin == "hub":
        return []
    try:
        folder, _ = located(settings, f"models.{name}.source", weights=False)
    except ConfigError:  # it has been removed since
        return []
    return sorted(file for file in folder.iterdir() if file.is_file() and TERMS.search(file.name))


def base_of(config: Config, method: str, variant: str) -> tuple[str, Any]:
    """Name and settings of the base model of a run."""
    name = declared(method).base(config.recipe(method, variant))
    return name, config.models.of(name)


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

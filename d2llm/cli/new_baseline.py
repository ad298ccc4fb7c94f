"""`d2llm new-baseline NAME`: what one more baseline needs, written from templates: its file, its rule, its config, its
test.

What is written works as it stands (mean pooling, cosine, in-batch contrast) and passes its own test; what makes it a
published method is left to its author, who finds the places marked. Existing files are never touched, but for the
stanza added to the rules.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from d2llm.config import checks
from d2llm.config.catalogue import row_names
from d2llm.config.registry import names
from d2llm.run.artifacts import write_text
from d2llm.run.code import ROOT
from d2llm.run.errors import ConfigError

TEMPLATES = Path(__file__).with_name("templates")
RULES = Path("workflow") / "rules" / "baselines.smk"
# Names that mean something else in results, configs or code.
TAKEN = {*row_names(), *checks.TAKEN}
# What differs between kinds of base model.
KINDS = {
    "decoder": {
        "formats": "The text as the checkpoint begins it",
        "before": "()",
        "after": "()",
        "learning_rate": "0.0001",
        "mini_rate": "0.002",
        "rates": "[0.001, 0.002, 0.004]",
        "tuning": 'TunedWeights(kind="lora", r=16, alpha=16.0)',
        "trained": '"lora" in name',
    },
    "encoder": {
        "formats": "[CLS] text [SEP]",
        "before": "(2,)",
        "after": "(3,)",
        "learning_rate": "0.00002",
        "mini_rate": "0.0003",
        "rates": "[0.0001, 0.0003, 0.001]",
        "tuning": "TunedWeights()",
        "trained": '"backbone" in name',
    },
}
STANZA = """

use rule train as train_$name with:
    wildcard_constraints:
        method="$name",
    priority: 10
"""
NEXT = """\
wrote  $files
added  rule train_$name to $rules

What next:
  1. python -m pytest tests/test_$name.py                      passes as it stands
  2. make baselines/$name.py the published method, and its test with it; docs/extending.md shows how
  3. python -m d2llm.cli config-docs --to docs/configuration.md   its keys get onto the page of all; a test compares
  4. snakemake --cores all --configfile config/$name.yaml --dry-run     what it adds to a run
  5. snakemake --cores all --configfile config/$name.yaml
  6. snakemake tune --cores all --configfile config/$name.yaml          as many trials as the others, by its grid
  7. tell its source and every deviation in docs/baselines.md"""


def new_baseline(name: str, title: str | None = None, kind: str = "decoder", root: Path | None = None) -> str:
    """Write the files below `root`, a clone of the repository, and return what to do next. Without one: the clone this
    is called in, else the code's own.

    Raises ConfigError for a name that is no name or is taken, for files that are there already, and outside a clone.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"new-baseline: {name!r} cannot name a baseline; use a letter, then letters, digits, _, lower case"
        )
    # An installed command's code lies in no clone: the one it is called in is meant.
    places = [root] if root else [Path.cwd(), ROOT]
    root = next((place for place in places if (place / RULES).is_file()), None)
    if root is None:
        raise ConfigError(f"new-baseline: no {RULES} in {places[0]}; run it in a clone of the repository")
    rules = root / RULES
    stanzas = rules.read_text(encoding="utf-8")
    targets = {
        root / "baselines" / f"{name}.py": "baseline.py.txt",
        root / "config" / f"{name}.yaml": "baseline.yaml.txt",
        root / "tests" / f"test_{name}.py": "test_baseline.py.txt",
    }
    there = [path.relative_to(root).as_posix() for path in targets if path.exists()]
    if name in TAKEN or name in names() or there or f"train_{name} " in stanzas:
        raise ConfigError(
            f"new-baseline: the name {name!r} is taken{f' ({there[0]} exists)' if there else ''}; choose another"
        )
    title = title or name
    values = {"name": name, "title": title, "kind": kind, "class_name": class_name(name), **KINDS[kind]}
    if any(character in title for character in '"\\\n$'):
        raise ConfigError(f"new-baseline: --title {title!r}: without quotes, backslashes, $ and line ends")
    for path, template in targets.items():
        write_text(path, Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(values))
    write_text(rules, stanzas.rstrip("\n") + "\n" + Template(STANZA).substitute(values))
    files = "\n       ".join(path.relative_to(root).as_posix() for path in targets)
    return Template(NEXT).substitute(values, files=files, rules=RULES)


def class_name(name: str) -> str:
    """A class's name of a method's.

    >>> class_name("mean_of_two")
    'MeanOfTwo'
    """
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))

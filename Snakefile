"""The suite's front door: `snakemake --cores all` makes every table and figure, the report and the notebook; `--configfile FILE` chooses another tier."""

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"
include: "workflow/rules/screen.smk"


report: "workflow/report/workflow.rst"


# Where Snakemake runs, whatever runs the others: what needs the internet, and what takes seconds.
localrules:
    all,
    tables,
    figures,
    download,
    table,
    figure,
    examples,
    report,
    notebook,
    tune,


rule all:
    input:
        PATHS.scores,
        PATHS.scores_csv,
        stages.tables(PATHS),
        stages.figures(CONFIG, PATHS),
        PATHS.report,
        PATHS.notebook,


rule tables:
    input:
        stages.tables(PATHS),


rule figures:
    input:
        stages.figures(CONFIG, PATHS),


include: "workflow/rules/data.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/baselines.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/runtime.smk"
include: "workflow/rules/corpus.smk"
include: "workflow/rules/report.smk"


require_training_rules()


onerror:
    print(killed(log), end="", file=sys.stderr)

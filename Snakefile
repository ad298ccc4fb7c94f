"""The suite's front door: `snakemake --cores all` makes every table and figure, the report and the notebook; `--configfile FILE` chooses another tier."""

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"


report: "workflow/report/workflow.rst"


rule all:
    input:
        PATHS.scores,
        PATHS.scores_csv,
        every_table(),
        every_figure(),
        PATHS.report,
        PATHS.notebook,


rule tables:
    input:
        every_table(),


rule figures:
    input:
        every_figure(),


rule report:
    input:
        PATHS.report,


rule notebook:
    input:
        PATHS.notebook,


rule search_notebook:
    input:
        PATHS.search_notebook,


include: "workflow/rules/data.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/baselines.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/runtime.smk"
include: "workflow/rules/report.smk"


require_training_rules()


onerror:
    print(killed(log), end="", file=sys.stderr)

"""The suite's front door: `snakemake --cores all` makes every table and figure; `--configfile FILE` chooses another tier."""

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"


rule all:
    input:
        PATHS.scores,
        PATHS.scores_csv,
        every_table(),
        every_figure(),


rule tables:
    input:
        every_table(),


rule figures:
    input:
        every_figure(),


include: "workflow/rules/data.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/baselines.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/runtime.smk"
include: "workflow/rules/report.smk"


require_training_rules()

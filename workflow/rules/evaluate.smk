"""Evaluation: every run and reference row by the same code on the same tasks, then all scores in one table."""


rule evaluate:
    input:
        reads("evaluate"),
    output:
        *writes("evaluate"),
    log:
        log_of("evaluate"),
    wildcard_constraints:
        method="(?!teacher/)[a-z0-9_]+",
    priority: 5
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("evaluate"),
    params:
        **job("evaluate"),
    shell:
        command("evaluate")


# The cross-encoder reads every pair: the longest evaluation starts first.
use rule evaluate as evaluate_teacher with:
    wildcard_constraints:
        method="teacher",
    priority: 70


# A reference row that nothing here trains. It comes before what takes hours, as a base model of a hub does.
rule published:
    input:
        reads("published"),
    output:
        *writes("published"),
    log:
        log_of("published"),
    priority: 96
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("published"),
    params:
        **job("published"),
    shell:
        command("published")


rule collect:
    input:
        reads("collect"),
    output:
        *writes("collect"),
    log:
        log_of("collect"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("collect"),
    params:
        **job("collect"),
    shell:
        command("collect")

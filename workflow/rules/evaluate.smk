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


# Where `evaluation.shards` divides the tasks; `evaluate` then brings the shares together. What a profile gives an
# evaluation is theirs.
rule evaluate_shard:
    input:
        reads("evaluate_shard"),
    output:
        *writes("evaluate_shard"),
    log:
        log_of("evaluate_shard"),
    wildcard_constraints:
        method="[a-z0-9_]+",
    priority: 6
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("evaluate_shard"),
    params:
        **job("evaluate_shard"),
    shell:
        command("evaluate_shard")


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

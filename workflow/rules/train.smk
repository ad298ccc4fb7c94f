"""Training a run: one rule for every method, which each baseline inherits (baselines.smk). This one itself is D2LLM's.

A run's log is no output: Snakemake removes what it knows of a failed job, and the log says why it failed.
"""


# Before the trainings that start from it, and in the baselines' place beside the teacher.
rule pretext:
    input:
        reads("pretext"),
    output:
        *writes("pretext"),
    log:
        log_of("pretext"),
    priority: 25
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("pretext"),
    params:
        **job("pretext"),
    shell:
        command("pretext")


rule train:
    input:
        reads("train"),
    output:
        *writes("train"),
    log:
        log_of("train"),
    wildcard_constraints:
        method="d2llm",
    priority: 75
    conda:
        ENVIRONMENT
    threads: CONFIG.threads * CONFIG.training.processes
    resources:
        **resources("train"),
    params:
        **job("train"),
    shell:
        command("train")

"""The teacher: a base decoder tuned to answer yes or no, and its judgement of the training pairs, stored once for every
run.

Its report and log are no outputs: Snakemake removes what it knows of a failed job, and they say why it failed.
"""


rule teacher:
    input:
        reads("teacher"),
    output:
        *writes("teacher"),
    log:
        log_of("teacher"),
    priority: 85
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("teacher"),
    params:
        **job("teacher"),
    shell:
        command("teacher")


rule teacher_scores:
    input:
        reads("teacher_scores"),
    output:
        *writes("teacher_scores"),
    log:
        log_of("teacher_scores"),
    priority: 80
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("teacher_scores"),
    params:
        **job("teacher_scores"),
    shell:
        command("teacher_scores")

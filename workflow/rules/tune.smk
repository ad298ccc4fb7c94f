"""Tuning: every trial of every method trained like any run, evaluated on development data, compared. Not part
of `all`.
"""


rule evaluate_dev:
    input:
        reads("evaluate_dev"),
    output:
        *writes("evaluate_dev"),
    log:
        log_of("evaluate_dev"),
    priority: 5
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("evaluate_dev"),
    params:
        **job("evaluate_dev"),
    shell:
        command("evaluate_dev")


rule tune:
    input:
        reads("tune"),
    output:
        *writes("tune"),
    log:
        log_of("tune"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("tune"),
    params:
        **job("tune"),
    shell:
        command("tune")

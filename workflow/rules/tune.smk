"""Tuning: every trial of every method trained like any run, evaluated on development data, compared. Not part of `all`."""


rule evaluate_dev:
    input:
        evaluation_inputs,
    output:
        PATHS.development("{method}", "{variant}", "{seed}") / "scores.parquet",
        PATHS.development("{method}", "{variant}", "{seed}") / PROVENANCE,
    log:
        PATHS.logs("evaluate_dev", "{method}", "{variant}", "seed{seed}"),
    priority: 5
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("evaluate-dev"),
        code=code_of("evaluate-dev"),
        versions=versions_of("evaluate-dev"),
    shell:
        "python -m d2llm.cli evaluate-dev --method {wildcards.method} --variant {wildcards.variant} --seed {wildcards.seed}"
        " --config {params.config} --log {log:q} --inputs {input:q}"


rule tune:
    input:
        scores=tried(PATHS.development, "scores.parquet"),
        summaries=tried(PATHS.run, "summary.json"),
    output:
        PATHS.trials,
        PATHS.trials_md,
        PATHS.chosen,
        beside(PATHS.trials),
    log:
        PATHS.logs("tune"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=1000,
    params:
        config=str(PATHS.config),
        settings=settings_of("tune"),
        code=code_of("tune"),
        versions=versions_of("tune"),
    shell:
        "python -m d2llm.cli tune --config {params.config} --log {log:q} --inputs {input:q}"

"""Training a run: one rule for every method, which each baseline inherits (baselines.smk). This one itself is D2LLM's."""


rule train:
    input:
        training_inputs,
    output:
        # The log is not named here: Snakemake removes what it knows of a failed job, and the log says why it failed.
        directory(PATHS.run("{method}", "{variant}", "{seed}") / "model"),
        PATHS.run("{method}", "{variant}", "{seed}") / "summary.json",
        PATHS.run("{method}", "{variant}", "{seed}") / PROVENANCE,
    log:
        PATHS.logs("train", "{method}", "{variant}", "seed{seed}"),
    wildcard_constraints:
        method="d2llm",
    priority: 75
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("train"),
        code=code_of("train"),
    shell:
        "python -m d2llm.cli train --method {wildcards.method} --variant {wildcards.variant} --seed {wildcards.seed}"
        " --config {params.config} --log {log:q} --inputs {input:q}"

"""Training a run: one rule for every method, which each baseline inherits (baselines.smk). This one itself is D2LLM's."""


# Before the trainings that start from it, and in the baselines' place beside the teacher.
rule pretext:
    input:
        pretext_inputs,
    output:
        directory(PATHS.pretext("{method}", "{variant}")),
    log:
        PATHS.logs("pretext", "{method}", "{variant}"),
    priority: 25
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("pretext"),
        code=code_of("pretext"),
        versions=versions_of("pretext"),
    shell:
        "python -m d2llm.cli pretext --method {wildcards.method} --variant {wildcards.variant}"
        " --config {params.config} --log {log:q} --inputs {input:q}"


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
    threads: CONFIG.threads * CONFIG.training.processes
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("train"),
        code=code_of("train"),
        versions=versions_of("train"),
        python=launcher(),
    shell:
        "{params.python} -m d2llm.cli train --method {wildcards.method} --variant {wildcards.variant} --seed {wildcards.seed}"
        " --config {params.config} --log {log:q} --inputs {input:q}"

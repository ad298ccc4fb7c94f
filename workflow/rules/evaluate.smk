"""Evaluation: every run and reference row by the same code on the same tasks, then all scores in one table."""


rule evaluate:
    input:
        evaluation_inputs,
    output:
        PATHS.evaluation("{method}", "{variant}", "{seed}") / "scores.parquet",
        PATHS.evaluation("{method}", "{variant}", "{seed}") / "predictions.parquet",
        PATHS.evaluation("{method}", "{variant}", "{seed}") / PROVENANCE,
    log:
        PATHS.logs("evaluate", "{method}", "{variant}", "seed{seed}"),
    wildcard_constraints:
        method="(?!teacher/)[a-z0-9_]+",
    priority: 5
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("evaluate"),
        code=code_of("evaluate"),
        versions=versions_of("evaluate"),
    shell:
        "python -m d2llm.cli evaluate --method {wildcards.method} --variant {wildcards.variant} --seed {wildcards.seed}"
        " --config {params.config} --log {log:q} --inputs {input:q}"


# The cross-encoder reads every pair: the longest evaluation starts first.
use rule evaluate as evaluate_teacher with:
    wildcard_constraints:
        method="teacher",
    priority: 70


rule collect:
    input:
        evaluated("scores.parquet"),
        evaluated("predictions.parquet"),
        # Beside each summary lies the log, which is nobody's output (train.smk).
        trained("summary.json"),
        trained(PROVENANCE),
        told_with_scores(),
    output:
        PATHS.scores,
        PATHS.scores_csv,
        PATHS.predictions,
        PATHS.trainings,
        PATHS.curves,
        PATHS.about,
        beside(PATHS.scores),
    log:
        PATHS.logs("collect"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("collect"),
        code=code_of("collect"),
        versions=versions_of("collect"),
    shell:
        "python -m d2llm.cli collect --config {params.config} --log {log:q} --inputs {input:q}"

"""The teacher: a base decoder tuned to answer yes or no, and its judgement of the training pairs, stored once for every run."""


rule teacher:
    input:
        PATHS.teacher_train,
        PATHS.teacher_dev,
        PATHS.base("teacher"),
    output:
        # Its report and log are not named here: Snakemake removes what it knows of a failed job, and they say why it failed.
        directory(PATHS.teacher("{teacher}") / "model"),
        PATHS.teacher("{teacher}") / PROVENANCE,
    log:
        PATHS.logs("{teacher}"),
    priority: 85
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("teacher"),
        code=code_of("teacher"),
        versions=versions_of("teacher"),
    shell:
        "python -m d2llm.cli teacher --teacher {wildcards.teacher} --config {params.config} --log {log:q} --inputs {input:q}"


rule teacher_scores:
    input:
        PATHS.pairs,
        PATHS.teacher("{teacher}") / "model",
    output:
        PATHS.teacher_scores("{shard}", "{shards}", "{teacher}"),
        beside(PATHS.teacher_scores("{shard}", "{shards}", "{teacher}")),
    log:
        PATHS.logs("teacher_scores", "{teacher}", "{shard}-of-{shards}"),
    priority: 80
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("teacher-scores"),
        code=code_of("teacher-scores"),
        versions=versions_of("teacher-scores"),
    shell:
        "python -m d2llm.cli teacher-scores --teacher {wildcards.teacher} --shard {wildcards.shard} --shards {wildcards.shards}"
        " --config {params.config} --log {log:q} --inputs {input:q}"

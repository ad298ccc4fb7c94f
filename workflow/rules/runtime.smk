"""Run times: measured by one job for all methods, which has the machine to itself."""


# All cores, so that nothing runs beside it; it computes with the config's number of threads like every other job.
rule runtime:
    input:
        PATHS.tasks,
        [PATHS.run(method, "base", CONFIG.seeds[0]) / "model" for method in CONFIG.methods],
        [PATHS.teacher_model, PATHS.base("encoder")] if "teacher" in CONFIG.references else [],
    output:
        PATHS.runtime,
        beside(PATHS.runtime),
    log:
        PATHS.logs("runtime"),
    conda:
        ENVIRONMENT
    threads: workflow.resource_settings.cores or CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("runtime"),
        code=code_of("runtime"),
        versions=versions_of("runtime"),
    shell:
        "python -m d2llm.cli runtime --config {params.config} --log {log:q} --inputs {input:q}"

"""Tables: rendered from the collected scores alone, each by a job of its own."""


rule table:
    input:
        PATHS.scores,
    output:
        PATHS.table("{name}", "csv"),
        PATHS.table("{name}", "md"),
        PATHS.table("{name}", "tex"),
        beside(PATHS.table("{name}", "csv")),
    log:
        PATHS.logs("table", "{name}"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=1000,
    params:
        config=str(PATHS.config),
        settings=settings_of("table"),
        code=code_of("table"),
    shell:
        "python -m d2llm.cli table --name {wildcards.name} --config {params.config} --log {log:q} --inputs {input:q}"

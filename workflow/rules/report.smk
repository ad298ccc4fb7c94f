"""Comparisons, tables and figures: from the collected scores and predictions alone, each table and figure by a job of its own."""


rule comparison:
    input:
        PATHS.scores,
        PATHS.predictions,
    output:
        PATHS.comparisons,
        beside(PATHS.comparisons),
    log:
        PATHS.logs("comparison"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=2000,
    params:
        config=str(PATHS.config),
        settings=settings_of("comparison"),
        code=code_of("comparison"),
    shell:
        "python -m d2llm.cli comparison --config {params.config} --log {log:q} --inputs {input:q}"


rule table:
    input:
        rendered_from(TABLES),
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


rule figure:
    input:
        rendered_from(FIGURES, STYLE_SHEET),
    output:
        PATHS.figure("{name}", "pdf"),
        PATHS.figure("{name}", "svg"),
        PATHS.figure("{name}", "png"),
        beside(PATHS.figure("{name}", "svg")),
    log:
        PATHS.logs("figure", "{name}"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=1000,
    params:
        config=str(PATHS.config),
        settings=settings_of("figure"),
        code=code_of("figure"),
    shell:
        "python -m d2llm.cli figure --name {wildcards.name} --config {params.config} --log {log:q} --inputs {input:q}"

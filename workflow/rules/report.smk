"""Comparisons, tables and figures: from the collected scores and predictions alone, each table and figure by a job of its own.

Then the page and the notebook that show them.
"""


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
        versions=versions_of("comparison"),
    shell:
        "python -m d2llm.cli comparison --config {params.config} --log {log:q} --inputs {input:q}"


rule ablations:
    input:
        PATHS.scores,
        PATHS.predictions,
    output:
        PATHS.ablations,
        beside(PATHS.ablations),
    log:
        PATHS.logs("ablations"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=3000,
    params:
        config=str(PATHS.config),
        settings=settings_of("ablations"),
        code=code_of("ablations"),
        versions=versions_of("ablations"),
    shell:
        "python -m d2llm.cli ablations --config {params.config} --log {log:q} --inputs {input:q}"


rule table:
    input:
        rendered_from(TABLES),
    output:
        PATHS.table("{name}", "csv"),
        PATHS.table("{name}", "md"),
        PATHS.table("{name}", "tex"),
        report(
            PATHS.table("{name}", "html"),
            caption="../report/table.rst",
            category=section_of("table"),
            labels=title_of("table"),
        ),
        beside(PATHS.table("{name}", "csv")),
    log:
        PATHS.logs("table", "{name}"),
    wildcard_constraints:
        name="|".join(TABLES),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=1000,
    params:
        config=str(PATHS.config),
        settings=settings_of("table"),
        code=code_of("table"),
        versions=versions_of("table"),
    shell:
        "python -m d2llm.cli table --name {wildcards.name} --config {params.config} --log {log:q} --inputs {input:q}"


rule figure:
    input:
        rendered_from(FIGURES, STYLE_SHEET),
    output:
        PATHS.figure("{name}", "pdf"),
        report(
            PATHS.figure("{name}", "svg"),
            caption="../report/figure.rst",
            category=section_of("figure"),
            labels=title_of("figure"),
        ),
        PATHS.figure("{name}", "png"),
        beside(PATHS.figure("{name}", "svg")),
    log:
        PATHS.logs("figure", "{name}"),
    wildcard_constraints:
        name="|".join(FIGURES),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=2000,
    params:
        config=str(PATHS.config),
        settings=settings_of("figure"),
        code=code_of("figure"),
        versions=versions_of("figure"),
    shell:
        "python -m d2llm.cli figure --name {wildcards.name} --config {params.config} --log {log:q} --inputs {input:q}"


rule examples:
    input:
        PATHS.predictions,
        PATHS.tasks,
    output:
        PATHS.examples,
        beside(PATHS.examples),
    log:
        PATHS.logs("examples"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=3000,
    params:
        config=str(PATHS.config),
        settings=settings_of("examples"),
        code=code_of("examples"),
        versions=versions_of("examples"),
    shell:
        "python -m d2llm.cli examples --config {params.config} --log {log:q} --inputs {input:q}"


rule html_report:
    input:
        TEMPLATES,
        PATHS.scores_csv,
        PATHS.trainings,
        PATHS.about,
        PATHS.comparisons,
        PATHS.examples,
        every_table(),
        every_figure(),
        rendered_records(),
    output:
        report(PATHS.report, caption="../report/report.rst", category="The whole run", labels={"title": "One page"}),
        beside(PATHS.report),
    log:
        PATHS.logs("report"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=1000,
    params:
        config=str(PATHS.config),
        settings=settings_of("report"),
        code=code_of("report"),
        versions=versions_of("report"),
        tuning=tuning_record(),
    shell:
        "python -m d2llm.cli report --config {params.config} --log {log:q} --inputs {input:q}"


rule executed_notebook:
    input:
        NOTEBOOK,
        PATHS.scores_csv,
        PATHS.comparisons,
        PATHS.ablations,
        PATHS.curves,
    output:
        PATHS.notebook,
        beside(PATHS.notebook),
    log:
        PATHS.logs("notebook"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=1000,
    params:
        config=str(PATHS.config),
        settings=settings_of("notebook"),
        code=code_of("notebook"),
        versions=versions_of("notebook"),
    shell:
        "python -m d2llm.cli notebook --config {params.config} --log {log:q} --inputs {input:q}"


# Trained students at work: D2LLM's of the first seed, and a baseline's to compare with.
rule executed_search_notebook:
    input:
        SEARCH_NOTEBOOK,
        PATHS.tasks,
        [PATHS.run(method, "base", CONFIG.seeds[0]) / "summary.json" for method in CONFIG.methods],
    output:
        PATHS.search_notebook,
        beside(PATHS.search_notebook),
    log:
        PATHS.logs("search-notebook"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("search-notebook"),
        code=code_of("search-notebook"),
        versions=versions_of("search-notebook"),
    shell:
        "python -m d2llm.cli search-notebook --config {params.config} --log {log:q} --inputs {input:q}"

"""Comparisons, tables and figures: from the collected scores and predictions alone, each table and figure by a job of
its own.

Then the page and the notebooks that show them.
"""


rule comparison:
    input:
        reads("comparison"),
    output:
        *writes("comparison"),
    log:
        log_of("comparison"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("comparison"),
    params:
        **job("comparison"),
    shell:
        command("comparison")


rule ablations:
    input:
        reads("ablations"),
    output:
        *writes("ablations"),
    log:
        log_of("ablations"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("ablations"),
    params:
        **job("ablations"),
    shell:
        command("ablations")


rule table:
    input:
        reads("table"),
    output:
        *shown("table", "html"),
    log:
        log_of("table"),
    wildcard_constraints:
        name="|".join(entries("table")),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("table"),
    params:
        **job("table"),
    shell:
        command("table")


rule figure:
    input:
        reads("figure"),
    output:
        *shown("figure", "svg"),
    log:
        log_of("figure"),
    wildcard_constraints:
        name="|".join(entries("figure")),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("figure"),
    params:
        **job("figure"),
    shell:
        command("figure")


rule examples:
    input:
        reads("examples"),
    output:
        *writes("examples"),
    log:
        log_of("examples"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("examples"),
    params:
        **job("examples"),
    shell:
        command("examples")


rule report:
    input:
        reads("report"),
    output:
        report(PATHS.report, caption="../report/report.rst", category="The whole run", labels={"title": "One page"}),
        writes("report")[1:],
    log:
        log_of("report"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("report"),
    params:
        **job("report"),
        tuning=tuning_record(),
    shell:
        command("report")


rule notebook:
    input:
        reads("notebook"),
    output:
        *writes("notebook"),
    log:
        log_of("notebook"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("notebook"),
    params:
        **job("notebook"),
    shell:
        command("notebook")


rule search_notebook:
    input:
        reads("search_notebook"),
    output:
        *writes("search_notebook"),
    log:
        log_of("search_notebook"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("search_notebook"),
    params:
        **job("search_notebook"),
    shell:
        command("search_notebook")

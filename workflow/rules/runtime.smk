"""Run times: measured by one job for all methods, which has the machine to itself."""


# All cores, so that nothing runs beside it; it computes with the config's number of threads like every other job.
rule runtime:
    input:
        reads("runtime"),
    output:
        *writes("runtime"),
    log:
        log_of("runtime"),
    conda:
        ENVIRONMENT
    threads: workflow.resource_settings.cores or CONFIG.threads
    resources:
        **resources("runtime"),
    params:
        **job("runtime"),
    shell:
        command("runtime")

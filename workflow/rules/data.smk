"""Data, base models, hard negatives.

Priorities put the longest chain first: texts, decoder, teacher, its scores, D2LLM. Everything else fits beside it.
"""


# The only rule besides `base` that uses the network, and only for what the config names.
rule download:
    input:
        reads("download"),
    output:
        *writes("download"),
    log:
        log_of("download"),
    priority: 105
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("download"),
    params:
        **job("download"),
    shell:
        command("download")


rule texts:
    input:
        reads("texts"),
    output:
        *writes("texts"),
    log:
        log_of("texts"),
    priority: 100
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("texts"),
    params:
        **job("texts"),
    shell:
        command("texts")


rule data:
    input:
        reads("data"),
    output:
        *writes("data"),
    log:
        log_of("data"),
    priority: 94
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("data"),
    params:
        **job("data"),
    shell:
        command("data")


rule base:
    input:
        reads("base"),
    output:
        *writes("base"),
    log:
        log_of("base"),
    wildcard_constraints:
        model="decoder",
    priority: base_priority(95, "decoder")
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("base"),
    params:
        **job("base"),
    shell:
        command("base")


use rule base as base_teacher with:
    wildcard_constraints:
        model="teacher",
    priority: base_priority(90, "teacher")


use rule base as base_other with:
    wildcard_constraints:
        model="|".join(map(re.escape, CONFIG.models.others)) or "(?!)",
    priority: base_priority(1, *CONFIG.models.others)


# It mines the dense negatives, so the teacher's scores wait for it.
use rule base as base_encoder with:
    wildcard_constraints:
        model="encoder",
    priority: base_priority(65, "encoder")


rule vectors:
    input:
        reads("vectors"),
    output:
        *writes("vectors"),
    log:
        log_of("vectors"),
    priority: 62
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("vectors"),
    params:
        **job("vectors"),
    shell:
        command("vectors")


rule negatives:
    input:
        reads("negatives"),
    output:
        *writes("negatives"),
    log:
        log_of("negatives"),
    priority: 60
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("negatives"),
    params:
        **job("negatives"),
    shell:
        command("negatives")

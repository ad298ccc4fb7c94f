"""Data, base models, hard negatives.

Priorities put the longest chain first: texts, decoder, teacher, its scores, D2LLM. Everything else fits beside it.
"""


# The only rule besides `base` that uses the network, and only for what the config names.
rule download:
    output:
        directory(PATHS.download("{download}")),
    log:
        PATHS.logs("download", "{download}"),
    priority: 105
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("download"),
        code=code_of("download"),
        versions=versions_of("download"),
    shell:
        "python -m d2llm.cli download --download {wildcards.download} --config {params.config} --log {log:q}"


rule texts:
    input:
        files(),
    output:
        PATHS.pretraining,
        beside(PATHS.pretraining),
    log:
        PATHS.logs("texts"),
    priority: 100
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=2000,
    params:
        config=str(PATHS.config),
        settings=settings_of("texts"),
        code=code_of("texts"),
        versions=versions_of("texts"),
    shell:
        "python -m d2llm.cli texts --config {params.config} --log {log:q} --inputs {input:q}"


rule data:
    input:
        PATHS.pretraining,
        files(),
    output:
        PATHS.train_pairs,
        PATHS.pool,
        PATHS.teacher_train,
        PATHS.teacher_dev,
        PATHS.card_json,
        PATHS.card_md,
        PATHS.leaks,
        directory(PATHS.tasks),
        PATHS.data / PROVENANCE,
    log:
        PATHS.logs("data"),
    priority: 94
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("data"),
        code=code_of("data"),
        versions=versions_of("data"),
    shell:
        "python -m d2llm.cli data --config {params.config} --log {log:q} --inputs {input:q}"


rule base:
    input:
        base_inputs,
    output:
        directory(PATHS.base("{model}")),
    log:
        PATHS.logs("base", "{model}"),
    wildcard_constraints:
        model="decoder",
    priority: base_priority(95, "decoder")
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("base"),
        code=code_of("base"),
        versions=versions_of("base"),
    shell:
        "python -m d2llm.cli base --model {wildcards.model} --config {params.config} --log {log:q} --inputs {input:q}"


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
        PATHS.train_pairs,
        PATHS.pool,
        PATHS.base("encoder"),
    output:
        PATHS.vectors("{shard}", "{shards}"),
        beside(PATHS.vectors("{shard}", "{shards}")),
    log:
        PATHS.logs("vectors", "{shard}-of-{shards}"),
    priority: 62
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("vectors"),
        code=code_of("vectors"),
        versions=versions_of("vectors"),
    shell:
        "python -m d2llm.cli vectors --shard {wildcards.shard} --shards {wildcards.shards} --config {params.config} --log {log:q}"
        " --inputs {input:q}"


rule negatives:
    input:
        PATHS.train_pairs,
        PATHS.pool,
        PATHS.base("encoder"),
        vector_shards(),
    output:
        PATHS.pairs,
        PATHS.negatives_report,
        PATHS.pairs.with_name(PROVENANCE),
    log:
        PATHS.logs("negatives"),
    priority: 60
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
    params:
        config=str(PATHS.config),
        settings=settings_of("negatives"),
        code=code_of("negatives"),
        versions=versions_of("negatives"),
    shell:
        "python -m d2llm.cli negatives --config {params.config} --log {log:q} --inputs {input:q}"

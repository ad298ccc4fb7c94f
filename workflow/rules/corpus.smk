"""A collection of one's own, embedded and indexed by shards, then brought together (section `corpus`). Not part of `all`."""


rule corpus_shard:
    input:
        reads("corpus_shard"),
    output:
        *writes("corpus_shard"),
    log:
        log_of("corpus_shard"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("corpus_shard"),
    params:
        **job("corpus_shard"),
    shell:
        command("corpus_shard")


rule corpus:
    input:
        reads("corpus"),
    output:
        *writes("corpus"),
    log:
        log_of("corpus"),
    conda:
        ENVIRONMENT
    threads: CONFIG.threads
    resources:
        **resources("corpus"),
    params:
        **job("corpus"),
    shell:
        command("corpus")

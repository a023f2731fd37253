# Times, with nothing beside them: the job takes every core and every GPU, and uses one of them. The other stages
# have a higher priority, so that it does not keep them waiting. A model of `latency.random` is its spec.


rule latency:
    input:
        model=lambda wildcards: models.timed_model(config, wildcards.model),
        adapter=lambda wildcards: models.adapter(config, wildcards.model, "latency"),
        draft=lambda wildcards: models.draft_card(config, wildcards.model, "latency"),
    output:
        csv=PATHS.latency_part,
    log:
        f"logs/{STUDY}/latency/{{model}}.log",
    conda:
        "../envs/lkv.yaml"
    threads: workflow.cores
    resources:
        gpu=GPUS,
    params:
        version=versions.VERSIONS["latency"],
        options=lambda wildcards: commands.latency_flags(config, wildcards.model),
        methods=lambda wildcards: models.methods(config, wildcards.model, "latency"),
        parts=lambda wildcards, input: commands.method_flags(
            config, wildcards.model, input.adapter, input.draft, "latency"
        ),
        study=STUDY,
        run=commands.flags(config, "device", "dtype"),
    shell:
        "python -m lkv latency {params.options:q} --methods {params.methods:q}"
        " {params.parts:q} --study {params.study:q} --out {output.csv:q} {params.run:q} --log {log:q}"

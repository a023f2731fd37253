# Times, with nothing beside them: the job takes every core and every GPU, and uses one of them. The other stages
# have a higher priority, so that it does not keep them waiting.


rule latency:
    input:
        model=PATHS.model,
        adapter=lambda wildcards: study.adapter(config, wildcards.model, "latency"),
        draft=lambda wildcards: study.draft_card(config, wildcards.model, "latency"),
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
        version=study.VERSIONS["latency"],
        model=subpath(input.model, parent=True),
        options=study.flags(
            config["latency"], "lengths", "budgets", "repeats", "warmups"
        ),
        methods=lambda wildcards: study.methods(config, wildcards.model, "latency"),
        parts=lambda wildcards, input: study.parts(
            config, wildcards.model, input.adapter, input.draft, "latency"
        ),
        study=STUDY,
        run=study.flags(config, "device", "dtype"),
    shell:
        "python -m lkv latency --model {params.model} {params.options} --methods {params.methods}"
        " {params.parts} --study {params.study} --out {output.csv} {params.run} --log {log}"

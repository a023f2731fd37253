# Times, with nothing beside them: the job takes every core and every GPU, and uses one of them. The other stages
# have a higher priority, so that it does not keep them waiting.


rule latency:
    input:
        model=PATHS.model,
        adapter=PATHS.adapter,
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
        adapter=subpath(input.adapter, parent=True),
        options=study.flags(
            config["latency"], "lengths", "budgets", "methods", "repeats", "warmups"
        ),
        recipe=study.flags(config["lookaheadkv"], "pool", "kernel", "order"),
        study=STUDY,
        run=study.flags(config, "device", "dtype"),
    shell:
        "python -m lkv latency --model {params.model} --adapter {params.adapter} {params.options}"
        " {params.recipe} --study {params.study} --out {output.csv} {params.run} --log {log}"

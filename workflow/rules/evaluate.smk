# One task at one length: every method and budget from one prefill a sample. The journal is no output, because
# Snakemake deletes outputs before a job starts again: it lets a killed job go on, and a new budget cost only itself.


rule evaluate:
    input:
        model=PATHS.model,
        data=PATHS.ruler,
        adapter=PATHS.adapter,
    output:
        samples=PATHS.samples,
    log:
        f"logs/{STUDY}/evaluate/{{model}}/{{task}}@{{length}}.log",
    priority: 1
    conda:
        "../envs/lkv.yaml"
    threads: THREADS
    resources:
        gpu=1,
    params:
        version=study.VERSIONS["evaluate"],
        model=subpath(input.model, parent=True),
        adapter=subpath(input.adapter, parent=True),
        journal=PATHS.journal,
        cells=study.flags(config, "methods", "budgets"),
        recipe=study.flags(config["lookaheadkv"], "pool", "kernel", "order"),
        labels=study.flags(config, "study", "protocol"),
        seed=config["seed"],
        run=study.flags(config, "device", "dtype"),
    shell:
        "python -m lkv evaluate --model {params.model} --data {input.data} --adapter {params.adapter}"
        " {params.cells} {params.recipe} {params.labels:q} --seed {params.seed}"
        " --journal {params.journal} --out {output.samples} {params.run} --log {log}"

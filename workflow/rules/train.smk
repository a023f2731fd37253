# LookaheadKV's modules, arm by arm. lookahead.json, written last, stands for the adapter's folder.


rule train:
    input:
        model=PATHS.model,
        data=lambda wildcards: PATHS.train_data.format(
            model=wildcards.model, arm=arms.same_data(config, wildcards.arm)
        ),
    output:
        adapter=PATHS.adapter,
        csv=PATHS.training_part,
    log:
        f"logs/{STUDY}/train/{{model}}/{{arm}}.log",
    priority: 1
    conda:
        "../envs/lkv.yaml"
    threads: lambda wildcards: THREADS * WHOLE * SPREAD[wildcards.arm]
    resources:
        gpu=lambda wildcards: WHOLE * SPREAD[wildcards.arm],
        # No parameter: how many do the work changes nothing about what comes out.
        processes=lambda wildcards: SPREAD[wildcards.arm],
    params:
        version=versions.VERSIONS["train"],
        model=subpath(input.model, parent=True),
        folder=subpath(output.adapter, parent=True),
        recipe=lambda wildcards: commands.train_flags(
            config, wildcards.model, wildcards.arm
        ),
        seed=lambda wildcards: arms.train_seed(config, wildcards.arm),
        run=commands.flags(config, "device", "dtype"),
    shell:
        "python -m lkv train --model {params.model:q} --data {input.data:q} {params.recipe:q}"
        " --seed {params.seed:q}"
        " --out {params.folder:q} --csv {output.csv:q} {params.run:q}"
        " --processes {resources.processes:q} --log {log:q}"

# LookaheadKV's modules. lookahead.json, written last, stands for the adapter's folder.


rule train:
    input:
        model=PATHS.model,
        data=PATHS.train_data,
    output:
        adapter=PATHS.adapter,
        csv=PATHS.training_part,
    log:
        f"logs/{STUDY}/train/{{model}}.log",
    priority: 1
    conda:
        "../envs/lkv.yaml"
    threads: THREADS
    resources:
        gpu=1,
    params:
        version=study.VERSIONS["train"],
        model=subpath(input.model, parent=True),
        folder=subpath(output.adapter, parent=True),
        recipe=lambda wildcards: study.flags(
            config["train"],
            "arm",
            "steps",
            "batch",
            "warmup_steps",
            "held_out",
        ),
        rate=lambda wildcards: study.learning_rate(config, wildcards.model),
        seed=config["seed"],
        run=study.flags(config, "device", "dtype"),
    shell:
        "python -m lkv train --model {params.model} --data {input.data} {params.recipe}"
        " --learning-rate {params.rate} --seed {params.seed}"
        " --out {params.folder} --csv {output.csv} {params.run} --log {log}"

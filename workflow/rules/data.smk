# Prompts, frozen as JSONL: for training, with the model's own answers, and RULER's, sized by its tokenizer.


rule data_train:
    input:
        model=PATHS.model,
    output:
        data=PATHS.train_data,
        facts=PATHS.train_facts,
    log:
        f"logs/{STUDY}/data_train/{{model}}.log",
    priority: 1
    conda:
        "../envs/lkv.yaml"
    threads: THREADS
    resources:
        gpu=1,
    params:
        version=study.VERSIONS["data"],
        model=subpath(input.model, parent=True),
        options=study.flags(
            config["train"], "samples", "lengths", "response_tokens", "mixture"
        ),
        seed=config["seed"],
        run=study.flags(config, "device", "dtype"),
    shell:
        "python -m lkv data train --model {params.model} --out {output.data} {params.options}"
        " --seed {params.seed} {params.run} --log {log}"


rule data_ruler:
    input:
        model=PATHS.model,
        sources=lambda wildcards: study.ruler_files(config["ruler"], wildcards.task),
    output:
        data=PATHS.ruler,
        facts=PATHS.ruler_facts,
    log:
        f"logs/{STUDY}/data_ruler/{{model}}/{{task}}@{{length}}.log",
    priority: 1
    conda:
        "../envs/lkv.yaml"
    params:
        version=study.VERSIONS["data"],
        model=subpath(input.model, parent=True),
        options=lambda wildcards: study.flags(
            config["ruler"],
            "samples",
            "max_new_tokens",
            *study.ruler_sources(wildcards.task),
        ),
        seed=config["seed"],
    shell:
        "python -m lkv data ruler --model {params.model} --task {wildcards.task} --length {wildcards.length}"
        " {params.options:q} --seed {params.seed} --out {output.data} --log {log}"

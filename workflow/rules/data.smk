# Prompts, frozen as JSONL: for training, with the model's own answers, and the benchmarks', one file a task and
# length. A benchmark's prompts depend on the model: its tokenizer sizes and cuts them.


rule data_train:
    input:
        model=PATHS.model,
    output:
        data=PATHS.train_data,
        facts=PATHS.train_facts,
    log:
        f"logs/{STUDY}/data_train/{{model}}/{{arm}}.log",
    priority: 1
    conda:
        "../envs/lkv.yaml"
    threads: lambda wildcards: THREADS * WHOLE * SPREAD[wildcards.arm]
    resources:
        gpu=lambda wildcards: WHOLE * SPREAD[wildcards.arm],
        # No parameter: how many do the work changes nothing about what comes out.
        processes=lambda wildcards: SPREAD[wildcards.arm],
    params:
        version=versions.VERSIONS["data"],
        model=subpath(input.model, parent=True),
        options=lambda wildcards: commands.prompt_flags(config, wildcards.arm),
        seed=config["seed"],
        run=commands.flags(config, "device", "dtype"),
    shell:
        "python -m lkv data train --model {params.model:q} --out {output.data:q} {params.options:q}"
        " --seed {params.seed:q} {params.run:q}"
        " --processes {resources.processes:q} --log {log:q}"


rule data_ruler:
    input:
        model=PATHS.model,
        sources=lambda wildcards: commands.ruler_files(config["ruler"], wildcards.task),
    output:
        data=PATHS.data.replace("{benchmark}", "ruler"),
        facts=PATHS.data_facts.replace("{benchmark}", "ruler"),
    log:
        f"logs/{STUDY}/data_ruler/{{model}}/{{task}}@{{length}}.log",
    wildcard_constraints:
        task=jobs.any_of(jobs.tasks(config, "ruler")),
    priority: 1
    conda:
        "../envs/lkv.yaml"
    params:
        version=versions.VERSIONS["data"],
        model=subpath(input.model, parent=True),
        options=lambda wildcards: commands.ruler_flags(config["ruler"], wildcards.task),
        protocol=commands.protocol_flags(config),
        seed=config["seed"],
    shell:
        "python -m lkv data ruler --model {params.model:q} --task {wildcards.task:q} --length {wildcards.length:q}"
        " {params.options:q} {params.protocol:q} --seed {params.seed:q} --out {output.data:q} --log {log:q}"


# {benchmark} is longbench or longproc: their records are given, not made, and have lengths of their own.
rule data_given:
    input:
        model=PATHS.model,
    output:
        data=PATHS.data.replace("{length}", "0"),
        facts=PATHS.data_facts.replace("{length}", "0"),
    log:
        f"logs/{STUDY}/data_{{benchmark}}/{{model}}/{{task}}.log",
    wildcard_constraints:
        benchmark="longbench|longproc",
    priority: 1
    conda:
        "../envs/lkv.yaml"
    params:
        version=versions.VERSIONS["data"],
        model=subpath(input.model, parent=True),
        options=lambda wildcards: commands.given_flags(config, wildcards.benchmark),
        protocol=commands.protocol_flags(config),
    shell:
        "python -m lkv data {wildcards.benchmark:q} --model {params.model:q} --task {wildcards.task:q}"
        " {params.options:q} {params.protocol:q} --out {output.data:q} --log {log:q}"

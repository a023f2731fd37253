# Insight: recall of the oracle's choice by layer and KV head, and which tokens of a sample survive.


rule inspect:
    input:
        model=PATHS.model,
        data=lambda wildcards: PATHS.data.format(
            model=wildcards.model,
            **jobs.evaluation(config, wildcards.task, wildcards.length)._asdict(),
        ),
        adapter=lambda wildcards: models.adapter(config, wildcards.model),
        draft=lambda wildcards: models.draft_card(config, wildcards.model),
    output:
        recall=PATHS.recall_part,
        kept=PATHS.kept_part,
    log:
        f"logs/{STUDY}/inspect/{{model}}/{{task}}@{{length}}.log",
    conda:
        "../envs/lkv.yaml"
    threads: THREADS * WHOLE
    resources:
        gpu=WHOLE,
    params:
        version=versions.VERSIONS["inspect"],
        model=subpath(input.model, parent=True),
        methods=lambda wildcards: models.methods(config, wildcards.model),
        own=lambda wildcards: commands.inspect_flags(
            config, jobs.evaluation(config, wildcards.task, wildcards.length).benchmark
        ),
        parts=lambda wildcards, input: commands.method_flags(
            config, wildcards.model, input.adapter, input.draft
        ),
        study=STUDY,
        seed=config["seed"],
        run=commands.flags(config, "device", "dtype"),
    shell:
        "python -m lkv inspect --model {params.model:q} --data {input.data:q} --methods {params.methods:q}"
        " {params.own:q} {params.parts:q} --study {params.study:q} --seed {params.seed:q}"
        " --recall {output.recall:q} --kept {output.kept:q} {params.run:q} --log {log:q}"


rule gather_recall:
    input:
        parts=jobs.inspect_files(config, "recall_part"),
    output:
        csv=PATHS.recall,
    log:
        f"logs/{STUDY}/gather_recall.log",
    conda:
        "../envs/lkv.yaml"
    shell:
        "python -m lkv gather recall --parts {input.parts:q} --out {output.csv:q} --log {log:q}"


rule gather_kept:
    input:
        parts=jobs.inspect_files(config, "kept_part"),
    output:
        csv=PATHS.kept,
    log:
        f"logs/{STUDY}/gather_kept.log",
    conda:
        "../envs/lkv.yaml"
    shell:
        "python -m lkv gather kept --parts {input.parts:q} --out {output.csv:q} --log {log:q}"

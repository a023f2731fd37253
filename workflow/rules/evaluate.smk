# One task at one length: every method and budget from one prefill a sample. The journal is no output, because
# Snakemake deletes outputs before a job starts again: it lets a killed job go on, and a new budget cost only itself.


rule evaluate:
    input:
        model=PATHS.model,
        data=lambda wildcards: PATHS.data.format(
            model=wildcards.model,
            **jobs.evaluation(config, wildcards.task, wildcards.length)._asdict(),
        ),
        adapter=lambda wildcards: models.adapter(config, wildcards.model),
        draft=lambda wildcards: models.draft_card(config, wildcards.model),
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
        version=versions.VERSIONS["evaluate"],
        model=subpath(input.model, parent=True),
        journal=PATHS.journal,
        methods=lambda wildcards: models.methods(config, wildcards.model),
        budgets=lambda wildcards: jobs.budgets(
            config,
            jobs.evaluation(config, wildcards.task, wildcards.length).benchmark,
            int(wildcards.length),
        ),
        parts=lambda wildcards, input: commands.method_flags(
            config, wildcards.model, input.adapter, input.draft
        ),
        study=STUDY,
        seed=config["seed"],
        run=commands.flags(config, "device", "dtype", "jobs_per_gpu")
        + commands.flags(config["protocol"], "temperatures"),
    shell:
        "python -m lkv evaluate --model {params.model:q} --data {input.data:q} --methods {params.methods:q}"
        " --budgets {params.budgets:q} {params.parts:q} --study {params.study:q} --seed {params.seed:q}"
        " --journal {params.journal:q} --out {output.samples:q} {params.run:q} --log {log:q}"


# LookaheadKV alone, in all its arms: trained otherwise, or with another recipe.
rule ablate:
    input:
        model=PATHS.model,
        data=lambda wildcards: PATHS.data.format(
            model=wildcards.model,
            **jobs.evaluation(config, wildcards.task, wildcards.length)._asdict(),
        ),
        adapters=expand(
            PATHS.adapter, arm=arms.trained_arms(config), allow_missing=True
        ),
    output:
        samples=PATHS.ablation_samples,
    log:
        f"logs/{STUDY}/ablate/{{model}}/{{task}}@{{length}}.log",
    conda:
        "../envs/lkv.yaml"
    threads: THREADS
    resources:
        gpu=1,
    params:
        version=versions.VERSIONS["evaluate"],
        model=subpath(input.model, parent=True),
        journal=PATHS.ablation_journal,
        arms=lambda wildcards: commands.arm_words(config, wildcards.model),
        own=commands.ablation_flags(config),
        study=STUDY,
        seed=config["seed"],
        run=commands.flags(config, "device", "dtype", "jobs_per_gpu")
        + commands.flags(config["protocol"], "temperatures"),
    shell:
        "python -m lkv evaluate --model {params.model:q} --data {input.data:q} --methods full"
        " --arms {params.arms:q} {params.own:q} --study {params.study:q} --seed {params.seed:q}"
        " --journal {params.journal:q} --out {output.samples:q} {params.run:q} --log {log:q}"

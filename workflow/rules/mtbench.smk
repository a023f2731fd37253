# MT-Bench: two turns under eviction, then a judge behind an endpoint. Two rules, so that no answer is ever lost
# for want of the judge; what either has finished lies in a journal.


rule mtbench:
    input:
        model=PATHS.model,
        adapter=lambda wildcards: models.adapter(config, wildcards.model),
        draft=lambda wildcards: models.draft_card(config, wildcards.model),
    output:
        answers=PATHS.answers,
    log:
        f"logs/{STUDY}/mtbench/{{model}}.log",
    priority: 1
    conda:
        "../envs/lkv.yaml"
    threads: THREADS * WHOLE
    resources:
        gpu=WHOLE,
    params:
        version=versions.VERSIONS["evaluate"],
        model=subpath(input.model, parent=True),
        options=commands.mtbench_flags(config),
        journal=PATHS.journal.format(model="{model}", task="mtbench", length=0),
        methods=lambda wildcards: models.methods(config, wildcards.model),
        parts=lambda wildcards, input: commands.method_flags(
            config, wildcards.model, input.adapter, input.draft
        ),
        study=STUDY,
        seed=config["seed"],
        run=commands.flags(config, "device", "dtype"),
    shell:
        "python -m lkv mtbench --model {params.model:q} {params.options:q} --methods {params.methods:q}"
        " {params.parts:q} --study {params.study:q} --seed {params.seed:q} --journal {params.journal:q}"
        " --out {output.answers:q} {params.run:q} --log {log:q}"


rule judge:
    input:
        answers=PATHS.answers,
    output:
        judgements=PATHS.judgements,
        samples=PATHS.samples.format(model="{model}", task="mtbench", length=0),
    log:
        f"logs/{STUDY}/judge/{{model}}.log",
    conda:
        "../envs/lkv.yaml"
    params:
        version=versions.VERSIONS["judge"],
        judge=commands.judge_flags(config),
        journal=PATHS.journal.format(model="{model}", task="judge", length=0),
    shell:
        "python -m lkv judge --answers {input.answers:q} {params.judge:q} --journal {params.journal:q}"
        " --judgements {output.judgements:q} --out {output.samples:q} --log {log:q}"

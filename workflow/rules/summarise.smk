# The study's tidy CSVs, its config as it was used, and where everything came from.


rule summarise:
    input:
        samples=jobs.sample_files(config),
    output:
        accuracy=PATHS.accuracy,
        paired=PATHS.paired,
    log:
        f"logs/{STUDY}/summarise.log",
    conda:
        "../envs/lkv.yaml"
    params:
        version=versions.VERSIONS["summarise"],
        seed=config["seed"],
    shell:
        "python -m lkv summarise --parts {input.samples:q} --out {output.accuracy:q} --paired {output.paired:q}"
        " --seed {params.seed:q} --log {log:q}"


rule gather_training:
    input:
        parts=expand(
            PATHS.training_part,
            model=models.trained(config),
            arm=arms.trained_arms(config),
        ),
    output:
        csv=PATHS.training,
    log:
        f"logs/{STUDY}/gather_training.log",
    conda:
        "../envs/lkv.yaml"
    shell:
        "python -m lkv gather training --parts {input.parts:q} --out {output.csv:q} --log {log:q}"


rule gather_arms:
    input:
        parts=expand(
            PATHS.adapter, model=config["models"], arm=arms.trained_arms(config)
        ),
    output:
        csv=PATHS.arms,
    log:
        f"logs/{STUDY}/gather_arms.log",
    conda:
        "../envs/lkv.yaml"
    shell:
        "python -m lkv arms --cards {input.parts:q} --out {output.csv:q} --log {log:q}"


rule ablation:
    input:
        samples=jobs.ablation_files(config),
    output:
        csv=PATHS.ablation,
    log:
        f"logs/{STUDY}/ablation.log",
    conda:
        "../envs/lkv.yaml"
    params:
        version=versions.VERSIONS["summarise"],
        seed=config["seed"],
        arm=arms.reference_arm(config),
    shell:
        "python -m lkv ablation --parts {input.samples:q} --arm {params.arm:q} --out {output.csv:q}"
        " --seed {params.seed:q} --log {log:q}"


rule gather_latency:
    input:
        parts=expand(PATHS.latency_part, model=config["models"]),
    output:
        csv=PATHS.latency,
    log:
        f"logs/{STUDY}/gather_latency.log",
    conda:
        "../envs/lkv.yaml"
    shell:
        "python -m lkv gather latency --parts {input.parts:q} --out {output.csv:q} --log {log:q}"


# The one rule without a verb: the config with defaults and --config values, as a file that --configfile takes.
rule study_config:
    output:
        config=PATHS.config,
    log:
        f"logs/{STUDY}/study_config.log",
    conda:
        "../envs/lkv.yaml"
    params:
        config=dump_yaml(dict(config)),
    shell:
        "printf %s {params.config:q} > {output.config:q} 2> {log:q}"


# After the evaluation (or the latency study that is alone), whose end it states. It looks at the device, so it takes its turn on it.
rule provenance:
    input:
        config=PATHS.config,
        last=PATHS.accuracy if jobs.sample_files(config) else PATHS.latency,
        models=expand(PATHS.model, model=models.fetched_models(config)),
        data=expand(
            PATHS.train_data,
            model=models.trained(config),
            arm=arms.trained_data(config),
        )
        + jobs.files(config, "data"),
        adapters=models.adapter_files(config),
    output:
        json=PATHS.provenance,
    log:
        f"logs/{STUDY}/provenance.log",
    conda:
        "../envs/lkv.yaml"
    threads: THREADS * WHOLE
    resources:
        gpu=WHOLE,
    params:
        version=versions.VERSIONS["summarise"],
        models=lambda wildcards, input: jobs.folders(input.models),
        adapters=lambda wildcards, input: jobs.folders(input.adapters),
        run=commands.flags(config, "device", "dtype"),
    shell:
        "python -m lkv provenance --config {input.config:q} --models {params.models:q} --data {input.data:q}"
        " --adapters {params.adapters:q} --out {output.json:q} {params.run:q} --log {log:q}"

# models/NAME: weights and tokenizer, brought here once. model.json, written last, stands for the folder.


rule model:
    input:
        spec=lambda wildcards: schema.spec_file(wildcards.model),
    output:
        card=PATHS.model,
    log:
        "logs/models/{model}.log",
    conda:
        "../envs/lkv.yaml"
    params:
        version=versions.VERSIONS["model"],
        folder=subpath(output.card, parent=True),
    shell:
        "python -m lkv model --spec {input.spec:q} --out {params.folder:q} --log {log:q}"

# Reports: of the configured study in reports/, of a published one in reports/NAME/. A published study is a folder
# results/NAME of plain files, which no rule makes: its reports are rendered from them as they are.


wildcard_constraints:
    kind=study.any_of(study.PLOTS),
    published=study.any_of(study.published(STUDY)),


rule table:
    input:
        accuracy=PATHS.accuracy,
        paired=PATHS.paired,
        provenance=PATHS.provenance,
    output:
        multiext("reports/table1", pdf=".pdf", csv=".csv", md=".md", tex=".tex"),
    log:
        f"logs/{STUDY}/table.log",
    conda:
        "../envs/lkv.yaml"
    params:
        version=study.VERSIONS["report"],
        results=subpath(input.provenance, parent=True),
        stem=subpath(output.pdf, strip_suffix=".pdf"),
    shell:
        "python -m lkv table --results {params.results} --out {params.stem} --log {log}"


rule plot:
    input:
        lambda wildcards: study.plotted(wildcards.kind, STUDY),
    output:
        multiext("reports/{kind}", pdf=".pdf", svg=".svg", png=".png"),
    log:
        f"logs/{STUDY}/plot/{{kind}}.log",
    conda:
        "../envs/lkv.yaml"
    params:
        version=study.VERSIONS["report"],
        results=lambda wildcards, input: study.folders(input)[0],
        stem=subpath(output.pdf, strip_suffix=".pdf"),
    shell:
        "python -m lkv plot {wildcards.kind} --results {params.results} --out {params.stem} --log {log}"


use rule table as table_published with:
    input:
        accuracy="results/{published}/accuracy.csv",
        paired="results/{published}/paired.csv",
        provenance="results/{published}/provenance.json",
    output:
        multiext(
            "reports/{published}/table1", pdf=".pdf", csv=".csv", md=".md", tex=".tex"
        ),
    log:
        "logs/{published}/table.log",


use rule plot as plot_published with:
    input:
        lambda wildcards: study.plotted(wildcards.kind, wildcards.published),
    output:
        multiext("reports/{published}/{kind}", pdf=".pdf", svg=".svg", png=".png"),
    log:
        "logs/{published}/plot/{kind}.log",


# Of published studies alone, with the latencies of the H100 beside. docs/claims.md is this page of the main study.
rule claims:
    input:
        lambda wildcards: study.claimed(wildcards.published),
    output:
        md="reports/{published}/claims.md",
    log:
        "logs/{published}/claims.log",
    conda:
        "../envs/lkv.yaml"
    params:
        version=study.VERSIONS["report"],
        results="results/{published}",
        latency=f"results/{study.LATENCY}",
    shell:
        "python -m lkv claims --results {params.results} --latency {params.latency} --out {output.md} --log {log}"

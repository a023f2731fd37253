# Reports: of the configured study in reports/, of a published one in reports/NAME/. A published study is a folder
# results/NAME of plain files, which no rule makes: its reports are rendered from them as they are.


wildcard_constraints:
    kind=jobs.any_of(kinds.PLOTS),
    published=jobs.any_of(targets.published(STUDY)),


# report(...) marks what goes into report.html: every cell of the table, and one format of each plot.


rule table:
    input:
        accuracy=PATHS.accuracy,
        paired=PATHS.paired,
        provenance=PATHS.provenance,
        arms=targets.arms_in_tables(STUDY, config),
    output:
        multiext("reports/table1", pdf=".pdf", csv=".csv", md=".md", tex=".tex"),
        html=report("reports/table1.html", **targets.report_options("table1")),
    log:
        f"logs/{STUDY}/table.log",
    conda:
        "../envs/lkv.yaml"
    params:
        version=versions.VERSIONS["report"],
        results=subpath(input.provenance, parent=True),
        stem=subpath(output.pdf, strip_suffix=".pdf"),
    shell:
        "python -m lkv table --results {params.results:q} --out {params.stem:q} --log {log:q}"


rule plot:
    input:
        lambda wildcards: targets.plot_inputs(wildcards.kind, STUDY, config),
    output:
        multiext("reports/{kind}", pdf=".pdf", png=".png"),
        svg=report("reports/{kind}.svg", **targets.report_options()),
    log:
        f"logs/{STUDY}/plot/{{kind}}.log",
    conda:
        "../envs/lkv.yaml"
    params:
        version=versions.VERSIONS["report"],
        results=lambda wildcards, input: jobs.folders(input)[0],
        stem=subpath(output.pdf, strip_suffix=".pdf"),
    shell:
        "python -m lkv plot {wildcards.kind:q} --results {params.results:q} --out {params.stem:q} --log {log:q}"


use rule table as table_published with:
    input:
        accuracy="results/{published}/accuracy.csv",
        paired="results/{published}/paired.csv",
        provenance="results/{published}/provenance.json",
        arms=lambda wildcards: targets.arms_in_tables(wildcards.published),
    output:
        multiext(
            "reports/{published}/table1", pdf=".pdf", csv=".csv", md=".md", tex=".tex"
        ),
        html=report(
            "reports/{published}/table1.html",
            **targets.report_options("table1"),
        ),
    log:
        "logs/{published}/table.log",


use rule plot as plot_published with:
    input:
        lambda wildcards: targets.plot_inputs(wildcards.kind, wildcards.published),
    output:
        multiext("reports/{published}/{kind}", pdf=".pdf", png=".png"),
        svg=report("reports/{published}/{kind}.svg", **targets.report_options()),
    log:
        "logs/{published}/plot/{kind}.log",


# Of published studies alone, with the latencies of the H100 beside, and the scores of studies named after this one.
# docs/claims.md is this page of the main study.
rule claims:
    input:
        lambda wildcards: targets.claim_inputs(wildcards.published, STUDY),
    output:
        md="reports/{published}/claims.md",
    log:
        "logs/{published}/claims.log",
    conda:
        "../envs/lkv.yaml"
    params:
        version=versions.VERSIONS["report"],
        results="results/{published}",
        latency=f"results/{targets.LATENCY}",
        also=lambda wildcards: targets.also_flags(wildcards.published, STUDY),
    shell:
        "python -m lkv claims --results {params.results:q} --latency {params.latency:q} {params.also:q}"
        " --out {output.md:q} --log {log:q}"


# All of it as one file. --report only reads what lies there, so it may run beside the call that holds the lock.
rule html:
    input:
        config=PATHS.config,
        provenance=PATHS.provenance,
        reports=targets.study_reports(config),
    output:
        html="reports/report.html",
    log:
        f"logs/{STUDY}/html.log",
    conda:
        "../envs/lkv.yaml"
    params:
        config=lambda wildcards, input: ["--configfile", input.config],
        snakefile=os.path.relpath(workflow.main_snakefile),
    shell:
        "python -m snakemake --snakefile {params.snakefile:q} --nolock {params.config:q} --report {output.html:q} -- {input.reports:q} > {log:q} 2>&1"


use rule html as html_published with:
    input:
        provenance="results/{published}/provenance.json",
        reports=lambda wildcards: targets.published_reports(wildcards.published),
    output:
        html="reports/{published}/report.html",
    log:
        "logs/{published}/html.log",
    params:
        config=["--configfile", *workflow.configfiles, "--config", f"study={STUDY}"],
        snakefile=os.path.relpath(workflow.main_snakefile),

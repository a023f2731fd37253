# The project's front door: `snakemake --cores 8 all`, `snakemake reports/table1.pdf`.


include: "workflow/Snakefile"


rule all:
    default_target: True
    input:
        rules.everything.input,

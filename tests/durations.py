"""Which test files are long and which tests are slow, by their CPU time on one core of a small machine."""

from __future__ import annotations

# Files that begin first, so that no worker is left alone with one of them at the end.
LONGEST_FIRST = (
    "test_paper.py", "test_dag.py", "test_architectures.py", "test_bad_input.py", "test_kernels.py",
    "test_workflow.py", "test_kill.py", "test_cli.py", "test_terminals.py", "test_report.py",
    "test_harness.py", "test_study.py", "test_strangers_study.py", "test_train.py", "test_csv_ages.py",
    "test_throughput.py", "test_device.py", "test_claims.py", "test_models.py", "test_mtbench.py",
    "test_engine.py", "test_evaluate.py", "test_imports.py", "test_strange_models.py",
    "test_outputs.py", "test_early.py", "test_page.py",
)  # fmt: skip

# Functions whose tests take two seconds or more each: most start a process that imports torch or snakemake.
SLOW = {
    "test_cli.py": ("test_an_error_of_several_processes", "test_two_processes_answer"),
    "test_claims.py": ("test_the_committed_claims", "test_temperatures_may", "test_a_claim_names_the_files"),
    "test_csv_ages.py": ("test_every_committed_file",),
    "test_dag.py": ("test_",),
    "test_engine.py": ("test_sliding_window_layers_are",),
    "test_evaluate.py": ("test_a_question_blind_run", "test_samples_are_written_as_they_end"),
    "test_device.py": ("test_",),
    "test_early.py": ("test_snakemake_from_elsewhere",),
    "test_harness.py": ("test_a_refusal_in_lm_evals_own_command",),
    "test_imports.py": ("test_importing_only_registers", "test_light_modules"),
    "test_paper.py": ("test_",),
    "test_report.py": ("test_one_sample_a_task",),
    "test_responses.py": ("test_two_processes",),
    "test_strangers_study.py": (
        "test_names_and_facts_of_others", "test_what_runs_for_real", "test_no_shell_interprets",
        "test_claims_show_names",
    ),
    "test_study.py": ("test_a_published_ablation",),
    "test_models.py": ("test_a_gated_model", "test_parts_in_several_wheels"),
    "test_mtbench.py": ("test_what_either_turn_dropped",),
    "test_strange_models.py": ("test_granites_tokens",),
    "test_terminals.py": (
        "test_an_answer", "test_a_name", "test_with_", "test_a_pipe", "test_a_full", "test_an_input",
        "test_a_broken_url", "test_too_little",
    ),
    "test_throughput.py": ("test_the_same_grid",),
    "test_train.py": ("test_two_processes",),
    "test_workflow.py": (
        "test_the_papers_study", "test_without_a_judge", "test_adapters_are_trained",
        "test_with_given_modules", "test_a_model_of_random_weights", "test_evaluations_alone",
        "test_one_training_takes", "test_published_study_is_rendered", "test_claims_of_a_published",
        "test_claims_read", "test_snakemake_stops", "test_the_workflow_passes", "test_latency_takes",
    ),
}  # fmt: skip

# Of functions with many cases one in so many is quick enough to stay; the rest is slow.
ONE_IN = {
    "test_architectures.py": 12,
    "test_bad_input.py": 8,
    "test_kernels.py": 6,
    "test_kill.py": 6,
    "test_outputs.py": 4,
    "test_report.py": 4,
    "test_strangers_study.py": 4,
}

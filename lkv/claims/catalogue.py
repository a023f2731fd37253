"""Which claims are judged, and the cells, budgets and lengths of each."""

from __future__ import annotations

from lkv.claims.evidence import arm_against, over_arms
from lkv.claims.rules import (
    MARGIN,
    Claim,
    above,
    against,
    both,
    elsewhere,
    longer,
    near,
    not_below,
    parameters,
    recall,
    reported,
    retained,
    share_of_prefill,
    shrinking,
    times_cheaper,
)

LENGTHS = (1024, 2048, 4096, 8192)
LADDER = (64, 128, 256, 512, 1024, 2048)
# Above a quarter of the prompt little is evicted, and no method can stand apart.
GRID = [(length, budget) for length in LENGTHS for budget in LADDER if 4 * budget <= length]
HEADLINE = (2048, 4096)  # the lengths of the goals
GOALS = [(length, budget) for length in HEADLINE for budget in LADDER[:4]]
ARMS = [(length, budget) for length in HEADLINE for budget in LADDER[:3]]
SMALL = [(length, budget) for length in HEADLINE for budget in LADDER[:2]]
OTHER = [(length, budget) for length, budget in GRID if budget != 128]
LARGE = [(length, budget) for length in HEADLINE for budget in LADDER[2:] if budget < length]
OWN = [(0, budget) for budget in LADDER[:5]]  # prompts have lengths of their own
JUDGED = [(0, budget) for budget in LADDER[:3]]
AT_128 = [(length, 128) for length in HEADLINE]
SAMPLED = (0.2, 0.8)
LADDERS = {length: [b for at, b in GRID if at == length] for length in LENGTHS[1:]}
CHEAP = ("snapkv", "pyramidkv", "streamingllm", "h2o")
TIMED = (4096, 8064, 16384, 32768)  # of config/latency-h100.yaml

GRID_WORDS = (
    "RULER average, lengths 1K, 2K, 4K, 8K, budgets 64 to 2048 that are at most a quarter of the length "
    "(18 cells)"
)
ARMS_WORDS = "RULER average, 2K and 4K, C = 64, 128, 256 (6 cells an arm)"
SMALL_WORDS = "RULER average, 2K and 4K, C = 64, 128 (4 cells)"
PAIRED, ABLATION, LATENCY = ("paired",), ("ablation",), ("latency",)


def _better(id: str, method: str, label: str, paper: str, source: str) -> Claim:
    return Claim(
        id,
        f"Better than {label} at every budget",
        source,
        paper,
        f"Rule A on {GRID_WORDS}: LookaheadKV minus {label}.",
        lambda evidence: above(against(evidence, [method], GRID)),
        PAIRED,
    )


MT64 = "MT-Bench, C = 64, Llama-3.1-8B: 7.26 against {}"
TABLE2 = "Table 2; Fig. 4"

CLAIMS = (
    _better("P1", "snapkv", "SnapKV", MT64.format("6.80"), TABLE2),
    _better("P2", "pyramidkv", "PyramidKV", MT64.format("6.85"), TABLE2),
    _better("P3", "streamingllm", "StreamingLLM", MT64.format("6.17"), TABLE2),
    _better("P4", "h2o", "H2O", "not compared", "no claim of the paper"),
    _better("P5", "laq", "LAQ", MT64.format("7.10"), TABLE2),
    _better("P6", "speckv", "SpecKV", MT64.format("6.77"), TABLE2),
    Claim(
        "P7",
        "Best average on LongBench at every budget",
        "Fig. 4",
        "values only as a plot",
        "Rule A on the LongBench average, C = 64 to 1024: LookaheadKV minus SnapKV, PyramidKV, "
        "StreamingLLM, LAQ (20 cells). LongBench records are few: wide intervals are expected.",
        lambda e: above(against(e, ["snapkv", "pyramidkv", "streamingllm", "laq"], OWN, "longbench")),
        PAIRED,
    ),
    Claim(
        "P8",
        "Best on MT-Bench at C = 64, 128, 256",
        "Table 2",
        "Llama-3.1-8B: 7.26, 7.63, 7.92; LAQ 7.10, 7.54, 7.72",
        "Rule A on MT-Bench, C = 64, 128, 256: LookaheadKV minus SnapKV, LAQ (6 cells). Without a judge it "
        "cannot be tested.",
        lambda e: elsewhere(
            e,
            "mtbench",
            "no MT-Bench in this study: it needs a large judge model",
            lambda e: above(against(e, ["snapkv", "laq"], JUDGED, "mtbench")),
        ),
        PAIRED,
    ),
    Claim(
        "P9",
        "The gap is largest at small budgets",
        "Fig. 4",
        "gap largest at 64 and 128, narrow from 1024 on",
        "At 2K, 4K, 8K, against SnapKV and against LAQ: among the budgets up to a quarter of the length, "
        "the largest gap is at C = 64 or 128, and its interval lies above the interval of the gap at the "
        "largest of these budgets (512, 1024, 2048). Holds: in all 6; in part: in some; does not: in none.",
        lambda e: shrinking(e, ["snapkv", "laq"], LADDERS),
        PAIRED,
    ),
    Claim(
        "P10",
        "Trained to one length, it holds at longer ones",
        "Fig. 6; Table 6",
        "trained up to 16K, best at 32K; 128K: 54.83, LAQ 50.67, SnapKV 30.56",
        "Rule A at every length of 1K, 2K, 4K, 8K above the longest training prompt (its answer and the "
        "lookahead rows counted in), C = 128: LookaheadKV minus SnapKV, minus LAQ. Where training prompts "
        "are as long as the longest evaluated ones, the arm `upto1k` (trained on prompts of at most 1,024 "
        "tokens) is judged instead: rule A at 2K and 4K, C = 128, `upto1k` minus SnapKV, minus LAQ (4 "
        "cells), unpaired (from the lower end of one to the upper end of the other), over the same tasks.",
        lambda e: longer(e, ["snapkv", "laq"], LENGTHS, 128, AT_128),
        ("accuracy", "paired", "ablation", "provenance"),
    ),
    Claim(
        "P11",
        "Overhead near that of SnapKV",
        "measured latency, Llama-3.1-8B, p24",
        "8K: 11 ms, SnapKV 20 ms; 32K: 2.16 %, SnapKV below 2 %",
        "Llama-3.1-8B's shape on an H100, C = 128, 4K, 8K, 16K, 32K: the upper end of LookaheadKV's "
        "overhead is at most 1 per cent of the plain prefill above the lower end of SnapKV's. Holds: at "
        "all four; in part: at some; does not: at none.",
        lambda e: near(e, "snapkv", 1.0, TIMED),
        LATENCY,
    ),
    Claim(
        "P12",
        "LAQ's overhead is 14.5 times LookaheadKV's at 32K",
        "the headline; measured latency, Llama-3.1-8B",
        "14.5 (31.32 % over 2.16 %; 554 ms over 38 ms)",
        "The same shape and machine, 32K, C = 128, LAQ's draft of 32 tokens. Holds: the lower end of the "
        "ratio (LAQ's lower end over LookaheadKV's upper end) is at least 14.5; in part: above 1; else it "
        "does not.",
        lambda e: times_cheaper(e, "laq", 14.5, 32768),
        LATENCY,
    ),
    Claim(
        "P13",
        "Overhead of at most 2.16 % of prefill at 32K",
        "measured latency, Llama-3.1-8B, p24",
        "2.16 % (38 ms measured, 1.74 ms in theory)",
        "The same shape and machine, 32K, C = 128. Holds: the upper end of the overhead is at most 2.16 % "
        "of the plain prefill; in part: its median; else it does not.",
        lambda e: share_of_prefill(e, 2.16, 32768),
        LATENCY,
    ),
    Claim(
        "P14",
        "32 lookahead tokens saturate",
        "Table 5",
        "saturates at n = 32; cells not at hand",
        f"{ARMS_WORDS}. Rule A for the main arm (32 tokens) minus `n8`, and rule B for the main arm minus "
        "`n128`. Holds: both hold; does not: neither holds even in part; else in part.",
        lambda e: both(above(over_arms(e, ["n8"], ARMS)), not_below(over_arms(e, ["n128"], ARMS))),
        ABLATION,
    ),
    Claim(
        "P15",
        "LoRA on all linears is best",
        "Table 5",
        "all-linear placement clearly better; cells not at hand",
        f"Rule A on {ARMS_WORDS}: main arm minus `qk` (LoRA on q and k alone), main arm minus `embeddings` "
        "(none).",
        lambda e: above(over_arms(e, ["qk", "embeddings"], ARMS)),
        ABLATION,
    ),
    Claim(
        "P16",
        "Answers made by the model are better targets than given ones",
        "App. D, p17",
        "given answers slightly worse at low budgets",
        f"Rule A on {SMALL_WORDS}: main arm minus `given`.",
        lambda e: above(over_arms(e, ["given"], SMALL)),
        ABLATION,
    ),
    Claim(
        "P17",
        "Fewer than 0.5 % of the parameters are trained",
        "Table 1",
        "0.26 % (Llama-3.1-8B) to below 0.5 % (all six models)",
        "Parameters of the main arm's modules over those of the model, for each model of the study. Holds: "
        "all below 0.5 %; in part: some; does not: none. The paper's models are larger; rank 8 is a larger "
        "share of a small one.",
        lambda e: parameters(e, 0.5),
        ("provenance",),
    ),
    Claim(
        "D1",
        "Embeddings alone are not enough",
        "reviews; Judge Q",
        "no figure at hand",
        f"Rule A on {ARMS_WORDS}: main arm minus `embeddings` (KL), main arm minus `judgeq` (MSE).",
        lambda e: above(over_arms(e, ["embeddings", "judgeq"], ARMS)),
        ABLATION,
    ),
    Claim(
        "D2",
        "SnapKV's window beside the learned tokens adds nothing",
        "App. D, p17–18",
        "no figure at hand",
        f"Rule B on {ARMS_WORDS}: main arm minus `window`.",
        lambda e: not_below(over_arms(e, ["window"], ARMS)),
        ABLATION,
    ),
    Claim(
        "D3",
        "The lead is not one of C = 128 alone",
        "reviews; RULER in the paper is at 128",
        "RULER only at C = 128",
        "Rule A on the cells of P1 without C = 128: LookaheadKV minus SnapKV, minus LAQ (28 cells).",
        lambda e: above(against(e, ["snapkv", "laq"], OTHER)),
        PAIRED,
    ),
    Claim(
        "D4",
        "It leads when answers are sampled, at temperatures 0.2 and 0.8",
        "Table 4",
        "ahead at 0.2 and 0.8; every method loses 3–4 % at 0.8",
        "Rule A on the RULER average at temperatures 0.2 and 0.8 (column `protocol`), 2K and 4K, C = 128: "
        "LookaheadKV minus SnapKV, minus LAQ (8 cells). The rows may lie in a study read beside.",
        lambda e: above(against(e, ["snapkv", "laq"], AT_128, temperatures=SAMPLED)),
        PAIRED,
        SAMPLED,
    ),
    Claim(
        "D5",
        "The lead does not come from having seen look-ups",
        "reviews",
        "no figure",
        f"Rule A on {ARMS_WORDS}: arm `nolookups` minus SnapKV, unpaired (from the lower end of one to the "
        "upper end of the other), over the same tasks.",
        lambda e: above(arm_against(e, "nolookups", "snapkv", ARMS)),
        ("ablation", "accuracy"),
    ),
    Claim(
        "D6",
        "Needles in the training mixture are not needed: blocks of records do as well",
        "reviews",
        "no figure",
        f"Rule B on {ARMS_WORDS}: main arm minus `needles` (facts hidden in filler text instead of blocks).",
        lambda e: not_below(over_arms(e, ["needles"], ARMS)),
        ABLATION,
    ),
    Claim(
        "D7",
        "Short answers are not enough as targets",
        "no claim of the paper",
        "the paper's have up to 512 tokens",
        f"Rule A on {ARMS_WORDS}: main arm minus `short` (answers of at most 32 tokens).",
        lambda e: above(over_arms(e, ["short"], ARMS)),
        ABLATION,
    ),
)

TARGETS = (
    Claim(
        "T1",
        "Above SnapKV, PyramidKV, StreamingLLM and H2O at every budget from 64 to 512",
        "this project",
        "",
        "Rule A on RULER average, 2K and 4K, C = 64, 128, 256, 512: LookaheadKV minus each (32 cells).",
        lambda e: above(against(e, CHEAP, GOALS)),
        PAIRED,
    ),
    Claim(
        "T2",
        "Above LAQ at C = 64 and 128",
        "this project",
        "",
        f"Rule A on {SMALL_WORDS}: LookaheadKV minus LAQ.",
        lambda e: above(against(e, ["laq"], SMALL)),
        PAIRED,
    ),
    Claim(
        "T3",
        "Not below LAQ from C = 256 on",
        "this project",
        "",
        "Rule B on RULER average, 2K (C = 256, 512, 1024) and 4K (and 2048), 7 cells: LookaheadKV minus LAQ.",
        lambda e: not_below(against(e, ["laq"], LARGE)),
        PAIRED,
    ),
    Claim(
        "T4",
        "Keeps at least 90 % of the full-cache score at C = 128, 95 % at C = 512",
        "this project",
        "",
        "RULER average, 2K and 4K: 100 (1 + d / F), d LookaheadKV minus full cache with its paired "
        "interval, F the full cache's mean, taken as fixed. Holds: every lower end reaches its goal; in "
        "part: some share does; does not: none.",
        lambda e: retained(e, {128: 90.0, 512: 95.0}, HEADLINE),
        ("paired", "accuracy"),
    ),
    Claim(
        "T5",
        "Mean unpooled recall of the oracle's entries of at least 0.85 at every budget",
        "this project",
        "",
        "`recall_raw` of RULER average, 2K and 4K, C = 64, 128, 256, 512. Holds: all 8 reach 0.85; in "
        "part: some; does not: none.",
        lambda e: recall(e, 0.85, GOALS),
        ("accuracy",),
    ),
    Claim(
        "T6",
        "LongBench records reported with intervals, whatever they say",
        "this project",
        "",
        "Holds where the LongBench average of LookaheadKV is in accuracy.csv with its interval.",
        lambda e: reported(e, "longbench"),
        ("accuracy",),
    ),
)

RULES = (
    (
        "Rows",
        "`task` is `average`, `protocol` is `official` and no more (LongBench: and where prompts are cut; "
        "D4: and the temperature). RULER's headline haystack is the essays: the average row whose "
        "`haystack` is neither `pydoc` nor `built-in`. `pydoc` rows are reported in the tables and judge "
        "nothing. The tasks are those that the full cache scores at least 10 points on, chosen on another "
        "seed before any eviction.",
    ),
    (
        "Intervals",
        "95 % bootstrap intervals of paired differences (paired.csv, ablation.csv), samples resampled "
        "within each task: they say nothing of another training of the same arm, which moves scores by up "
        "to five points (docs/training.md). The main arm of an arms' row is the one that the others are "
        "compared with; where the study's own modules are trained for longer than its arms "
        "(`ablation.reference`), it is the arm that has their settings and is trained as long as the "
        "others. Latency: medians of the repeats; the brackets go from the sum of the added phases' 10th "
        "percentiles to the sum of their 90th, a range of runs and no confidence interval.",
    ),
    (
        "Rule A, above",
        "*Holds*: every cell's interval lies above 0. *In part*: it does not hold, and more cells are "
        "surely above 0 than surely below. *Does not hold*: anything else.",
    ),
    (
        "Rule B, not below",
        f"*Holds*: no cell's interval reaches below −{MARGIN:g} points. *In part*: it does not hold, and "
        "more cells keep to that than are surely below 0. *Does not hold*: anything else.",
    ),
    (
        "Many comparisons",
        "To hold, a claim needs all its cells at once: the chance that it does so wrongly is that of one "
        "cell, and the intervals stay uncorrected. For *in part*, where one of many cells could do it by "
        "chance, *surely* means: the interval leaves out 0, and Holm's procedure over the p values of all "
        "cells of that claim keeps the cell at 5 %. Nothing is corrected across claims: each line stands "
        f"for itself. With {len(CLAIMS) + len(TARGETS)} lines, one that holds by a hair is weak evidence.",
    ),
    (
        "Several models",
        "each model of the study brings its own cells, and all are counted.",
    ),
    (
        "Not measured yet",
        "a file, method, arm, budget, length or interval that the rule asks for is missing. A rule is not "
        "cut to what is there. *Does not hold* says that the data do not show it; whether they show the "
        "contrary, the figure says.",
    ),
)

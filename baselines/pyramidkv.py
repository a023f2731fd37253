"""PyramidKV: SnapKV's observers, with a budget that falls from the first layer to the last.

k_l falls linearly from 2(C - W) - (C - W)/β to (C - W)/β, β = 20 (Cai et al. 2024, arXiv 2406.02069, §4).
Deviation: the original's integer step overspends by up to 21 %; here the layers sum to L·C exactly.
"""

from __future__ import annotations

from dataclasses import replace

from baselines import snapkv

METHOD = replace(
    snapkv.METHOD,
    name="pyramidkv",
    recipe=replace(snapkv.METHOD.recipe, schedule="pyramid"),
    label="PyramidKV",
    colour="#CC79A7",
    marker="^",
    line=(0, (1, 1)),
)

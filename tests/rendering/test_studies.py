"""Chapters of the studies, against made-up records: every sentence follows from the figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rendering import accuracy, soft_tokens, studies
from test_accuracy import comparison, make_record

Run = dict[str, Any]


def chapter(**found: list[Run]) -> str:
    return "\n\n".join(studies.sections(make_record(studies=found)))


# -- soft tokens


def soft_token_runs(
    papers: Mapping[int, float], converged: Mapping[int, float], **more: Any
) -> list[Run]:
    return [
        {
            "task": "banking77",
            "direction": "forward",
            "soft_tokens": m,
            "seed": seed,
            "budget": budget,
            "accuracy": value + 0.001 * seed,
            "n": 3080,
            "train_loss": 4.3 if budget == "papers" else 0.5,
            "steps_done": 3000,
            "hyperparameters": {"learning_rate": 0.001, "steps": 3000, "batch_size": 8},
            **more,
        }
        for budget, values in (("papers", papers), ("converged", converged))
        for m, value in values.items()
        for seed in (0, 1, 2)
    ]


SUPPORTED = [
    ({16: 0.5, 128: 0.5}, {16: 0.8, 128: 0.8}, "does not show here at either budget"),
    ({16: 0.5, 128: 0.49}, {16: 0.8, 128: 0.8}, "does not show here at either budget"),
    ({16: 0.5, 128: 0.2}, {16: 0.8, 128: 0.79}, "slow optimisation of larger M, not a limit"),
    ({16: 0.5, 128: 0.2}, {16: 0.8, 128: 0.7}, "more than half of the drop"),
    ({16: 0.5, 128: 0.2}, {16: 0.8, 128: 0.5}, "Most of the drop stays"),
    ({16: 0.2, 128: 0.5}, {16: 0.8, 128: 0.8}, "more soft tokens are better here, not fewer"),
    ({16: 0.5, 128: 0.5}, {16: 0.8, 128: 0.5}, "slow optimisation does not explain it"),
]


@pytest.mark.parametrize(("papers", "converged", "said"), SUPPORTED)
def test_what_the_soft_token_data_support(
    papers: dict[int, float], converged: dict[int, float], said: str
) -> None:
    text = chapter(soft_tokens=soft_token_runs(papers, converged))
    assert said in text
    assert {case[2] for case in SUPPORTED if case[2] in text} == {said}


def test_soft_tokens_beside_the_papers_own_figures() -> None:
    runs = soft_token_runs({8: 0.3, 16: 0.5, 128: 0.2}, {16: 0.8, 128: 0.8})
    text = chapter(soft_tokens=runs)
    assert "theirs: 8B -> 7B, 200 rows" in text
    assert (
        "| 16 | 0.501 ± 0.001 (3 seeds) | 4.30 | 0.801 ± 0.001 (3 seeds) | 0.50 | 0.001 | 0.215 |"
        in text
    )
    assert "| 8 | 0.301 ± 0.001 (3 seeds) | 4.30 | – | – | – | – |" in text
    assert "From M = 16 to M = 128 accuracy changes by -0.300 ± 0.023 at the papers' budget" in text
    assert "Best: M = 16 at the papers' budget; M = 16 after longer training (not told" in text
    assert "The papers' budget: 3,000 steps of 8 rows; longer, rate tuned for each M: 3,000" in text
    assert "figures/soft-tokens-banking77.svg" in text


def test_trainings_that_were_cut_off_are_named() -> None:
    runs = soft_token_runs({16: 0.5}, {16: 0.8})
    assert "want of time" not in chapter(soft_tokens=runs)
    for run in runs[3:]:
        run["steps_done"] = 1200
    assert "Ended early, for want of time: M = 16 after 1,200 of 3,000 steps." in chapter(
        soft_tokens=runs
    )


def test_a_small_drop_within_the_noise_is_not_a_drop() -> None:
    few = [{**run, "n": 50} for run in soft_token_runs({16: 0.5, 128: 0.45}, {16: 0.8, 128: 0.8})]
    assert "does not show here" in chapter(soft_tokens=few)


def test_the_studies_are_drawn(tmp_path: Path) -> None:
    held = {"task": "sst2", "direction": "forward", "train_rows": 16384}
    found = {
        "soft_tokens": soft_token_runs({16: 0.5, 128: 0.2}, {16: 0.8, 128: 0.8}),
        "layers": [
            {**held, "layer": n, "held_out_accuracy": 0.8, "probe_mean_held_out": 0.75}
            for n in (10, 30)
        ],
    }
    records = {"accuracy-small": make_record(studies=found)}
    made = accuracy.draw(records, tmp_path)
    names = {f"{stem}.{kind}" for stem in (soft_tokens.PICTURE, studies.LAYERS_PICTURE)
             for kind in ("svg", "png")}  # fmt: skip
    assert {file.name for file in made} == names
    before = {file: file.read_bytes() for file in made}
    accuracy.draw(records, tmp_path)
    assert {file: file.read_bytes() for file in made} == before


def test_without_studies_nothing_is_drawn(tmp_path: Path) -> None:
    assert accuracy.draw({"accuracy-small": make_record()}, tmp_path) == []


# -- layers, sensitivity, ablation


def layer(n: int, value: float, **more: Any) -> Run:
    return {
        "task": "sst2",
        "direction": "forward",
        "layer": n,
        "name": f"layer{n}",
        "changes": {},
        "held_out_accuracy": value,
        "loss": 0.4,
        **more,
    }


def test_layers_are_compared_only_where_they_saw_the_same_rows() -> None:
    text = chapter(
        layers=[
            layer(15, 0.88),
            layer(1, 0.6, train_rows=16384, probe_mean_held_out=0.58),
            layer(15, 0.85, train_rows=16384, probe_mean_held_out=0.82),
            layer(20, 0.84, train_rows=16384, probe_mean_held_out=0.8),
            layer(30, 0.7, train_rows=16384, probe_mean_held_out=0.79),
        ]
    )
    assert "Forward, all training rows:" in text
    assert "Forward, 16,384 training rows:" in text
    assert "| 15 | 0.850 | 0.820 |" in text
    assert (
        "Best after layer 15, not told apart from 20; the deepest one that was read, 30, is worse "
        "by 0.150." in text
    )
    assert "layer 31: 0.945" in text


def test_each_setting_is_held_against_the_base() -> None:
    same = {"task": "sst2", "direction": "forward", "loss": 0.4}
    runs = [
        {**same, "name": "base", "changes": {}, "held_out_accuracy": 0.85},
        {**same, "name": "learning_rate=1e-05", "changes": {"learning_rate": 1e-5},
         "held_out_accuracy": 0.51},
        {**same, "name": "batch_size=16", "changes": {"batch_size": 16},
         "held_out_accuracy": 0.86},
        {"task": "sst2", "direction": "forward", "name": "learning_rate=0.005",
         "changes": {"learning_rate": 0.005}, "failed": "the loss is not finite"},
    ]  # fmt: skip
    text = chapter(sensitivity=runs)
    assert "| base | 0.850 | 0.400 | – |" in text
    assert "| learning_rate 1e-05 | 0.510 | 0.400 | -0.340 ± 0.038 |" in text
    assert "| batch_size 16 | 0.860 | 0.400 | +0.010 ± 0.031 |" in text
    assert "| learning_rate 0.005 | failed: the loss is not finite | – | – |" in text
    assert "Told apart from the base: learning_rate 1e-05 (-0.340)." in text
    assert "At chance: learning_rate 1e-05." in text


def test_a_sweep_has_its_base_among_the_layers() -> None:
    same = {"task": "sst2", "direction": "forward", "layer": 15, "loss": 0.4}
    runs = [{**same, "name": "dropout", "changes": {"dropout": 0.3}, "held_out_accuracy": 0.86}]
    text = chapter(sensitivity=runs, layers=[layer(15, 0.88), layer(15, 0.5, train_rows=9)])
    assert "| dropout 0.3 | 0.860 | 0.400 | -0.020 ± 0.029 |" in text
    assert "None of them can be told apart from the base." in text


def test_an_ablation_says_what_each_part_is_worth() -> None:
    same = {"task": "sst2", "direction": "reverse", "loss": 0.4}
    runs = [
        {**same, "name": "all on", "changes": {"seed": seed}, "held_out_accuracy": 0.9 + seed / 100}
        for seed in (0, 1)
    ]
    runs += [
        {**same, "name": "plain", "changes": {"average": 0.0, "batch_size": 16},
         "held_out_accuracy": 0.505},
        {**same, "name": "rate 1e-4", "changes": {"learning_rate": 1e-4},
         "held_out_accuracy": 0.9},
    ]  # fmt: skip
    text = chapter(ablation=runs)
    assert "| all on | 0.905 ± 0.007 (2 seeds) | 0.400 | – |" in text
    assert "| rate 1e-4 | 0.900 |" in text
    assert "Told apart from the base: plain (-0.400). At chance: plain." in text


def test_the_first_try_is_the_base_of_what_put_it_at_chance() -> None:
    same = {"task": "sst2", "direction": "reverse", "loss": 0.7, "changes": {"seed": 0}}
    runs = [
        {**same, "name": "first try", "held_out_accuracy": 0.51, "opening": "absent"},
        {**same, "name": "standardised", "held_out_accuracy": 0.8, "opening": "absent"},
    ]
    text = chapter(first_try=runs)
    assert "None of them is at chance" not in text
    assert "| first try | 0.510 | 0.700 | – |" in text
    assert "Told apart from the base: standardised (+0.290). At chance: first try." in text
    runs[0]["held_out_accuracy"] = 0.75
    runs.append({**same, "name": "shown", "held_out_accuracy": 0.9, "opening": "kept"})
    text = chapter(first_try=runs)
    assert "None of them is at chance: none of these things alone or together" in text
    assert (
        "accuracy is 0.900 to 0.900 where the sender reads an opening token and 0.750 to 0.800 "
        "where the sender reads none." in text
    )


# -- passkey


def passkey(m: int, digit: float, exact: float) -> list[Run]:
    return [
        {
            "soft_tokens": m,
            "seed": seed,
            "n": 1000,
            "digit_accuracy": digit,
            "exact_match": exact,
            "by_place": [0.9, 0.1],
        }
        for seed in (0, 1)
    ]


def test_passkeys_by_digit_and_whole() -> None:
    text = chapter(passkey=passkey(16, 0.55, 0.1) + passkey(128, 0.1, 0.0))
    assert (
        "| 16 | 0.550 ± 0.000 (2 seeds) | 0.100 ± 0.000 (2 seeds) | 0.900, 0.100 | 0.234 |" in text
    )
    assert "1,000 passkeys" in text
    assert "Digits are above chance at M = 16. At chance: M = 128." in text
    assert "M = 128 carries fewer whole passkeys than M = 16 (-0.100" in text
    assert "carries more whole passkeys" in chapter(
        passkey=passkey(16, 0.5, 0.1) + passkey(128, 0.9, 0.6)
    )
    assert "cannot be told apart in whole passkeys" in chapter(
        passkey=passkey(16, 0.5, 0.1) + passkey(128, 0.5, 0.1)
    )


# -- universal


def universal(task: str, value: float, **more: Any) -> Run:
    return {"task": task, "direction": "forward", "accuracy": value, "n": 872, "seed": 0, **more}


def test_the_universal_bridge_against_the_bridge_of_each_task() -> None:
    record = make_record(studies={"universal": [universal("sst2", 0.80, seen=True)]})
    record["figures"]["sst2.forward.bridge.n"] = 872
    text = "\n\n".join(studies.sections(record))
    assert "| SST-2 | 0.800 | 0.876 | -0.076 ± 0.034 |" in text
    assert "The universal bridge is **below the bridge of the task** on SST-2 (-0.076)." in text
    alike = chapter(universal=[universal("sst2", 0.87, seen=True)])
    assert "not told apart from the bridge of the task on SST-2 (-0.006)." in alike


def test_a_paired_test_is_taken_where_the_record_has_one() -> None:
    entry = comparison("sst2", "bridge", -0.02, 0.015)
    text = chapter(universal=[universal("sst2", 0.856, seen=True)], universal_minus_bridge=[entry])
    assert "| SST-2 | 0.856 | 0.876 | -0.020 (-0.035 .. -0.005) |" in text
    assert "**below the bridge of the task** on SST-2 (-0.020)" in text


def search(winner: str, **held_out: float) -> Run:
    tried = [
        {"name": name.replace("_", " "), "seed": seed, "loss": 0.3, "held_out_accuracy": value}
        for name, value in held_out.items()
        for seed in (0, 1)
    ]
    return {"job": "search.sst2.forward", "task": "sst2", "direction": "forward",
            "winner": winner, "tried": tried}  # fmt: skip


def test_a_searched_recipe_stands_beside_the_one_that_ships() -> None:
    searched = [
        {"task": "sst2", "direction": "forward", "seed": seed, "accuracy": value, "n": 872,
         "held_out_accuracy": 0.9, "chosen_from": 8}
        for seed, value in ((0, 0.88), (1, 0.9))
    ]  # fmt: skip
    record = make_record(studies={"searched": searched})
    record["choices"] = [search("layer 18", as_it_is=0.87, layer_18=0.88)]
    text = "\n\n".join(studies.sections(record))
    assert "held-out rows choose *layer 18*, +0.010 ± " in text
    assert "the best of many and not told apart from it, so the bridge of the" in text
    assert "| layer 18 | 0.880 ± 0.000 (2 seeds) | 0.300 |" in text
    assert "| SST-2, forward | 0.890 ± 0.014 (2 seeds) | 0.876 | +0.014" in text
    assert "not told apart from the bridge of the main table on SST-2 forward." in text
    assert "Goal on SST-2 forward, 0.88: reached." in text
    compared = {"task": "sst2", "direction": "forward", "difference": 0.014, "low95": 0.001,
                "high95": 0.03}  # fmt: skip
    record["studies"]["searched_minus_bridge"] = [compared]
    text = "\n\n".join(studies.sections(record))
    assert "| +0.014 (+0.001 .. +0.030) |" in text
    assert "recipe is above the bridge of the main table on SST-2 forward. Goal" in text


def test_a_search_that_keeps_the_recipe_is_told_too() -> None:
    record = make_record(studies={})
    record["choices"] = [search("as it is", as_it_is=0.87, layer_18=0.86)]
    text = "\n\n".join(studies.sections(record))
    assert "held-out rows choose *as it is*, the recipe of the main table; test rows were" in text
    assert "| test rows |" not in text


def test_tasks_that_it_never_saw_stand_beside_what_to_read_them_with() -> None:
    facts = {"seen": False, "majority": 0.35, "receiver_direct": 0.55, "payload_probe": 0.7}
    text = chapter(
        universal=[
            universal("emotion", 0.45, **facts),
            universal("subj", 0.5, **{**facts, "majority": 0.5, "payload_probe": 0.5}),
        ]
    )
    assert "**never seen**" in text
    assert "| emotion | 0.450 | 0.350 | 0.550 | 0.700 |" in text
    assert (
        "- emotion: the universal bridge is above always saying the largest class by 0.100; below "
        "the receiver that reads the text itself by 0.100. Its payloads hold more than the "
        "receiver says: a probe on them reaches 0.700." in text
    )
    assert "- Subj: the universal bridge is not told apart from always saying the largest" in text
    assert text.count("Its payloads hold more") == 1

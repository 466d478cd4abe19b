"""Results cards: the figures of the tables, and their sources."""

from __future__ import annotations

from pathlib import Path

import made_study
from ruamel.yaml import YAML

from sf.evaluation.benchmarks import suite
from sf.report.results import Study
from sf.report.results_cards import results_cards


def written(root: Path, source: str = "hub") -> Study:
    made_study.stamp(root / "benchmarks", "benchmarks", benchmarks={"source": source})
    made_study.stamp(root / "train/tiny/sparsity_forcing/seed0", "train")
    made_study.write_scores(root / "evaluate/tiny/full/all", 0.8, 1.0)
    made_study.write_scores(root / "evaluate/tiny/sparsity_forcing/seed0/all", 0.75, 0.5)
    return made_study.study_at(root)


def test_a_card_has_index_table_picture_and_provenance(tmp_path: Path) -> None:
    (section,) = results_cards(written(tmp_path / "results"), tmp_path / "report")
    ((cell,),) = section.tables[0].rows
    text = (tmp_path / "report" / cell.link).read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    (index,) = YAML(typ="safe").load(head)["model-index"]
    results = {one["dataset"]["name"]: one for one in index["results"]}
    assert results["MME"]["dataset"]["type"] == suite("mme")[0].tasks[0].repository
    values = {one["type"]: one["value"] for one in results["MME"]["metrics"]}
    assert values == {"score": 2100.0, "token_ratio": 0.5}
    assert "| MME | 2100 (1820 to 2380) | 2240 (1960 to 2520) | 50.0 (45.0 to 55.0) | 24 |" in body
    assert body.count("commit 0123456") == 3  # the training, and both rows' evaluation
    for suffix in ("png", "svg"):
        assert (tmp_path / f"report/cards/figures/tiny_sparsity_forcing.{suffix}").is_file()
    assert "](figures/tiny_sparsity_forcing.png)" in body


def test_scores_on_stand_ins_are_not_offered_to_the_hub(tmp_path: Path) -> None:
    (section,) = results_cards(written(tmp_path / "results", "synthetic"), tmp_path / "report")
    ((cell,),) = section.tables[0].rows
    text = (tmp_path / "report" / cell.link).read_text(encoding="utf-8")
    assert text.startswith("# Results of sparsity_forcing on tiny")
    assert "model-index" not in text
    assert "not comparable" in text


def test_a_model_that_was_not_evaluated_has_no_card(tmp_path: Path) -> None:
    root = tmp_path / "results"
    made_study.write_scores(root / "evaluate/tiny/full/all", 0.8, 1.0)
    assert results_cards(made_study.study_at(root), tmp_path / "report") == []

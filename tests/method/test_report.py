"""The numbers of reports and documents: means, tests, and what is printed from them."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT

from reproduction import documents, published, report
from reproduction.published import EVERY_METRIC, Numbers


def results(row, **maps_of_seeds):
    """Lines of results.csv: one for seed1=.5 and so on, of a data set called toy."""
    return [
        {"data_set": "toy", "split": "test", "row": row, "seed": name.removeprefix("seed"),
         "epochs": 30, "flags": "--d 4", "commit": "c", "device": "cpu", "threads": 1,
         "versions": "torch 2", **dict.fromkeys(EVERY_METRIC, 0.25), "map": value}
        for name, value in maps_of_seeds.items()
    ]  # fmt: skip


def numbers_of(*lines, **others):
    return Numbers.of_lines(results=[line for some in lines for line in some], **others)


def test_each_mean_and_deviation_stands_under_its_head():
    numbers = numbers_of(results("caser-rd", seed1234=0.7, seed1=0.9))
    head, _, line, *told = report.table_of_metrics(numbers, "toy", ["uniform", "caser-rd"])
    assert head == "|  | epochs | seeds | P@3 | P@5 | P@10 | nDCG@3 | nDCG@5 | nDCG@10 | MAP |"
    assert line == "| Caser-RD | 30 | 2 |" + " .2500 ± .0000 |" * 6 + " .8000 ± .1414 |"
    assert told == ["", "Not run: w = 1/K."]


def test_summaries_stand_for_metrics_whose_seeds_are_not_published():
    lines = results("caser-s", seed1234=0.7, seed1=0.9, mean=0.8, sd=0.1)
    for line in lines[:2]:
        line["ndcg_paper@3"] = None
    lines[2]["ndcg_paper@3"], lines[3]["ndcg_paper@3"] = 0.5, 0.125
    line = report.table_of_metrics(numbers_of(lines), "toy", ["caser-s"])[2]
    assert "| 30 | 2 |" in line
    assert "| .5000 ± .1250 |" in line
    assert line.endswith("| .8000 ± .1414 |")


def test_rows_are_tested_over_the_seeds_that_both_have():
    first, second = [0.5, 0.6, 0.9], [0.4, 0.55, 0.6]
    numbers = numbers_of(
        results("caser-rd", seed1234=0.5, seed1=0.6, seed2=0.9, seed3=1.0),
        results("caser-s", seed2=0.6, seed1234=0.4, seed1=0.55),
        results("caser-t", seed1=0.7),
        comparisons=[{"data_set": "toy", "row": "caser-rd", "rival": "caser-s", "users": 9,
                      "better": 0.75, "worse": 0.25, "p": 7e-10}],
    )  # fmt: skip
    found = report.difference(numbers, "toy", "caser-rd", "caser-s")
    test = scipy.stats.ttest_rel(first, second)
    half = scipy.stats.t.ppf(0.975, 2) * np.std(np.subtract(first, second), ddof=1) / math.sqrt(3)
    assert (found.seeds, found.mean) == (3, pytest.approx(0.15))
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx((0.15 - half, 0.15 + half))
    pairs = [("caser-rd", "caser-s"), ("caser-rd", "caser-t"), ("caser-rd", "uniform")]
    head, _, line, alone = report.table_of_tests(numbers, "toy", pairs)
    assert "| .19 | .19 | 75% | 25% | <.0001 |" in line
    assert alone.startswith("| Caser-RD against Caser-T | 1 | -.1000 | - | - | - | - |")
    assert len(head.split("|")) == len(line.split("|")) == len(alone.split("|"))


def test_the_share_of_the_gap_is_told_where_there_surely_is_one():
    listwise = results("caser-listwise", seed1234=0.45, seed1=0.54)
    for line, seconds in zip(listwise, (30, 60), strict=True):
        line |= {"seconds": seconds, "lists_seconds": 3}
    sure = numbers_of(
        [line | {"seconds": 90} for line in results("caser-t", seed1234=0.5, seed1=0.6)],
        results("caser-s-tuned", seed1234=0.3, seed1=0.41),
        listwise,
    )
    table = report.table_of_gaps(sure, "toy", "later")
    assert "| Caser-list-wise | 72% | 1.00 | 90 + 3 + 30 |" in table  # the fastest seed's
    assert "| Caser-T | - | 3.00 | 90 |" in table
    one_seed, worse_teacher = {"seed1234": 0.5}, {"seed1234": 0.2, "seed1": 0.3}
    for teacher in (one_seed, worse_teacher):
        unsure = numbers_of(
            results("caser-t", **teacher), results("caser-s-tuned", seed1234=0.3, seed1=0.41),
            results("caser-cd", seed1234=0.45, seed1=0.5),
        )  # fmt: skip
        assert "| Caser-CD | - |" in report.table_of_gaps(unsure, "toy", "later")[4]
    assert report.table_of_gaps(sure, "toy", "2") == []


def test_whom_a_student_serves_stands_beside_later_losses():
    lines = [{"data_set": "toy", "row": "caser-cd", "seed": seed, "recall_popular": 0.3,
              "recall_other": recall, "coverage": 0.5}
             for seed, recall in ((1234, 0.1), (1, 0.2))]  # fmt: skip
    numbers = numbers_of(results("caser-cd", seed1234=0.5, seed1=0.5), popularity=lines)
    *_, table = report.tables_beside(numbers, "toy", "later", [])
    assert table[-1] == "| Caser-CD | .3000 ± .0000 | .1500 ± .0707 | .5000 ± .0000 |"


def test_rows_that_are_alike_have_no_p():
    numbers = numbers_of(
        results("caser-rd", seed1=0.5, seed2=0.6), results("caser-s", seed1=0.4, seed2=0.5)
    )
    found = report.difference(numbers, "toy", "caser-rd", "caser-s")
    assert found.mean == pytest.approx(0.1)
    assert math.isnan(found.p)


def test_holms_correction_is_the_textbooks():
    assert report.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert report.holm([0.5, math.nan, 0.9])[::2] == pytest.approx([1.0, 1.0])
    assert report.holm([]) == []


def test_a_users_mean_is_ok_inside_the_prediction_interval():
    """t(4) = 2.776 at 95%; sd .01; a half-width of 2.776 * .01 * sqrt(1/5 + 1/m)."""
    published_maps = dict(zip(("seed1234", "seed1", "seed2", "seed3", "seed4"),
                              0.5 + 0.01 * np.array([-1, 1, -1, 1, 0]), strict=True))  # fmt: skip
    data_sets = [{"data_set": "toy", "users": 5, "items": 9, "rows": 20}]
    theirs = numbers_of(results("caser-s", **published_maps), data_sets=data_sets)

    def verdict(data_sets=data_sets, flags="--d 4", **maps):
        lines = results("caser-s", **maps)
        for line in lines:
            line["flags"] = flags
        own = numbers_of(lines, data_sets=data_sets)
        return "\n".join(report.beside_published(own, theirs, "toy", ["caser-s", "caser-t"]))

    assert "| Caser-S | .5300 (1) | .5000 (5) | OK (expected within .0304) |" in verdict(seed1=0.53)
    assert "| differs by +.0310 (expected" in verdict(seed1=0.531)
    assert "| differs by -.0250 (expected within .0232) |" in verdict(seed1=0.48, seed2=0.47)
    assert "of other flags" in verdict(flags="--d 8", seed1=0.5)
    other = [{"data_set": "toy", "users": 6, "items": 9, "rows": 20}]
    assert "other rows here" in verdict(data_sets=other, seed1=0.5)
    assert report.beside_published(theirs, numbers_of(), "toy", ["caser-s"]) == []


def test_the_papers_numbers_stand_beside_the_papers_data_only():
    for users, told in (("13149", True), ("1", False)):
        data_sets = [{"data_set": "gowalla", **report.PAPERS_GOWALLA, "users": users}]
        lines = report.table_of_metrics(numbers_of(data_sets=data_sets), "gowalla", ["caser-t"])
        assert any("| Caser-T (paper) |  |  | .1408" in line for line in lines) == told


def test_publishing_replaces_the_same_run_and_says_what_changed(tmp_path):
    tests = [{"data_set": "toy", "row": row, "rival": "caser-t", "p": 1}
             for row in ("caser-s", "uniform")]  # fmt: skip
    old = results("caser-s", seed1234=0.5, seed1=0.6, mean=0.55, sd=0.07)
    old[0]["precision@3"] = old[1]["precision@3"] = None
    first = numbers_of(old, comparisons=tests)
    second, said = first.merged(numbers_of(results("caser-s", seed1=0.7)))
    assert said == ["results: toy test caser-s 1: map 0.6 -> 0.7, 1 other columns"]
    assert set(second.results["seed"]) == {"1234", "1", "mean", "sd"}  # one is known by MAP alone
    assert list(second.comparisons["row"]) == ["uniform"]  # the other was of another model
    new = numbers_of(results("caser-s", seed1234=0.5), results("caser-t", seed1=0.1))
    third, said = second.merged(new)
    assert said == ["results: toy test caser-s 1234: 1 other columns", "results: 1 new"]
    third.write(tmp_path)
    again = Numbers.read(tmp_path)
    assert third.merged(again)[1] == []
    rows = list(zip(again.results["row"], again.results["seed"], strict=True))
    assert rows == [("caser-t", "1"), ("caser-s", "1234"), ("caser-s", "1")]


def test_the_documents_say_what_the_published_numbers_say():
    """After a change of reproduction/*.csv: python reproduce_tables.py --documents"""
    texts = documents.document_texts(Numbers.read())
    there = {name: Path(ROOT, name) for name in texts}
    there = {name: path.read_text("utf-8") for name, path in there.items() if path.exists()}
    assert [name for name, text in texts.items() if there.get(name) != text] == []
    pictures = {f"docs/{path.name}" for path in Path(ROOT, "docs").glob("*.png")}
    assert pictures == {name.replace(".csv", ".png") for name in texts if name.endswith(".csv")}


def test_readme_is_for_two_minutes():
    text = Path(ROOT, "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200


def test_every_published_number_has_its_source():
    numbers = Numbers.read()
    assert (numbers.results[["commit", "device", "epochs", "map"]] != "").all().all()
    keys = [column for column in published.COLUMNS["results"][0]]
    assert not numbers.results.duplicated(keys).any()
    assert not any(re.search(r"\+", commit) for commit in numbers.results["commit"])

"""What scripts/bench concludes from its samples: ratios, means, minima, goals."""

import json

import pytest
from benchmark import api, goals, growth, report
from benchmark.goals import GOALS, judge
from benchmark.results import Results, geometric_mean
from benchmark.rows import ROWS, Kind
from benchmark.source import Sizes

SIZES = Sizes(0.01)
MACHINE = {
    "cpu": "a CPU",
    "cores": 2,
    "memory_gb": 4,
    "distribution": "Linux",
    "kernel": "6",
    "file_system": "ext4",
    "python": "3.11",
    "packages": {"trio": "0.30"},
}
SETTINGS = {"repetitions": 3, "warmups": 1, "size_factor": 0.01, "date": "2026-01-01"}


def results_with(ratios: dict[str, float], peer: str = "gocryptfs", otherwise: float = 4.0) -> Results:
    """pixstorefs takes one second in every row, the peer so many; the first and last samples lie far off."""
    results = Results(list(ROWS.values()), ["pixstorefs", peer])
    for row in results.rows:
        ratio = ratios.get(row.name, otherwise)
        for sample in (0.01, 1.0, 50.0):
            results.add(row, "pixstorefs", sample)
        for sample in (0.01, ratio, 50.0):
            results.add(row, peer, sample)
    return results


def verdicts(results: Results) -> dict[str, goals.Verdict]:
    return {verdict.goal.what: verdict for verdict in judge(results)}


def test_geometric_mean():
    """Twice as fast here and half as fast there is as fast."""
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 2.0, 4.0]) == pytest.approx(2.0)
    assert geometric_mean([]) is None


def test_ratio_is_the_peers_median_by_ours():
    """Above one pixstorefs is faster; outliers do not count."""
    results = results_with({"ingest-small": 2.5})
    assert results.ratio(ROWS["ingest-small"], "gocryptfs") == pytest.approx(2.5)


def test_no_ratio_without_both():
    """A row that one system could not do has no ratio, and costs no mean."""
    results = results_with({})
    del results.samples["rename-small"]["gocryptfs"]
    assert results.ratio(ROWS["rename-small"], "gocryptfs") is None
    assert results.mean_ratio("gocryptfs") == pytest.approx(4.0)


def test_mean_and_minimum_are_about_time():
    """Memory, disk and CPU are shown and stay out of the conclusions."""
    resources = [row.name for row in ROWS.values() if row.kind is Kind.RESOURCE]
    results = results_with(dict.fromkeys(resources, 0.001) | {"find-cold": 2.0})
    assert results.worst("gocryptfs") == ("find-cold", pytest.approx(2.0))
    assert 3.8 < results.mean_ratio("gocryptfs") < 4.0


def test_doubtful_row_decides_nothing():
    """A peer that does not sync is fast at fsync: the ratio is shown with a mark, and judged nowhere."""
    results = results_with({"fsync-each": 0.1})
    results.doubt(ROWS["fsync-each"], "gocryptfs", "it does not sync")
    assert results.mean_ratio("gocryptfs") == pytest.approx(4.0)
    assert results.worst("gocryptfs")[1] == pytest.approx(4.0)
    assert "fsync of each file" not in verdicts(results)
    lines = {line[0]: line[1] for line in report.ratios_sheet(results, SIZES).lines}
    assert lines[ROWS["fsync-each"].title_for(SIZES)] == "0.1*"
    assert results.notes == ["gocryptfs, fsync-each: it does not sync"]


def test_goal_is_met_at_its_limit():
    """Exactly as much as asked for is enough, a little less is not."""
    assert verdicts(results_with({"small-writes": 2.0}))["4 KiB writes"].met
    assert not verdicts(results_with({"small-writes": 1.99}))["4 KiB writes"].met


def test_goal_is_judged_by_its_worst_row():
    """One slow row among the chosen ones misses the goal and is named; the mean goes over all."""
    found = verdicts(results_with({"list-warm": 1.5, "rename-small": 0.5}))
    assert (found["warm listings"].row, found["warm listings"].met) == ("list-warm", False)
    assert (found["every row"].row, found["every row"].met) == ("rename-small", False)
    assert found["warm reads"].met
    assert found["geometric mean"].met


def test_goals_are_those_of_pixstorefs():
    """A run without it, or without the peer, judges nothing."""
    results = results_with({})
    results.systems = ["gocryptfs"]
    assert judge(results) == []
    results.systems = ["pixstorefs", "ext4"]
    assert judge(results) == []


@pytest.mark.parametrize("goal", [goal for goal in GOALS if goal.chooses], ids=lambda goal: goal.what)
def test_every_goal_has_rows(goal):
    """A renamed row must not quietly take its goal away."""
    assert any(goal.chooses(row) and row.timed for row in ROWS.values())


def test_unmeasured_systems_go():
    """A peer that could never be mounted has no column of dashes."""
    results = results_with({})
    results.systems.append("cryfs")
    results.drop_unmeasured()
    assert results.peers == ["gocryptfs"]


def test_report_says_the_same_everywhere():
    """Table, Markdown and JSON hold the mean, the minimum and the verdicts."""
    results = results_with({"rename-small": 0.5})
    footer = report.ratios_sheet(results, SIZES).footer
    assert footer[0][1] == report.number(results.mean_ratio("gocryptfs"))
    assert footer[1][1] == "0.5 rename-small"
    text = report.markdown(results, SIZES, MACHINE, SETTINGS)
    assert "| gocryptfs | every row | rename-small | 1 | 0.5 | MISSED |" in text
    document = json.loads(report.as_json(results, SIZES, MACHINE, SETTINGS))
    assert document["minima"]["gocryptfs"] == ["rename-small", 0.5]
    assert {goal["goal"]: goal["met"] for goal in document["goals"]}["every row"] is False
    assert document["rows"][0]["samples"]["pixstorefs"] == [0.01, 1.0, 50.0]


def test_growth_is_told_against_ten_thousand():
    """Each larger size beside 10,000, or beside the first size where that was not measured."""
    sample = {quantity.name: 1.0 for quantity in growth.QUANTITIES}
    sheet = growth.sheet({1000: sample, 10_000: sample, 100_000: sample | {"save": 3.0}})
    assert sheet.header[2:] == ["1,000", "10,000", "100,000", "100,000 / 10,000"]
    assert [line[-1] for line in sheet.lines] == ["3.00"] + ["1.00"] * (len(sheet.lines) - 1)
    assert growth.sheet({500: sample, 2000: sample}).header[-1] == "2,000 / 500"


def test_api_ratio():
    """How many times as fast as Pixstore; nothing where it could not be measured."""
    case = api.Case("save", 100_000, {"pixstorefs": [0.001, 0.002, 0.9], "pixstore": [0.02, 0.012, 0.01]})
    assert case.ratio("pixstorefs") == pytest.approx(6.0)
    del case.seconds["pixstore"]
    assert case.ratio("pixstorefs") is None

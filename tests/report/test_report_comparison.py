"""Runs are read whatever state they are in, put together by kind, and counted right."""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path

import pytest
from fake_runs import CLASSES, fake_run, fake_study

from cscl_fast.report import ReportError, compare, read_run, runs_below
from cscl_fast.report.__main__ import read_all
from cscl_fast.report.answer import answer_rows, headline, sentences
from cscl_fast.report.background import from_preset
from cscl_fast.report.classes import columns
from cscl_fast.report.page import default_title
from cscl_fast.report.series import score_chart
from cscl_fast.studies.spread import Spread, spread
from cscl_fast.trainer.rows import ADAPTED, AVERAGED, SOURCE_ONLY, TARGET_STATISTICS


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def last_of(run: Path, row: str, key: str = "mIoU") -> float:
    with open(run / "evaluation.csv", newline="") as file:
        return [float(r[key]) for r in csv.DictReader(file) if r["row"] == row][-1]


def test_spread_is_the_sample_deviation_and_leaves_nan_out() -> None:
    value = spread([1.0, None, 4.0, math.nan, 7.0])
    assert (value.n, value.mean, value.deviation) == (3, 4.0, 3.0)
    assert plain(value.text()) == "4.0 ± 3.0"
    assert Spread((36.84,)).text() == "36.8"
    assert Spread(()).text() == "–" and math.isnan(Spread(()).mean)
    assert Spread((1.26,)).text(sign=True) == "+1.3"
    assert Spread((-1.26,)).text(sign=True) == "−1.3"
    assert Spread((-0.01,)).text(sign=True) == "0.0"  # no sign that rounding has left alone


def test_a_study_is_grouped_by_what_is_left_out(tmp_path: Path) -> None:
    study = fake_study(tmp_path / "study")
    comparison = compare(read_all([study]))
    assert [kind.name for kind in comparison.kinds] == [
        SOURCE_ONLY, "w/o TC", "w/o CG", "w/o SD", ADAPTED
    ]  # fmt: skip
    assert [len(kind.runs) for kind in comparison.kinds] == [3] * 5
    assert comparison.differing == []  # each seed's own source.pt is no difference
    assert comparison.main.name == ADAPTED and comparison.shown.name == "seed0/full"

    runs = [study / f"seed{s}" / "full" for s in range(3)]
    after = [last_of(run, ADAPTED) for run in runs]
    gains = [a - last_of(run, SOURCE_ONLY) for a, run in zip(after, runs, strict=True)]
    full = comparison.main
    assert full.last(ADAPTED).mean == pytest.approx(statistics.mean(after))
    assert full.last(ADAPTED).deviation == pytest.approx(statistics.stdev(after))
    assert full.gain(SOURCE_ONLY).deviation == pytest.approx(statistics.stdev(gains))
    without = [study / f"seed{s}" / "without-divergence" for s in range(3)]
    within = [last_of(w, ADAPTED) - a for w, a in zip(without, after, strict=True)]
    assert comparison.kinds[3].against(full).values == pytest.approx(within)

    first, *more = sentences(comparison)
    assert plain(first).startswith("Over 3 seeds, CSCL raised the mIoU on the target from ")
    assert plain(full.gain(SOURCE_ONLY).text()) in plain(first)
    expected = f"the symmetric soft divergence (SD) {Spread(tuple(within)).text(sign=True)} points"
    assert plain(expected) in plain(more[-1])
    rows = answer_rows(comparison)
    assert plain(rows[-1][4]) == plain(full.last(ADAPTED).text())
    assert rows[0][4:] == ["–"] * 5  # source only has no adaptation


def test_another_setting_is_another_kind(tmp_path: Path) -> None:
    for seed in range(2):
        fake_run(tmp_path / f"a{seed}", seed=seed)
        elsewhere = {"threads": 4, "source__cache_folder": f"/cache{seed}"}
        fake_run(tmp_path / f"b{seed}", seed=seed, adaptation__gamma=0.5, **elsewhere)
    comparison = compare(read_all([tmp_path]))
    assert [k.name for k in comparison.kinds] == ["CSCL", "CSCL, gamma 0.5"]
    assert comparison.main.name == "CSCL"  # as the preset has it
    assert comparison.differing == ["adaptation.gamma"]  # not where and how it was computed


def test_best_is_of_both_networks_and_says_which(tmp_path: Path) -> None:
    run = read_run(fake_run(tmp_path / "run"))
    scores = [(s["mIoU"], step, row) for row in (ADAPTED, AVERAGED) for step, s in run.scores(row)]
    best = max(scores)
    found = run.best()
    assert found is not None and (found[2]["mIoU"], found[0], found[1]) == best
    said = plain(" ".join(sentences(compare([run]))))
    assert f"{best[0]:.1f} % (step {best[1]}" in said
    assert ("averaged weights)" in said) == (best[2] == AVERAGED)


def test_a_single_run_that_lost(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    text = (run / "evaluation.csv").read_text()
    lines = [line for line in text.splitlines() if ",CSCL," not in line]
    values = ",".join("20.000" for _ in CLASSES)
    lines.append(f"adaptation,200,CSCL,20.000,{values}")
    (run / "evaluation.csv").write_text("\n".join(lines) + "\n")
    comparison = compare([read_run(run)])
    first = plain(sentences(comparison)[0])
    before = last_of(run, SOURCE_ONLY)
    expected = f"lowered the mIoU on the target from {before:.1f} % (source only) to 20.0 %, by "
    assert expected in first and f"by {before - 20:.1f} points" in first
    assert headline(comparison)[2][1] == f"−{before - 20:.1f}"


def test_unfinished_runs_do_not_count_beside_finished_ones(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", seed=0)
    fake_run(tmp_path / "b", seed=1, until=100)
    comparison = compare(read_all([tmp_path]))
    assert comparison.main.last(ADAPTED).values == (
        pytest.approx(last_of(tmp_path / "a", ADAPTED)),
    )
    said = sentences(comparison)[-1]
    assert "1 of 2 runs are not finished" in said
    assert "b (adaptation step 100 of 200)" in said

    alone = compare([read_run(tmp_path / "b")])
    assert alone.main.last(ADAPTED).n == 1
    assert sentences(alone)[0].startswith("So far (adaptation step 100 of 200), CSCL raised")


def test_a_half_done_full_run_is_compared_with_nothing(tmp_path: Path) -> None:
    fake_run(tmp_path / "full", until=50)
    fake_run(tmp_path / "without", without=("divergence",))
    comparison = compare(read_all([tmp_path]))
    assert comparison.main.name == ADAPTED
    assert comparison.kinds[0].against(comparison.main).n == 0
    said = sentences(comparison)
    assert not any("leaving a part out" in sentence for sentence in said)
    assert said[-1].startswith("1 of 2 runs are not finished: full (adaptation step 50 of 200).")
    assert "a row that has only such is marked “so far” and compared with no other" in said[-1]
    assert [row[0] for row in answer_rows(comparison)] == ["w/o SD", "CSCL, so far"]
    assert "CSCL, so far" in [column.title for column in columns(comparison)]


def test_the_full_method_has_begun_and_an_ablation_is_finished(tmp_path: Path) -> None:
    fake_run(tmp_path / "full", until=10)
    fake_run(tmp_path / "without", without=("transfer",))
    comparison = compare(read_all([tmp_path]))
    assert comparison.main.name == "w/o TC"
    first = sentences(comparison)[0]
    assert first.startswith("CSCL without the critical transfer raised the mIoU on the target")

    alone = fake_run(tmp_path / "more" / "source", source_only=True)
    begun = fake_run(tmp_path / "more" / "full", until=10)
    (begun / "evaluation.csv").unlink()
    first = plain(sentences(compare(read_all([tmp_path / "more"])))[0])
    assert f"reaches {last_of(alone, SOURCE_ONLY):.1f} % mIoU on the target" in first
    assert first.endswith("; there is no score of the adaptation yet.")


def test_before_and_after_are_of_the_same_runs(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / str(seed), seed=seed, until=50) for seed in range(2)]
    fake_run(tmp_path / "2", seed=2, until=10)
    comparison = compare(read_all([tmp_path]))
    main = comparison.main
    before, after = main.last(SOURCE_ONLY), main.last(ADAPTED)
    assert before.n == after.n == main.gain(SOURCE_ONLY).n == 2
    assert after.mean - before.mean == pytest.approx(main.gain(SOURCE_ONLY).mean)
    assert before.mean == pytest.approx(statistics.mean(last_of(r, SOURCE_ONLY) for r in runs))
    assert sentences(comparison)[0].startswith("So far, over 2 seeds, CSCL raised")
    assert answer_rows(comparison)[0][1] == "2"


def test_a_finished_run_without_a_score_before_is_named(tmp_path: Path) -> None:
    for seed in range(3):
        run = fake_run(tmp_path / f"run{seed}", seed=seed)
    lines = (run / "evaluation.csv").read_text().splitlines(keepends=True)
    (run / "evaluation.csv").write_text("".join(x for x in lines if ",source only," not in x))
    comparison = compare(read_all([tmp_path]))
    assert comparison.main.last(ADAPTED).n == comparison.main.last(SOURCE_ONLY).n == 2
    assert sentences(comparison)[-1] == "Finished, but without a score before or after: run2."


def test_two_presets_are_told_apart(tmp_path: Path) -> None:
    names = ["gta5-cityscapes", "gta5-cityscapes-vgg16"]
    for name in names:
        fake_run(tmp_path / name, preset=name)
    fake_run(tmp_path / "without", preset=names[1], without=("transfer",))
    comparison = compare(read_all([tmp_path]))
    assert [kind.name for kind in comparison.kinds] == [
        f"w/o TC, preset {names[1]}", *(f"CSCL, preset {name}" for name in names)
    ]  # fmt: skip
    titles = [column.title for column in columns(comparison)]
    for name in names:
        assert f"source only, preset {name}" in titles
        assert f"source only, target statistics, preset {name}" in titles
        assert f"source only, preset {name}" in score_chart(comparison)
    said = sentences(comparison)
    assert said[0].startswith(f"CSCL (preset {names[0]}) raised")
    assert not any("leaving a part out" in sentence for sentence in said)  # it is the other's
    assert default_title(comparison) == f"CSCL, presets {names[0]}, {names[1]}, 3 runs"


def test_kinds_whose_words_are_the_same_have_the_names_of_their_runs(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", adaptation__gamma=0.5)
    fake_run(tmp_path / "b", adaptation__gamma="0.5")
    kinds = compare(read_all([tmp_path])).kinds
    assert [kind.name for kind in kinds] == ["CSCL, gamma 0.5, run a", "CSCL, gamma 0.5, run b"]


def test_what_auto_became_is_no_difference(tmp_path: Path) -> None:
    run = read_run(fake_run(tmp_path / "a", model__batchnorm_affine="trained"))
    assert from_preset(run) == []
    fake_run(tmp_path / "b", model__init="imagenet", model__batchnorm_affine="frozen")
    comparison = compare(read_all([tmp_path]))
    assert [k.name for k in comparison.kinds] == ["CSCL", "CSCL, model.init imagenet"]


def test_places_of_runs(tmp_path: Path) -> None:
    source = read_run(fake_run(tmp_path / "source", source_only=True))
    assert source.finished and source.place == "finished"
    assert plain(sentences(compare([source]))[0]).startswith(
        "Trained on the source alone the network"
    )
    begun = fake_run(tmp_path / "begun")
    for name in ("evaluation.csv", "thresholds.csv", "kept.csv", "gap.csv"):
        (begun / name).unlink()
    text = (begun / "metrics.csv").read_text().splitlines()
    (begun / "metrics.csv").write_text("\n".join(text[:5]) + "\nwarmup,0")  # the last row is torn
    run = read_run(begun)
    assert run.place == "warm-up step 40 of 1500"
    assert run.classes == [] and sentences(compare([run]))[0] == "There is no score yet."


@pytest.mark.parametrize("torn", ["adaptation,100,CSCL,3", "adaptation,100,CS", "adaptation"])
def test_a_row_that_was_torn_off_is_no_score(tmp_path: Path, torn: str) -> None:
    run = fake_run(tmp_path / "run", until=50)
    with open(run / "evaluation.csv", "a") as file:
        file.write(torn)
    assert [step for step, _ in read_run(run).scores(ADAPTED)] == [50]


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", classes={"road": 80, "car": 20})
    fake_run(tmp_path / "b", classes={"road": 80, "tram": 20, "sky": 9})
    with pytest.raises(ReportError) as caught:
        compare(read_all([tmp_path]))
    for part in ("has 2 classes", "has 3 (", f"only {tmp_path / 'a'}: car", ": tram, sky"):
        assert part in str(caught.value)
    fake_run(tmp_path / "c", classes={"car": 20, "road": 80})
    with pytest.raises(ReportError, match="the same classes in another order"):
        compare(read_all([tmp_path / "a", tmp_path / "c"]))


def test_finding_runs(tmp_path: Path) -> None:
    study = fake_study(tmp_path / "study", seeds=1)
    (study / "config.yaml").write_text("ablation: true\n")  # a study's own is no run
    assert len(runs_below(study)) == 5
    assert runs_below(study / "seed0" / "full") == [study / "seed0" / "full"]
    twice = read_all([study, study / "seed0" / "full"])
    assert len(twice) == 5
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match=r"no run in .*empty nor below it"):
        runs_below(tmp_path / "empty")
    with pytest.raises(ReportError, match="missing is not a folder; a run folder is needed"):
        runs_below(tmp_path / "missing")


def test_a_configuration_that_is_none(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    (run / "config.yaml").write_text("a: [1")
    with pytest.raises(ReportError, match=r"config\.yaml is not valid YAML"):
        read_run(run)


def test_the_statistics_of_the_target_are_told_apart(tmp_path: Path) -> None:
    comparison = compare([read_run(fake_run(tmp_path / "run"))])
    gain = comparison.main.gain(SOURCE_ONLY, TARGET_STATISTICS)
    assert gain.mean == pytest.approx(4.2, abs=0.01)  # what the fake network gains by them
    assert "change it by +4.2 points" in plain(sentences(comparison)[1])

"""The page: whole in itself, right in its numbers, and never broken by what a run lacks."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import yaml
from fake_runs import CLASSES, COLORS, fake_run, fake_study
from page_parser import Page
from PIL import Image

from cscl_fast.report import compare, page, read_run
from cscl_fast.report.__main__ import main, read_all
from cscl_fast.report.wording import in_words, shortened, shortened_yaml
from cscl_fast.scenes import SCENE_CLASS_COLORS, SCENE_CLASS_NAMES


def of(*runs: Path) -> Page:
    text = page(compare(read_all(runs)))
    check(text)
    return Page(text)


def check(text: str) -> None:
    """What holds for every page: nothing from outside, every link inside, no script."""
    parsed = Page(text)
    assert "script" not in parsed.tags
    for link in parsed.links:
        assert link.startswith(("#", "data:")), link[:80]
        if link.startswith("#"):
            assert link[1:] in parsed.identifiers
    assert len(set(parsed.identifiers)) == len(parsed.identifiers)
    assert all(image.get("alt") for image in parsed.images)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!data:)", text)
    assert ">nan" not in text and "nan<" not in text and '"nan' not in text


def test_everything_that_a_run_leaves_is_shown(tmp_path: Path) -> None:
    shown = of(fake_run(tmp_path / "run"))
    for part in (
        "mIoU on the evaluation images", "Domain gap: balanced accuracy of D",
        "Domain gap: divergence of the centroids", "Segmentation losses, Eq. 7",
        "Symmetric soft divergence, Eq. 13", "Transferability P, mean", "threshold δ",
        "portion S_A",
        "kept share, %", "label network and pseudo-labels", "2,600 ms a step", "kept pseudo-labels",
        "Everything is as in the preset small", "a processor <with> brackets", "bicyclist",
    ):  # fmt: skip
        assert part in shown.text, part
    assert "ot recorded" not in shown.text
    assert len(shown.images) == 2 * 5 + 2 * 4  # tiles of two panels and two maps


def test_runs_of_earlier_versions(tmp_path: Path) -> None:
    shown = of(fake_run(tmp_path / "run", old=True))
    for part in ("gap.csv", "kept.csv", "transferability/", "timing.json", "environment.json"):
        assert re.search(rf"[Nn]ot recorded \({re.escape(part)}", shown.text), part
    assert "From metrics.csv: Source-only training: 1490 steps in 1,341 s" in shown.text


def test_colours_are_those_of_the_run_wherever_the_report_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another data set may lie where the run's was, in classes of the same names."""
    run = fake_run(tmp_path / "run", source__root="data")
    text = (run / "classes.json").read_text()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "classes.json").write_text(text.replace("90", "7"))
    monkeypatch.chdir(tmp_path)
    true = dict(zip(CLASSES, COLORS, strict=True))

    def swatches(*runs: Path) -> set[str]:
        found = page(compare(read_all(runs)))
        return set(re.findall(r'class="swatch" style="background:rgb(\([^)]*\))', found))

    assert swatches(run) == {str(color) for color in true.values()}
    (run / "classes.json").unlink()  # as in runs of earlier versions
    assert swatches(run) == set()
    assert "The colours of the classes are not recorded (classes.json)" in of(run).text
    named = fake_run(tmp_path / "named", source__root=str(tmp_path / "data"), old=True)
    assert swatches(named) == {str((r, g, 7)) for r, g, _ in true.values()}
    drawn = fake_run(tmp_path / "drawn", classes=dict.fromkeys(SCENE_CLASS_NAMES, 30.0),
                     source__kind="scenes", old=True)  # fmt: skip
    assert swatches(drawn) == {str(color) for color in SCENE_CLASS_COLORS}


@pytest.mark.parametrize("lost", range(10))
def test_any_file_may_be_missing_or_torn(tmp_path: Path, lost: int) -> None:
    names = ("metrics.csv", "evaluation.csv", "thresholds.csv", "kept.csv", "gap.csv",
             "timing.json", "environment.json", "classes.json", "panels/target_0.png",
             "transferability/target_1.png")  # fmt: skip
    run = fake_run(tmp_path / "run")
    file = run / names[lost]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    of(run)
    file.write_bytes(b"\0\xff\xfe,\n1")
    of(run)
    file.write_bytes(b"")
    of(run)
    file.unlink()
    of(run)


@pytest.mark.parametrize("parts", [("transfer",), ("pseudo-labels",), ("divergence",)])
def test_ablations(tmp_path: Path, parts: tuple[str, ...]) -> None:
    shown = of(fake_run(tmp_path / "run", without=parts))
    assert ("This run has no transfer part" in shown.text) == (parts == ("transfer",))
    assert ("Symmetric soft divergence, Eq. 13" in shown.text) == (parts != ("divergence",))


def test_source_only_and_unfinished(tmp_path: Path) -> None:
    alone = of(fake_run(tmp_path / "source", source_only=True))
    assert "A source-only run has no pseudo-labels." in alone.text
    assert "These" not in alone.text
    training = fake_run(tmp_path / "training" / "a", source_only=True)
    fake_run(tmp_path / "training" / "b", source_only=True, seed=1)
    for run in (training, tmp_path / "training" / "b"):
        (run / "evaluation.csv").unlink()
    begun = of(tmp_path / "training")
    assert "There is no score yet." in begun.text and "– %" not in begun.text
    assert "2 of 2 runs are not finished: a (warm-up step 1500 of 1500), b" in begun.text
    part = of(fake_run(tmp_path / "part", until=100, pictures=False))
    assert "So far (adaptation step 100 of 200), CSCL raised" in part.text
    begun = tmp_path / "begun"
    fake_run(begun)
    for name in ("metrics.csv", "evaluation.csv", "thresholds.csv", "kept.csv", "gap.csv"):
        (begun / name).write_text("phase,step\n")
    assert "There is no score yet." in of(begun).text


def test_a_class_that_was_never_kept_has_no_share(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", classes={"road": 60.0, "pole": 0.0})
    with open(run / "kept.csv", newline="") as file:
        shares = [float(row["road"]) for row in csv.DictReader(file)]
    shown = of(run).text
    assert "pole 0.00 0.00 0.00" in shown
    assert re.search(rf"road [\d.]+ [\d.]+ {100 * max(shares):.2f} ", shown)


def test_names_that_look_like_html(tmp_path: Path) -> None:
    odd = "<script>alert(\"1\")</script> & 'quoted'"
    classes = {"road": 50.0, odd: 20.0, "Straße 道": 10.0, "x" * 200: 1.0}
    run = fake_run(tmp_path / "<b>run & co", classes=classes)
    (run / "panels" / "target_0.png").rename(run / "panels" / "<img onerror=x>.png")
    text = page(compare([read_run(run)]), title="<i>title</i>")
    check(text)
    shown = Page(text)
    assert odd in shown.text and "<i>title</i>" in shown.text and "Straße 道" in shown.text
    assert "<script" not in text
    assert "<i>title" not in text and "<img onerror" not in text and "<b>run" not in text


def test_one_class_and_classes_without_a_score(tmp_path: Path) -> None:
    of(fake_run(tmp_path / "one", classes={"thing": 40.0}))
    shown = of(fake_run(tmp_path / "two", classes={"road": 60.0, "bus": math.nan, "sky": 70.0}))
    assert re.search(r"bus – – – – –", shown.text)


def test_without_labels_to_evaluate_with_there_is_no_score(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "none", classes={"road": math.nan, "sky": math.nan})
    said = "There is no score: the evaluation images have no labels."
    assert of(run).text.count(said) == 2  # as the answer, and for the classes
    assert main([str(run), "--markdown", str(tmp_path / "r.md")]) == 0
    text = (tmp_path / "r.md").read_text()
    assert text.count(said) == 2 and "yet" not in text


def test_a_study(tmp_path: Path) -> None:
    study = fake_study(tmp_path / "study")
    text = page(compare(read_all([study])))
    check(text)
    shown = Page(text)
    assert "Over 3 seeds" in shown.text and "All 15 runs" in shown.text
    assert "Shown: run seed0/full (CSCL)." in shown.text
    # Without pictures worth speaking of: what fifteen runs add is charts and tables.
    assert len(text) < 400_000


def test_paper_column(tmp_path: Path) -> None:
    own = of(fake_run(tmp_path / "own"))
    assert "No column of the paper" in own.text
    names = dict.fromkeys(
        ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
         "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
         "motorcycle", "bicycle"), 30.0)  # fmt: skip
    run = fake_run(tmp_path / "paper", classes=names, preset="gta5-cityscapes",
                   model__architecture="deeplabv2-resnet101")  # fmt: skip
    shown = of(run)
    assert "CSCL, paper" in shown.text
    assert "What differs from the preset gta5-cityscapes" in shown.text


def test_the_thirteen_classes_of_synthia(tmp_path: Path) -> None:
    """16 classes have a second mean, which is no class."""
    run = fake_run(tmp_path / "run")
    lines = (run / "evaluation.csv").read_text().splitlines()
    lines[0] = lines[0].replace("mIoU,", "mIoU,mIoU*,")
    lines[1:] = [re.sub(r"^((?:[^,]*|\"[^\"]*\"),\d+,(?:\"[^\"]*\"|[^,]*),)", r"\g<1>77.000,", line)
                 for line in lines[1:]]  # fmt: skip
    (run / "evaluation.csv").write_text("\n".join(lines) + "\n")
    comparison = compare([read_run(run)])
    assert comparison.classes == list(CLASSES)
    shown = of(run)
    assert shown.text.count("mIoU* ") == 1


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/jane/data/mine/source", "…/mine/source"),
        ("/home/Jane Doe/projects/data/source", "…/data/source"),
        ("/home/jane, the 2nd/mine", "…/mine"),
        ("/home/jane", "~"),
        ("~jane/a/b/c", "…/b/c"),
        ("C:\\Users\\Jane\\data\\source", "…/data/source"),
        ("/mnt/jane/a/b", "…/a/b"),
        ("/data/source", "/data/source"),
        ("relative/mine/data", "relative/mine/data"),
        ("imagenet", "imagenet"),
    ],
)
def test_of_a_path_only_its_end_is_shown(path: str, shown: str) -> None:
    assert shortened(path) == in_words(path) == shown
    assert in_words([path, 3]) == f"{shown} 3"
    text = yaml.safe_dump({"source": {"root": path}, "seed": 3, "all": [path]})
    assert yaml.safe_load(shortened_yaml(text)) == {
        "source": {"root": shown}, "seed": 3, "all": [shown]
    }  # fmt: skip


def test_paths_of_the_machine_stay_at_home(tmp_path: Path) -> None:
    """Nor do they get into the names of kinds, or where a picture is torn."""
    folder = tmp_path / "somebody"
    run = fake_run(folder / "a", source__root="/home/some body/data/mine/source",
                   target__root="/home/somebody", evaluation__root="relative/data")  # fmt: skip
    other = fake_run(folder / "b", source__root="/home/some body/data/other/source")
    for torn in (run, other):
        (torn / "panels" / "target_0.png").write_bytes(b"torn")
    shown = of(run, other)
    assert "source.root …/mine/source" in shown.text and "relative/data" in shown.text
    assert "target_0.png cannot be shown (UnidentifiedImageError)" in shown.text
    text = page(compare(read_all([run, other])))
    markdown = tmp_path / "r.md"
    assert main([str(run), "--markdown", str(markdown)]) == 0
    assert "…/mine/source" in markdown.read_text()
    for written in (text, (run / "report.html").read_text(), markdown.read_text()):
        assert not re.search("some ?body", written)


def test_large_pictures_are_made_small(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    noise = Image.effect_noise((4000, 900), 60).convert("RGB")
    noise.save(run / "panels" / "wide.png")
    text = page(compare([read_run(run)]))
    check(text)
    assert (run / "panels" / "wide.png").stat().st_size > 5e6
    assert len(text) < 1.5e6  # at 1600 pixels of pure noise, the worst there is


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fake_run(tmp_path / "run")
    assert main([str(run)]) == 0
    check((run / "report.html").read_text(encoding="utf-8"))
    output = tmp_path / "new" / "folder" / "r.html"
    markdown = tmp_path / "docs" / "r.md"
    options = ["--output", str(output), "--markdown", str(markdown), "--title", "T itle"]
    assert main([str(run), *options]) == 0
    assert "T itle" in Page(output.read_text(encoding="utf-8")).text and markdown.exists()

    assert main([str(tmp_path / "missing")]) == 2
    assert "cscl_fast.report: " in capsys.readouterr().err
    assert main([str(run), "--outptu", "x"]) == 2
    assert "nearest valid one is 'output'" in capsys.readouterr().err
    fake_run(tmp_path / "other", classes={"road": 1.0})
    assert main([str(run), str(tmp_path / "other"), "--output", str(output)]) == 2
    assert "one class list" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([str(run), "--output", str(tmp_path / "file" / "r.html")]) == 1
    assert main([]) == 2


def test_several_runs_write_into_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [str(fake_run(tmp_path / name, seed=i)) for i, name in enumerate("ab")]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(runs) == 0
    assert (tmp_path / "here" / "report.html").exists()


def test_markdown_summary(tmp_path: Path) -> None:
    study = fake_study(tmp_path / "study")
    markdown = tmp_path / "results" / "study.md"
    assert (
        main([str(study), "--output", str(tmp_path / "r.html"), "--markdown", str(markdown)]) == 0
    )
    text = markdown.read_text(encoding="utf-8")
    assert text.startswith("# CSCL, preset small, 15 runs\n\nOver 3 seeds, CSCL raised")
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == 3
    for found in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in found.splitlines()}
        assert len(cells) == 1, found
    assert len(tables[1].splitlines()) == 2 + 1 + len(CLASSES)
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 4
    for name in pictures:
        assert 0 < (markdown.parent / name).stat().st_size < 150_000
    chart = (markdown.parent / pictures[0]).read_text(encoding="utf-8")
    assert 'xmlns="http://www.w3.org/2000/svg"' in chart and "<style>" in chart
    ElementTree.fromstring(chart)  # is read strictly where it stands alone


def test_pictures_of_a_summary_are_found_whatever_it_is_called(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    (run / "panels" / "target_0.png").rename(run / "panels" / "a (1) 50% [x] é.png")
    markdown = tmp_path / "my notes (1).md"
    assert main([str(run), "--markdown", str(markdown)]) == 0
    links = re.findall(r"^!\[.*\]\((.*)\)$", markdown.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(links) == 4
    for link in links:
        assert not re.search(r"[\s()<>\[\]]", link) and (tmp_path / unquote(link)).is_file()

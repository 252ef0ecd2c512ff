"""Scoring and using a checkpoint."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from trainer_worlds import CLASSES, rows

from cscl_fast import evaluate, predict
from cscl_fast.data import DatasetConfig, load_image
from cscl_fast.models.deeplab_v2 import DeepLabV2
from cscl_fast.train import main as train_main
from cscl_fast.trained import from_plain, load_trained, to_plain

NAMES = [name for name, _ in CLASSES]


@pytest.fixture(scope="module")
def last(finished: Path) -> Path:
    return finished / "checkpoints" / "last.pt"


# --------------------------------------------------------------------------------------- evaluate


def test_the_score_is_that_of_the_runs_own_last_evaluation(
    finished: Path, last: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = rows(finished / "evaluation.csv")
    table = tmp_path / "score.csv"
    assert evaluate.main([str(last), "--csv", str(table), "--batch-size", "4"]) == 0
    found = dict(list(csv.reader(table.open()))[1:])
    expected = next(r for r in reversed(own) if r["row"] == "CSCL")
    assert found == {name: expected[name] for name in ("mIoU", *NAMES)}
    shown = capsys.readouterr().out
    assert "last.pt" in shown and f"written to {table}" in shown
    # The source-only checkpoint is the row "source only", and the best one the best.
    assert evaluate.main([str(last.with_name("source.pt")), "--csv", str(table)]) == 0
    assert dict(csv.reader(table.open()))["mIoU"] == own[0]["mIoU"]
    assert evaluate.main([str(last.with_name("best.pt")), "--csv", str(table)]) == 0
    best = max((r["mIoU"] for r in own[2:]), key=float)
    assert dict(csv.reader(table.open()))["mIoU"] == best


def test_the_data_may_be_another(last: Path, worlds: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a.pt"
    shutil.copy(last, copy)
    other = ["--data.split", "train", "--data.root", str(worlds / "source"), "--data.limit", "3"]
    for options in ([str(copy), *other], [*other, str(copy)]):  # in any order
        score = tmp_path / "a.evaluation.csv"
        score.unlink(missing_ok=True)
        assert evaluate.main(options) == 0
        values = dict(csv.reader(score.open()))
        trained = load_trained(copy, torch.device("cpu"))
        assert trained.data.split == "val"
        matrix = np.zeros((3, 3))
        for name in ("p0", "p4", "p7"):  # evenly spread
            image = load_image(worlds / "source" / "images" / "train" / f"{name}.png", trained.data)
            with torch.no_grad():
                logits = trained.model(image[None])
            label = np.asarray(Image.open(worlds / f"source/labels/train/{name}.png"))
            found = F.interpolate(logits, label.shape, mode="bilinear").argmax(1)[0].numpy()
            for truth, prediction in zip(label[label < 3], found[label < 3], strict=True):
                matrix[truth, prediction] += 1
        union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        expected = 100 * matrix.diagonal() / union
        assert [float(values[n]) for n in NAMES] == pytest.approx(expected, abs=2e-2)


def test_a_drawn_world_is_the_one_of_the_runs_seed(
    tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "demo"
    options = ["--source-only", "--warmup.steps", "2", "--warmup.batch-size", "1", "--seed", "3"]
    options += ["--source.count", "2", "--target.count", "4", "--evaluation.count", "3"]
    assert train_main([*options, "--threads", "1", "--run", str(run)]) == 0
    source = run / "checkpoints" / "source.pt"
    assert load_trained(source, torch.device("cpu")).data.scene_seed == 3
    assert evaluate.main([str(source)]) == 0
    found = dict(csv.reader((run / "checkpoints" / "source.evaluation.csv").open()))
    assert found["mIoU"] == rows(run / "evaluation.csv")[0]["mIoU"]
    # Somebody's own data is not passed over because the run's was drawn.
    capsys.readouterr()
    assert evaluate.main([str(source), "--data.root", "mine"]) == 2
    said = capsys.readouterr().err
    assert "data.root is mine, but kind is 'scenes'" in said and "--data.kind folder" in said


def test_a_data_set_is_kept_in_a_checkpoint_as_it_was(tmp_path: Path) -> None:
    everything = DatasetConfig(
        *("folder", tmp_path / "data", "val", "Rome", tmp_path / "list.txt"),
        **{"size": (4, 6), "cache": "disk", "cache_folder": tmp_path / "cache"},
    )
    for config in (everything, DatasetConfig()):
        assert from_plain(to_plain(config)) == config


def test_evaluate_refuses(
    last: Path, worlds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(worlds / "target", tmp_path / "target")
    entries = json.loads((tmp_path / "target" / "classes.json").read_text())
    entries["classes"][0]["name"] = "street"
    (tmp_path / "target" / "classes.json").write_text(json.dumps(entries))
    for options, code, expected in (
        (["--data.root", str(tmp_path / "target")], 1, "street"),
        (["--data.root", str(tmp_path / "none")], 1, f"is missing: {tmp_path / 'none'}"),
        (["--data.no-use-labels"], 1, "labels are needed here, but use_labels is false"),
        (["--batch-size", "0"], 1, "batch_size is 0; it is at least 1"),
        (["--data.rot", "x"], 2, "unknown key 'data.rot'; the nearest valid one is 'data.root'"),
        (["--batch-size", "two"], 2, "--batch-size"),
        (["--device", "gpu"], 2, "device is gpu, which cannot be used"),
    ):
        assert evaluate.main([str(last), *options]) == code, options
        message = capsys.readouterr().err
        assert expected in message and "Traceback" not in message
    assert evaluate.main([]) == 2
    assert evaluate.main(["--help"]) == 0


def test_a_score_is_not_lost_where_it_cannot_be_written(
    last: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "new" / "folder" / "score.csv"
    assert evaluate.main([str(last), "--csv", str(table)]) == 0
    assert "mIoU" in dict(csv.reader(table.open()))
    # What fails only when it is written: the table has been printed.
    scored = evaluate.evaluate

    def then_in_the_way(*arguments):
        table.unlink()
        table.mkdir()
        return scored(*arguments)

    capsys.readouterr()
    monkeypatch.setattr(evaluate, "evaluate", then_in_the_way)
    assert evaluate.main([str(last), "--csv", str(table)]) == 1
    said = capsys.readouterr()
    assert "last.pt" in said.out and str(table) in said.err
    # What can be known is known before anything is evaluated.
    monkeypatch.delattr(evaluate, "evaluate")
    for file in (tmp_path, last / "score.csv"):
        assert evaluate.main([str(last), "--csv", str(file)]) == 1
        message = capsys.readouterr().err
        assert f"{file} cannot be written" in message and "--csv FILE" in message


# ---------------------------------------------------------------------------------------- predict


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images of several sizes, kinds and folders."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    for name, size, mode in (
        ("a.png", (48, 64), "RGB"),
        ("day/a.jpg", (60, 50), "RGB"),
        ("day/deep/b.v2.png", (31, 47), "L"),
        ("night/a.png", (100, 90), "RGBA"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        channels = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
        pixels = generator.integers(0, 256, (*(s // 6 + 1 for s in size), *channels), np.uint8)
        Image.fromarray(pixels).resize((size[1], size[0])).save(path)
    (folder / "readme.txt").write_text("no image")
    return folder


def test_label_maps_are_the_models_argmax_at_the_images_own_size(
    last: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert predict.main([str(last), str(pictures), str(out), "--opacity", "0.25"]) == 0
    expected_names = {"a.png", "day/a.png", "day/deep/b.v2.png", "night/a.png"}
    for part in ("labels", "overlays"):
        found = {p.relative_to(out / part).as_posix() for p in (out / part).rglob("*.png")}
        assert found == expected_names
    trained = load_trained(last, torch.device("cpu"))
    palette = np.array([color for _, color in CLASSES])
    for path in pictures.rglob("*"):
        if path.suffix not in (".png", ".jpg"):
            continue
        picture = Image.open(path).convert("RGB")
        with torch.no_grad():
            logits = trained.model(load_image(path, trained.data)[None])
        size = (picture.height, picture.width)
        expected = F.interpolate(logits, size=size, mode="bilinear").argmax(1)[0].numpy()
        relative = path.relative_to(pictures).with_suffix(".png")
        label = Image.open(out / "labels" / relative)
        assert label.mode == "L" and label.size == picture.size
        assert np.array_equal(np.asarray(label), expected)
        overlay = np.asarray(Image.open(out / "overlays" / relative)).astype(float)
        mixed = 0.75 * np.asarray(picture) + 0.25 * palette[expected]
        assert np.abs(overlay - mixed).max() <= 0.51


def test_predicting_below_the_images_does_not_label_the_labels(last: Path, pictures: Path) -> None:
    for _ in range(2):
        assert predict.main([str(last), str(pictures), str(pictures / "out")]) == 0
    assert len(list((pictures / "out").rglob("*.png"))) == 2 * 4


def test_two_images_never_share_a_label_file(
    last: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(pictures / "day" / "a.jpg", pictures / "a.jpg")
    assert predict.main([str(last), str(pictures), str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert str(pictures / "a.jpg") in message and str(pictures / "a.png") in message
    assert "would both become a.png; rename one of them" in message
    assert not (tmp_path / "out").exists()


def test_running_out_of_memory_is_no_traceback(
    last: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(DeepLabV2, "encode", lambda *_: torch.empty(1 << 46))
    for program, options, less in (
        (evaluate, [], "--batch-size 1"),
        (predict, [str(pictures), str(tmp_path / "out")], "smaller images"),
    ):
        assert program.main([str(last), *options]) == 1
        message = capsys.readouterr().err
        assert message.startswith(f"{program.__name__}: out of memory: can't allocate memory")
        assert less in message and "Traceback" not in message
    monkeypatch.setattr(DeepLabV2, "encode", lambda *_: torch.empty(-1))
    for program, options in ((evaluate, []), (predict, [str(pictures), str(tmp_path / "out")])):
        with pytest.raises(RuntimeError, match="negative dimension"):
            program.main([str(last), *options])


def test_predict_refuses(
    last: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "out")
    for options, code, expected in (
        ([str(tmp_path / "none"), out], 1, f"is missing: {tmp_path / 'none'}"),
        ([str(tmp_path / "empty"), out], 1, f"{tmp_path / 'empty'} holds no image"),
        ([str(pictures), out, "--opacity", "2"], 2, "opacity is 2.0; it is between 0 and 1"),
        ([str(pictures), out, "--opacty", "1"], 2, "the nearest valid one is 'opacity'"),
        ([str(pictures), str(tmp_path / "file")], 1, str(tmp_path / "file")),
        ([str(pictures)], 2, "Required options"),
    ):
        assert predict.main([str(last), *options]) == code, options
        message = capsys.readouterr().err
        assert expected in message and "Traceback" not in message
    damaged = pictures / "day" / "broken.png"
    damaged.write_bytes((pictures / "a.png").read_bytes()[:100])
    assert predict.main([str(last), str(pictures), out]) == 1
    assert str(damaged) in capsys.readouterr().err

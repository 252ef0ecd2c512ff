"""Bad input of every kind: a readable sentence, an exit code, and nothing good is lost."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trainer_worlds import SIZE, TinyModel, arguments, fails, load, rows, write_worlds

from cscl_fast.cli import known_options, parse
from cscl_fast.config import Config
from cscl_fast.data import DataError
from cscl_fast.train import main
from cscl_fast.trainer.run import Run
from cscl_fast.trainer.world import World

pytestmark = pytest.mark.usefixtures("tiny")


# ------------------------------------------------------------------------------------------- data


def test_a_missing_root_leaves_no_folder_in_the_way(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    wrong = arguments(own, run, "--source.root", str(own / "sauce"))
    message = fails(capsys, wrong)
    assert f"is missing: {own / 'sauce'}" in message and "source/" in message
    assert not run.exists()
    # So the corrected command is not refused because "there is a run already".
    assert main(arguments(own, run, "--source-only", "--warmup.steps", "1")) == 0


@pytest.mark.parametrize("section", ["source", "evaluation"])
def test_a_missing_label_is_found_before_the_first_step(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str
) -> None:
    folder = {"source": "source/labels/train", "evaluation": "target/labels/val"}[section]
    (own / folder / "p3.png").unlink()
    message = fails(capsys, arguments(own, tmp_path / "run"))
    assert "1 label missing" in message and str(own / folder / "p3.png") in message
    assert not (tmp_path / "run").exists()


def test_a_source_without_labels_is_refused(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, arguments(own, tmp_path / "run", "--source.no-use-labels"))
    assert "labels are needed here, but use_labels is false" in message


def test_an_evaluation_without_labels_is_pointed_out(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who adapts to data that nobody has labelled has none; the run is worth the same."""
    run = tmp_path / "run"
    assert main(arguments(own, run, "--evaluation.no-use-labels", "--panels", "1")) == 0
    said = capsys.readouterr().out
    assert "without labels there is no score" in said and "no best.pt" in said
    assert "source only) ->" not in said  # nan -> nan is no answer
    assert all(math.isnan(float(r["mIoU"])) for r in rows(run / "evaluation.csv"))
    found = {path.name for path in (run / "checkpoints").iterdir()}
    assert found == {"source.pt", "last.pt", "previous.pt"}


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_file_that_vanishes_or_is_damaged_during_training_names_itself(
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: str,
) -> None:
    options = ("--source.cache", "none", "--target.cache", "none", "--workers", workers)
    kinds = {
        "missing": lambda path: path.unlink(),
        "cannot be decoded": lambda path: path.write_bytes(path.read_bytes()[:300]),
    }
    if workers == "1":  # each start of the workers takes its time
        del kinds["missing"]
    check = World.check
    for expected, damage in kinds.items():
        worlds = write_worlds(tmp_path / expected.split()[0])
        victim = worlds / "source" / "images" / "train" / "p5.png"

        def after_the_check(self: World, say, damage=damage, victim=victim) -> None:
            check(self, say)
            damage(victim)

        monkeypatch.setattr(World, "check", after_the_check)
        message = fails(capsys, arguments(worlds, tmp_path / f"run {expected}", *options))
        assert str(victim) in message and expected in message
        assert "\n" not in message


def test_a_label_of_another_size_than_its_image(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = own / "source" / "labels" / "train" / "p2.png"
    Image.fromarray(np.zeros((SIZE[0], SIZE[1] // 2), np.uint8)).save(label)
    message = fails(capsys, arguments(own, tmp_path / "run"))
    assert f"{label} (48x32, image 48x64)" in message


def test_images_too_small_for_the_discriminator_are_refused_before_the_warm_up(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = arguments(own, tmp_path / "run", "--target.size", "24", "32")
    message = fails(capsys, small, 2)
    assert "target.size is 24x32, its features 3x4" in message
    assert "use larger images or fewer strides of 2" in message
    fewer = ("--adaptation.discriminator-strides", "2", "1", "1", "1", "1", "--panels", "0")
    assert main([*small, *fewer]) == 0
    assert main(arguments(own, None, *("--run", str(tmp_path / "b"), "--target.size", "24", "32"),
                          "--without", "transfer", "--panels", "0")) == 0  # fmt: skip


def test_classes_that_differ_are_refused(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own / "source" / "classes.json"
    entries = json.loads(path.read_text())
    entries["classes"][1]["name"] = "bus"
    path.write_text(json.dumps(entries))
    message = fails(capsys, arguments(own, tmp_path / "run"))
    assert "need one class list" in message and "bus" in message and "car" in message


def test_a_run_folder_that_cannot_be_made(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    message = fails(capsys, arguments(own, tmp_path / "file" / "run"))
    assert str(tmp_path / "file") in message


# ------------------------------------------------------------------------------ losses not finite


@pytest.mark.parametrize("schedule", ["joint", "alternating"])
def test_a_loss_that_is_not_finite_names_step_term_and_files(
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    schedule: str,
) -> None:
    run = tmp_path / "run"
    from cscl_fast.trainer.players import Players

    original = Players.divergence_loss
    at_failure: dict[str, torch.Tensor] = {}
    calls = []

    def sometimes(self: Players, *views, **more) -> torch.Tensor:
        calls.append(1)
        loss = original(self, *views, **more)
        if len(calls) < 3:
            return loss
        at_failure.update({k: p.detach().clone() for k, p in self.named_parameters()})
        at_failure["self"] = self  # type: ignore[assignment]
        return loss * float("nan")

    monkeypatch.setattr(Players, "divergence_loss", sometimes)
    message = fails(capsys, arguments(own, run, "--adaptation.schedule", schedule))
    assert "adaptation step 3: the loss 'divergence' is nan" in message
    files = [line.strip() for line in message.splitlines()[1:]]
    assert len(files) == 4 and all(Path(f).is_file() for f in files)
    assert [("source" in f) for f in files] == [True, True, False, False]
    cscl = at_failure.pop("self")
    assert all(torch.equal(p, at_failure[k]) for k, p in cscl.named_parameters())  # type: ignore
    last = load(run / "checkpoints" / "last.pt")  # from the end of the first epoch, and good
    assert (last["place"]["phase"], last["place"]["step"]) == ("adaptation", 2)
    assert all(t.isfinite().all() for t in last["model"].values())


def test_a_loss_that_is_not_finite_in_the_warm_up(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = TinyModel.classify
    calls = []

    def sometimes(self: TinyModel, features) -> torch.Tensor:
        calls.append(1)
        return original(self, features) * (math.inf if len(calls) == 2 else 1)

    monkeypatch.setattr(TinyModel, "classify", sometimes)
    options = ("--source-only", "--source.limit", "2", "--save-every", "1")
    message = fails(capsys, arguments(own, tmp_path / "run", *options))
    assert re.match(r"warmup step 2: the loss 'source' is (nan|inf); it updated no weight", message)
    assert message.count("p0.png") == 1 and message.count("p7.png") == 1


def test_running_out_of_memory_says_what_needs_less(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_gpu = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free. "
        "Of the allocated memory 1.00 GiB is allocated by PyTorch."
    )
    failures = (
        (lambda: torch.empty(1 << 46), "can't allocate memory: you tried to allocate 2814749"),
        (lambda: np.empty(1 << 46), "Unable to allocate 512. TiB for an array"),
        (lambda: raising(on_gpu), "Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.\n"),
    )
    for i, (failure, reason) in enumerate(failures):
        monkeypatch.setattr(TinyModel, "classify", lambda *_, failure=failure: failure())
        message = fails(capsys, arguments(own, tmp_path / f"run{i}"))
        assert message.startswith("out of memory: ") and reason in message
        for option in (
            *("--warmup.batch-size", "--adaptation.batch-size", "--evaluation-batch"),
            *("--accumulate", "--source.size", "--target.size", "--precision bfloat16"),
            "--model.activation-checkpointing",
        ):
            assert option in message
            known_options([option.split()[0]], Config)
    other = RuntimeError("an error of this program")
    monkeypatch.setattr(TinyModel, "classify", lambda *_: raising(other))
    with pytest.raises(RuntimeError, match="an error of this program"):
        main(arguments(own, tmp_path / "other"))


def raising(error: Exception) -> None:
    raise error


def test_errors_of_a_run_made_by_hand_are_the_same(own: Path) -> None:
    config = parse(arguments(own, None))
    config.source.root = own / "nowhere"
    with pytest.raises(DataError, match="nowhere"):
        Run(config)

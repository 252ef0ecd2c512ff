"""Bad input of every kind: a readable sentence, an exit code, and nothing good is lost."""

from __future__ import annotations

import errno
import json
import math
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trainer_worlds import SIZE, TinyModel, arguments, load, rows, same, write_worlds

from cscl_fast import evaluate, predict
from cscl_fast.cli import parse
from cscl_fast.data import DataError
from cscl_fast.models import build_model
from cscl_fast.train import main
from cscl_fast.trainer import checkpoint
from cscl_fast.trainer.checkpoint import CheckpointError
from cscl_fast.trainer.run import Run
from cscl_fast.trainer.world import World

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Data sets that a test may damage."""
    return write_worlds(tmp_path / "worlds")


def fails(capsys: pytest.CaptureFixture[str], command: list[str], code: int = 1) -> str:
    """Run the training; the message on the error stream."""
    capsys.readouterr()
    assert main(command) == code
    message = capsys.readouterr().err
    assert message.startswith("cscl_fast.train: ") and "Traceback" not in message
    return message.removeprefix("cscl_fast.train: ").strip()


def save(path: Path, **more) -> None:
    checkpoint.save(path, {"model": {"weight": torch.arange(100_000.0)}, **more})


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
    assert "without labels there is no score" in capsys.readouterr().out
    assert all(math.isnan(float(r["mIoU"])) for r in rows(run / "evaluation.csv"))
    assert (run / "checkpoints" / "last.pt").exists()


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


# ------------------------------------------------------------------------------------ checkpoints


class FullDisk:
    """A file whose disk has room for `room` bytes."""

    def __init__(self, path: Path, room: int) -> None:
        self.file, self.room = open(path, "wb"), room  # noqa: SIM115

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.parametrize("room", [0, 1000, 200_000])
def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    save(path, step=1)
    before = path.read_bytes()
    monkeypatch.setattr(checkpoint, "open", lambda name, mode: FullDisk(name, room), raising=False)
    with pytest.raises(CheckpointError) as caught:
        save(path, step=2)
    message = str(caught.value)
    assert f"could not write the checkpoint {path}" in message
    assert f"the checkpoint from before is intact: {path}" in message
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path / "first.pt")
    assert "intact" not in str(caught.value)


def test_a_file_size_limit_of_the_system_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """The real thing, as far as an ordinary user can have it: write() itself fails."""
    path = tmp_path / "last.pt"
    save(path, step=1)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(CheckpointError, match="the checkpoint from before is intact"):
            save(path, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_disk_that_fills_up_in_training_stops_the_run_which_goes_on_later(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    dump, calls = torch.save, []

    def full(content, file) -> None:
        calls.append(1)
        if len(calls) > 4:  # warm-up, source, best, first epoch
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        dump(content, file)

    command = arguments(own, run, "--panels", "0", "--save-every", "1000")
    monkeypatch.setattr(torch, "save", full)
    message = fails(capsys, command)
    assert "could not write the checkpoint" in message and "No space left on device" in message
    assert "Free some space and resume" in message and "\n" not in message
    monkeypatch.setattr(torch, "save", dump)
    last = run / "checkpoints" / "last.pt"
    assert load(last)["place"]["step"] == 2
    assert main(["--resume", str(run)]) == 0
    undisturbed = tmp_path / "undisturbed"
    assert main([*command, "--run", str(undisturbed)]) == 0
    assert same(load(last)["model"], load(undisturbed / "checkpoints" / "last.pt")["model"])


def test_a_disk_that_is_full_for_the_tables(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")

    monkeypatch.setattr("cscl_fast.trainer.journal.Journal.log", full)
    message = fails(capsys, arguments(own, tmp_path / "run"))
    assert "No space left on device" in message and "metrics.csv" in message


def damaged_checkpoints(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no checkpoints of this package, and what has to be said of each."""
    good = folder / "good.pt"
    save(good, architecture="deeplabv2-resnet18", num_classes=3)
    torn = folder / "torn.pt"
    torn.write_bytes(good.read_bytes()[:-5000])
    empty = folder / "empty.pt"
    empty.write_bytes(b"")
    text = folder / "notes.pt"
    text.write_text("not a checkpoint\n")
    foreign = folder / "foreign.pt"
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, foreign)
    pickled = folder / "pickled.pt"
    torch.save({"object": Path}, pickled)
    newer = folder / "newer.pt"
    torch.save({"format": "cscl_fast.checkpoint", "version": 99}, newer)
    return {
        "missing": (folder / "missing.pt", "no checkpoint at"),
        "folder": (folder, "no checkpoint at"),
        "torn": (torn, "is not a checkpoint, or is damaged"),
        "empty": (empty, "is not a checkpoint, or is damaged"),
        "text": (text, "is not a checkpoint, or is damaged"),
        "pickled": (pickled, "is not a checkpoint, or is damaged"),
        "foreign": (foreign, "is not a checkpoint of cscl_fast"),
        "newer": (newer, "was written by a newer cscl_fast (checkpoint version 99"),
        "incomplete": (good, "holds no network that can be built"),
    }


def test_files_that_are_no_checkpoints_are_refused_everywhere(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, (path, expected) in damaged_checkpoints(tmp_path).items():
        for module, options in (
            (evaluate, [str(path)]),
            (predict, [str(path), str(own / "target" / "images"), str(tmp_path / "out")]),
        ):
            assert module.main(options) == 1, kind
            message = capsys.readouterr().err.strip()
            assert message.startswith(f"{module.__name__}: "), kind
            assert str(path) in message and expected in message, kind
            assert "Traceback" not in message and "\n" not in message, kind
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["missing", "torn", "empty", "text", "pickled"])
def test_initial_weights_that_are_none_are_refused(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path, _ = damaged_checkpoints(tmp_path)[kind]
    message = fails(capsys, arguments(own, tmp_path / "run", "--model.init", str(path)))
    assert str(path) in message
    assert not (tmp_path / "run").exists()


def test_initial_weights_of_another_model_are_refused(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cscl_fast.trainer.run.build_model", build_model)
    path = tmp_path / "other.pt"
    save(path, architecture="deeplabv2-resnet101", num_classes=3)
    message = fails(capsys, arguments(own, tmp_path / "run", "--model.init", str(path)))
    assert f"{path} is a checkpoint of deeplabv2-resnet101, and the network is" in message


def test_a_torn_checkpoint_is_not_resumed(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(arguments(own, run, "--source-only", "--warmup.steps", "1")) == 0
    last = run / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-2000])
    message = fails(capsys, ["--resume", str(run)])
    assert f"{last} is not a checkpoint, or is damaged" in message


def test_errors_of_a_run_made_by_hand_are_the_same(own: Path) -> None:
    config = parse(arguments(own, None))
    config.source.root = own / "nowhere"
    with pytest.raises(DataError, match="nowhere"):
        Run(config)

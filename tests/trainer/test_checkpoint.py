"""Checkpoints: written whole or not at all, recognised when damaged, refused with a reason."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest
import torch
from trainer_worlds import arguments, fails, load, same

from cscl_fast import evaluate, predict
from cscl_fast.models import build_model
from cscl_fast.train import main
from cscl_fast.trainer import checkpoint, files
from cscl_fast.trainer.checkpoint import CheckpointError

pytestmark = pytest.mark.usefixtures("tiny")


def save(path: Path, **more) -> None:
    checkpoint.save(path, {"model": {"weight": torch.arange(100_000.0)}, **more})


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
    monkeypatch.setattr(files, "open", lambda name, mode: FullDisk(name, room), raising=False)
    with pytest.raises(CheckpointError) as caught:
        save(path, step=2)
    message = str(caught.value)
    assert f"could not write the checkpoint {path}" in message
    assert f"the checkpoint from before is intact: {path}. Free some space and resume" in message
    assert "No space left on device" in message  # not what torch's zip writer makes of it
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


def test_other_reasons_not_to_be_written_ask_for_no_space(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.pt").mkdir()
    for path, reason in (
        (tmp_path / "file" / "checkpoints" / "last.pt", "Not a directory"),
        (tmp_path / "folder.pt", "Is a directory"),
    ):
        with pytest.raises(CheckpointError, match="could not write the checkpoint") as caught:
            save(path)
        assert str(path) in str(caught.value) and reason in str(caught.value)
        assert "space" not in str(caught.value)


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

    monkeypatch.setattr("cscl_fast.trainer.records.Records.log", full)
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

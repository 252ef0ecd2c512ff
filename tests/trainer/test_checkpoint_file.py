"""The checkpoint's file: its checksum, the two that are kept, and what is read when one is bad."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from trainer_worlds import TABLES, arguments, assert_same_runs, fails, load, rows, same

from cscl_fast.models.weights import CHECKPOINT_FORMAT
from cscl_fast.train import main
from cscl_fast.trainer import checkpoint
from cscl_fast.trainer.checkpoint import CheckpointError
from cscl_fast.trainer.journal import Table

CPU = torch.device("cpu")


def content(step: int) -> dict:
    return {"model": {"weight": torch.arange(30_000.0) + step}, "step": step}


def newest(folder: Path) -> tuple[int, list[str]]:
    """The step that would be gone on from, and the warnings."""
    warnings: list[str] = []
    return checkpoint.load_newest(folder, warnings.append)["step"], warnings


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with three saved checkpoints, of which two are kept."""
    for step in (1, 2, 3):
        checkpoint.save_newest(tmp_path, content(step))
    return tmp_path


def test_the_file_is_what_torch_saves_with_length_and_checksum_behind_it(two: Path) -> None:
    data = (two / "last.pt").read_bytes()
    body, trailer = data[:-48], data[-48:]
    assert trailer[:8] == b"CSCLFAST"
    assert int.from_bytes(trailer[8:16], "little") == len(body)
    assert trailer[16:] == hashlib.sha256(body).digest()
    for mmap in (False, True):
        found = torch.load(two / "last.pt", weights_only=True, mmap=mmap)
        assert found["version"] == 2 and found["step"] == 3
        assert same(found["model"], content(3)["model"])


def test_the_last_two_are_kept(two: Path) -> None:
    assert sorted(p.name for p in two.iterdir()) == ["last.pt", "previous.pt"]
    assert checkpoint.load(two / "previous.pt")["step"] == 2
    assert newest(two) == (3, [])


def test_without_hard_links_the_last_two_are_kept_too(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    checkpoint.save_newest(two, content(4))
    assert checkpoint.load(two / "previous.pt")["step"] == 3
    assert newest(two) == (4, [])
    (two / "last.pt").unlink()  # a kill between its two renames
    step, warnings = newest(two)
    assert step == 3 and f"no checkpoint at {two / 'last.pt'}" in warnings[0]


def flip(position: int) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= 4
        return bytes(changed)

    return damage


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "torn at the end": lambda data: data[:-1],
    "without its checksum": lambda data: data[:-48],
    "torn in the middle": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "a bit flipped in the weights": flip(70_000),
    "a bit flipped in the pickle": flip(300),
    "a bit flipped in the checksum": flip(-3),
    "a bit flipped in the length": flip(-40),
    "a bit flipped in the mark": flip(-48),
    "text": lambda data: b"these are no weights\n" * 100,
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_recognised_and_the_one_before_it_used(two: Path, damage: str) -> None:
    last = two / "last.pt"
    bad = DAMAGE[damage](last.read_bytes())
    last.write_bytes(bad)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(last)
    step, warnings = newest(two)
    assert step == 2
    assert str(last) in warnings[0] and str(two / "previous.pt") in warnings[0]
    # The bad one does not push out the good one.
    assert (two / "damaged.pt").read_bytes() == bad and not last.exists()
    checkpoint.save_newest(two, content(5))
    assert checkpoint.load(two / "previous.pt")["step"] == 2
    assert newest(two) == (5, [])


def test_a_foreign_file_is_recognised(two: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, two / "last.pt")
    step, warnings = newest(two)
    assert step == 2 and "is not a checkpoint of cscl_fast" in warnings[0]


def test_without_a_whole_file_the_error_names_both(two: Path) -> None:
    for name in ("last.pt", "previous.pt"):
        (two / name).write_bytes((two / name).read_bytes()[:-7])
    with pytest.raises(CheckpointError) as caught:
        newest(two)
    assert str(two / "last.pt") in str(caught.value)
    assert str(two / "previous.pt") in str(caught.value)
    for name in ("last.pt", "previous.pt"):
        (two / name).unlink()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        newest(two)


def test_a_newer_versions_file_is_no_damaged_one(two: Path) -> None:
    torch.save({"format": CHECKPOINT_FORMAT, "version": 99}, two / "last.pt")
    with pytest.raises(CheckpointError, match="newer cscl_fast"):
        newest(two)
    assert (two / "last.pt").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
    ids=["memory", "disk", "PyTorch's memory"],
)
def test_a_whole_file_that_cannot_be_read_now_is_no_damaged_one(
    two: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    read = torch.load

    def failing(path: Path, **more: object) -> object:
        if path.name == "last.pt":
            raise error
        return read(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", failing)
        with pytest.raises(CheckpointError, match=r"could not be read .*It is whole") as caught:
            newest(two)
    assert str(two / "last.pt") in str(caught.value) and type(error).__name__ in str(caught.value)
    assert newest(two) == (3, [])  # nothing was renamed

    def unreadable(path: Path) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_check", unreadable)
        with pytest.raises(CheckpointError, match=r"last\.pt could not be read: .*Input/output"):
            newest(two)
    assert newest(two) == (3, [])


def test_nothing_is_renamed_before_all_agree(two: Path) -> None:
    (two / "last.pt").write_bytes(b"torn")

    def disagree(content: dict) -> None:
        raise CheckpointError(f"others are elsewhere than {content['step']}")

    with pytest.raises(CheckpointError, match="others are elsewhere than 2"):
        checkpoint.load_newest(two, print, disagree)
    assert sorted(p.name for p in two.iterdir()) == ["last.pt", "previous.pt"]


def test_files_of_the_first_version_are_read_and_not_gone_on_from(
    worlds: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(arguments(worlds, run, "--source-only", "--warmup.steps", "1")) == 0
    last = run / "checkpoints" / "last.pt"
    old = load(last) | {"version": 1}
    torch.save(old, last)  # which had no checksum
    assert same(checkpoint.load(last)["model"], old["model"])
    message = fails(capsys, ["--resume", str(run)])
    assert "older cscl_fast" in message and "--model.init" in message


def test_every_random_generator_goes_on_where_it_was() -> None:
    checkpoint.seed_everything(7)
    random.gauss(0, 1), np.random.normal(), torch.randn(3)  # two of them keep half a pair
    state = checkpoint.random_state(CPU)

    def draw() -> list[object]:
        return [random.gauss(0, 1), random.random(), np.random.normal(), torch.rand(2).tolist()]

    expected = draw()
    assert draw() != expected
    checkpoint.set_random_state(state, CPU)
    assert draw() == expected


def test_of_the_gpus_generators_the_runs_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for GPUs; what is asked of one that is not there fails, as with PyTorch's own."""
    generators = [torch.tensor([10]), torch.tensor([11])]

    def put(state: torch.Tensor, device: torch.device) -> None:
        generators[device.index] = state

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generators[device.index])
    monkeypatch.setattr(torch.cuda, "set_rng_state", put)
    first, second = (torch.device("cuda", i) for i in (0, 1))
    state = checkpoint.random_state(second)
    assert torch.equal(state["cuda"], torch.tensor([11]))
    checkpoint.set_random_state(state, first)  # the run goes on where another GPU is visible
    assert generators == [11, 11]

    old = {**state, "cuda": [torch.tensor([20]), torch.tensor([21]), torch.tensor([22])]}
    for device, expected in ((first, [20, 11]), (second, [20, 21])):
        checkpoint.set_random_state(old, device)
        assert generators == expected
    checkpoint.set_random_state({**old, "cuda": old["cuda"][:1]}, second)
    assert generators == [20, 20]

    def refuse(*_: object) -> None:
        raise AssertionError("a run on the CPU leaves CUDA alone")

    for name in ("get_rng_state", "get_rng_state_all", "set_rng_state", "set_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    checkpoint.set_random_state(old, CPU)
    assert "cuda" not in checkpoint.random_state(CPU)


# ---------------------------------------------------------------------------------- within a run


def test_a_run_goes_on_from_the_checkpoint_before_a_torn_one(
    worlds: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--panels", "0", "--gap-batches", "1", "--save-every", "1")
    runs = [tmp_path / name for name in ("whole", "torn")]
    for run in runs:
        assert main(arguments(worlds, run, *options)) == 0
    whole, torn = runs
    last = torn / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    capsys.readouterr()
    assert main(["--resume", str(torn)]) == 0
    shown = capsys.readouterr().out
    assert f"warning: {last} is not a checkpoint, or is damaged" in shown
    assert f"{torn / 'checkpoints' / 'previous.pt'}" in shown
    assert "adaptation step 3" in shown  # of 4
    assert_same_runs(torn, whole)


@pytest.mark.parametrize("phase", ["warmup", "adaptation"])
def test_no_row_is_doubled_or_lost_at_the_edges(
    worlds: Path, tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """Ended where tables run ahead of the checkpoint: scores behind the warm-up, new thresholds."""
    options = ("--panels", "0", "--gap-batches", "1")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main(arguments(worlds, whole, *options)) == 0
    place = {"warmup": ("records.Records.score", 3), "adaptation": ("cscl.CSCL.step", 3)}[phase]
    calls = [0]

    def ending(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        name, count = f"cscl_fast.trainer.{place[0]}", place[1]
        module, holder, attribute = name.rsplit(".", 2)
        original = getattr(getattr(__import__(module, fromlist=["x"]), holder), attribute)

        def counting(*given: object, **named: object) -> object:
            calls[0] += 1
            return (ending if calls[0] == count else original)(*given, **named)

        patch.setattr(name, counting)
        assert main(arguments(worlds, run, *options)) == 130
    ahead = {name: len(rows(run / name)) for name in TABLES}
    assert ahead["evaluation.csv"] == (2 if phase == "warmup" else 4)
    assert main(["--resume", str(run)]) == 0
    assert_same_runs(run, whole)


def test_a_table_that_somebody_shortened_is_gone_on_with(
    worlds: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(arguments(worlds, run, "--panels", "0", "--adaptation.epochs", "1")) == 0
    metrics = run / "metrics.csv"
    metrics.write_bytes(metrics.read_bytes()[:-10])
    (run / "kept.csv").unlink()
    assert main(["--resume", str(run), "--adaptation.epochs", "2"]) == 0
    shown = capsys.readouterr().out
    for name in ("metrics.csv", "kept.csv"):
        assert f"warning: {run / name} is shorter than at the checkpoint" in shown
    assert [r["step"] for r in rows(metrics)] == ["1", "2", "3", "4", "1", "3", "4"]
    assert [r["step"] for r in rows(run / "kept.csv")] == ["3", "4"]


def test_a_table_grows_and_goes_back(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv", ("step", "value"))
    assert table.length() == 0 and table.rows() == []
    table.append({"step": 1, "value": 1 / 3})
    length = table.length()
    table.append({"step": 2})
    with open(table.path, "a") as file:
        file.write("3,0.")
    assert table.cut(length)
    assert table.rows() == [{"step": "1", "value": "0.333333"}]
    assert table.cut(length) and table.length() == length
    assert table.cut(0) and not table.path.exists()
    assert not table.cut(5)
    with pytest.raises(KeyError, match=r"t\.csv has no column for \['other'\]"):
        table.append({"other": 1})

"""TensorBoard's event files, read with TensorBoard's own reader."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trainer_worlds import TinyModel, arguments, draw_no_curves, rows, run_through

from cscl_fast.config import ConfigError
from cscl_fast.data import ClassList
from cscl_fast.train import main
from cscl_fast.trainer.evaluation import Score
from cscl_fast.trainer.records import Records
from cscl_fast.trainer.tensorboard import TensorBoard, matrix_picture, short

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CLASSES = ClassList(("road", "car", "sky"), ((128, 64, 128), (0, 0, 142), (70, 130, 180)))
WARMUP = 10


class Gap:
    accuracy = 0.75
    divergence = 0.5


def score(mean: float) -> Score:
    return Score(CLASSES, torch.tensor([mean, mean, float("nan")], dtype=torch.float64))


def read(run: Path, phase: str) -> EventAccumulator:
    reader = EventAccumulator(str(run / "tensorboard" / phase), size_guidance={"images": 0})
    reader.Reload()
    return reader


def steps(run: Path, phase: str, tag: str) -> list[int]:
    return [event.step for event in read(run, phase).Scalars(tag)]


def values(run: Path, phase: str, tag: str) -> list[float]:
    return [event.value for event in read(run, phase).Scalars(tag)]


def warm_up(board: TensorBoard, first: int, last: int) -> None:
    for step in range(first, last + 1):
        board.log({"phase": "warmup", "step": step, "total": 1 / step, "learning_rate": 1e-3})
    if last == WARMUP:
        board.score("source only", "warmup", WARMUP, score(30.0))


def adapt(board: TensorBoard, first: int, last: int, *, shift: float = 0.0) -> None:
    """Epochs of 3 steps with what Run tells at each place of the loop."""
    for step in range(first, last + 1):
        if step == 1:
            board.gap(0, 0, Gap())
        if step % 3 == 1:
            delta = torch.tensor([0.9, 0.5, 1.0]) - shift
            board.thresholds(step // 3, step - 1, 0.35, delta)
        board.log({"phase": "adaptation", "epoch": step // 3, "step": step, "kept": 0.5})
        board.kept(step // 3, step, torch.tensor([0.3, 0.2, 0.0]))
        if step % 3 == 0:
            board.score("CSCL", "adaptation", step, score(40.0 + step))
            board.gap(step // 3, step, Gap())
            board.centroids(step // 3, step, torch.rand(3, 3))


def write_panel(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), "red").save(folder / "p0.png")
    (folder / "overview.png").write_bytes(b"all of them once more: never opened")
    return folder


def test_reader_finds_what_a_run_told(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, CLASSES, WARMUP)
    assert not (tmp_path / "tensorboard").exists()  # nothing before the first value
    warm_up(board, 1, WARMUP)
    adapt(board, 1, 6)
    board.panels(write_panel(tmp_path / "panels"))
    board.close()

    warmup, adaptation = read(tmp_path, "warmup"), read(tmp_path, "adaptation")
    assert set(warmup.Tags()["scalars"]) == {"losses/total", "progress/learning_rate"}
    assert set(adaptation.Tags()["scalars"]) == {
        *("watched/kept", "progress/portion", "progress/epoch", "gap/accuracy", "gap/divergence"),
        *("mIoU/source only", "mIoU/CSCL"),
        *("IoU, source only/road", "IoU, source only/car", "IoU, CSCL/road", "IoU, CSCL/car"),
        *(f"{group}/{name}" for group in ("thresholds", "kept") for name in CLASSES.names),
    }
    assert values(tmp_path, "warmup", "losses/total") == pytest.approx(
        [1 / step for step in range(1, WARMUP + 1)]
    )
    # The adaptation's steps begin where the warm-up ended.
    assert steps(tmp_path, "adaptation", "watched/kept") == [11, 12, 13, 14, 15, 16]
    assert steps(tmp_path, "adaptation", "mIoU/source only") == [10]
    assert steps(tmp_path, "adaptation", "mIoU/CSCL") == [13, 16]
    assert values(tmp_path, "adaptation", "mIoU/CSCL") == [43.0, 46.0]
    assert steps(tmp_path, "adaptation", "thresholds/car") == [11, 14]
    assert values(tmp_path, "adaptation", "thresholds/car") == [0.5, 0.5]
    assert steps(tmp_path, "adaptation", "gap/accuracy") == [11, 13, 16]


def test_pictures_are_pictures(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, CLASSES, WARMUP)
    adapt(board, 1, 3)
    board.panels(write_panel(tmp_path / "panels"))
    board.close()
    reader = read(tmp_path, "adaptation")
    (panel,) = reader.Images("panels/p0")
    picture = Image.open(io.BytesIO(panel.encoded_image_string))
    assert picture.size == (20, 10) and picture.getpixel((3, 3)) == (255, 0, 0)
    assert "panels/overview" not in reader.Tags()["images"]
    (matrix,) = reader.Images("centroids/source by target")
    assert matrix.step == WARMUP + 3 and matrix.width == matrix.height > 300


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
@pytest.mark.parametrize("saved", range(7))
def test_a_resumed_adaptation_holds_every_value_once(
    tmp_path: Path, saved: int, killed: bool
) -> None:
    """The first process ended at step 6, its last checkpoint is of step `saved`."""
    first = TensorBoard(tmp_path, CLASSES, WARMUP)
    warm_up(first, 1, WARMUP)
    adapt(first, 1, 6)
    if killed:  # nothing is closed, and the last record is torn
        (file,) = (tmp_path / "tensorboard" / "adaptation").iterdir()
        first.log({"phase": "adaptation", "step": 7, "kept": 0.5})
        file.write_bytes(file.read_bytes()[:-5])
    else:
        first.close()
    second = TensorBoard(tmp_path, CLASSES, WARMUP)
    second.cut({"warmup": 10**12, "adaptation": saved})
    adapt(second, saved + 1, 9, shift=0.25)
    second.close()

    assert steps(tmp_path, "warmup", "losses/total") == list(range(1, 11))
    assert steps(tmp_path, "adaptation", "mIoU/source only") == [10]
    assert steps(tmp_path, "adaptation", "watched/kept") == list(range(11, 20))
    assert steps(tmp_path, "adaptation", "mIoU/CSCL") == [13, 16, 19]
    assert steps(tmp_path, "adaptation", "gap/accuracy") == [11, 13, 16, 19]
    # At an epoch's edge its thresholds come after the checkpoint: those of the second process.
    edges = (0, 3, 6)
    assert steps(tmp_path, "adaptation", "thresholds/car") == [WARMUP + e + 1 for e in edges]
    expected = [0.5 if edge < saved else 0.25 for edge in edges]
    assert values(tmp_path, "adaptation", "thresholds/car") == expected


@pytest.mark.parametrize("saved", [0, 4, WARMUP])
def test_a_resumed_warmup_holds_no_score_twice(tmp_path: Path, saved: int) -> None:
    """A source-only run is scored after its last checkpoint: resumed, it is scored again."""
    first = TensorBoard(tmp_path, CLASSES, WARMUP)
    warm_up(first, 1, WARMUP)
    first.close()
    second = TensorBoard(tmp_path, CLASSES, WARMUP)
    second.cut({"warmup": saved})
    warm_up(second, saved + 1, WARMUP - 1)
    warm_up(second, max(saved + 1, WARMUP), WARMUP)
    second.close()
    assert steps(tmp_path, "warmup", "losses/total") == list(range(1, 11))
    assert steps(tmp_path, "adaptation", "mIoU/source only") == [10]


def test_a_finished_run_resumed_has_its_panels_once(tmp_path: Path) -> None:
    panels = write_panel(tmp_path / "panels")
    first = TensorBoard(tmp_path, CLASSES, WARMUP)
    adapt(first, 1, 3)
    first.panels(panels)
    first.close()
    second = TensorBoard(tmp_path, CLASSES, WARMUP)
    second.cut({"warmup": 10**12, "adaptation": 3})
    second.panels(panels)
    second.close()
    assert len(read(tmp_path, "adaptation").Images("panels/p0")) == 1
    assert len(read(tmp_path, "adaptation").Images("centroids/source by target")) == 1


def test_values_are_on_disk_at_once(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, CLASSES, WARMUP)
    board.log({"phase": "warmup", "step": 1, "total": 1.0})
    assert steps(tmp_path, "warmup", "losses/total") == [1]
    board.close()


def test_overwriting_forgets_the_old_run(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, CLASSES, WARMUP)
    warm_up(first, 1, 5)
    first.close()
    second = TensorBoard(tmp_path, CLASSES, WARMUP)
    second.start_again()
    warm_up(second, 1, 2)
    second.close()
    assert steps(tmp_path, "warmup", "losses/total") == [1, 2]


# ---------------------------------------------------------------------------------- in a real run

KINDS = {
    "evaluated within epochs": (
        *("--tensorboard", "--panels", "1", "--adaptation.steps", "3", "--evaluate-every", "2"),
        *("--save-every", "2"),
    ),
    "source only": ("--tensorboard", "--source-only"),
}


def told(run: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Everything but speeds: (phase, tag) → (step, value) in the order of the file."""
    found = {}
    for phase in ("warmup", "adaptation"):
        reader = read(run, phase)
        for tag in reader.Tags()["scalars"]:
            if tag not in ("progress/speed", "progress/seconds"):
                found[phase, tag] = [(e.step, e.value) for e in reader.Scalars(tag)]
        for tag in reader.Tags()["images"]:
            found[phase, tag] = [(e.step, float(e.width)) for e in reader.Images(tag)]
    return found


@pytest.fixture(scope="module")
def whole(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        draw_no_curves(patch)
        patch.setattr("cscl_fast.trainer.run.build_model", TinyModel)
        for kind, options in KINDS.items():
            run_through(arguments(worlds, folder / kind, *options))
    return {kind: folder / kind for kind in KINDS}


def test_a_run_tells_tensorboard_what_its_tables_hold(whole: dict[str, Path]) -> None:
    run = whole["evaluated within epochs"]
    found = told(run)
    metrics = rows(run / "metrics.csv")
    offset = {"warmup": 0, "adaptation": 4}
    for phase in offset:
        table = [
            (offset[phase] + int(r["step"]), pytest.approx(float(r["total"]), rel=1e-5))
            for r in metrics
            if r["phase"] == phase
        ]
        assert found[phase, "losses/total"] == table
    for row in {r["row"] for r in rows(run / "evaluation.csv")}:
        means = [float(r["mIoU"]) for r in rows(run / "evaluation.csv") if r["row"] == row]
        values = [value for _, value in found["adaptation", f"mIoU/{row}"]]
        assert values == pytest.approx(means, abs=1e-3)
    for table, tag in (("thresholds", "thresholds/car"), ("kept", "kept/car")):
        cells = [float(r["car"]) for r in rows(run / f"{table}.csv")]
        assert [value for _, value in found["adaptation", tag]] == pytest.approx(cells, abs=1e-6)
    accuracies = [float(r["accuracy"]) for r in rows(run / "gap.csv")]
    assert [value for _, value in found["adaptation", "gap/accuracy"]] == pytest.approx(accuracies)
    assert len(found["adaptation", "panels/p0"]) == 1
    evaluated = [step for step, _ in found["adaptation", "mIoU/CSCL"]]
    matrices = found["adaptation", "centroids/source by target"]
    assert [step for step, _ in matrices] == evaluated


@pytest.mark.parametrize("killed_at", [("warmup", 3), ("warmup", 4), ("adaptation", 1),
                                       ("adaptation", 3), ("adaptation", 4), ("adaptation", 6)],
                         ids=str)  # fmt: skip
def test_a_killed_run_tells_tensorboard_everything_once(
    worlds: Path,
    whole: dict[str, Path],
    tmp_path: Path,
    tiny: None,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: tuple[str, int],
) -> None:
    log = Records.log

    def killing(self: Records, values: dict) -> None:
        log(self, values)
        if (values["phase"], values["step"]) == killed_at:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # the second one does not save

    kind = "evaluated within epochs"
    monkeypatch.setattr(Records, "log", killing)
    assert main(arguments(worlds, tmp_path / "run", *KINDS[kind])) == 130
    monkeypatch.setattr(Records, "log", log)
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert told(tmp_path / "run") == told(whole[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_that_is_resumed_tells_nothing_twice(
    worlds: Path, whole: dict[str, Path], tmp_path: Path, tiny: None, kind: str
) -> None:
    run = tmp_path / "run"
    assert main(arguments(worlds, run, *KINDS[kind])) == 0
    assert main(["--resume", str(run)]) == 0
    assert told(run) == told(whole[kind])


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        TensorBoard(tmp_path, CLASSES)


def test_event_files_are_named_in_the_order_in_which_they_are_written(tmp_path: Path) -> None:
    for step in range(2):  # readers sort by name, which begins with the second
        board = TensorBoard(tmp_path, CLASSES)
        board.log({"phase": "warmup", "step": step + 1, "total": 1.0})
        board.close()
    names = [path.name for path in (tmp_path / "tensorboard/warmup").iterdir()]
    assert len({name.split(".")[3] for name in names}) == 2


def test_matrix_shows_its_differences() -> None:
    names = [f"class {i}" for i in range(19)]
    distances = np.arange(361, dtype=np.float64).reshape(19, 19) / 361
    picture = matrix_picture(distances, names)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and picture.shape[0] > 900
    distances[4] = np.nan  # a class that the source did not show leaves its row empty
    assert (matrix_picture(distances, names) != picture).any()
    matrix_picture(np.full((2, 2), np.nan), names[:2])  # nothing to show is no error


def test_matrix_of_any_names_and_of_many_classes() -> None:
    matrix_picture(np.eye(2), ["$x^$", "a$b\\frac$"])  # no formulas
    most = matrix_picture(np.zeros((40, 40)), [f"class {i}" for i in range(40)])
    many = matrix_picture(np.zeros((200, 200)), [f"class {i}" for i in range(200)])
    assert many.shape == most.shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.axes.Axes.text", None)  # nothing is written into its cells
        matrix_picture(np.zeros((41, 41)), [f"class {i}" for i in range(41)])


def test_a_picture_that_fails_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = TensorBoard(tmp_path, CLASSES, WARMUP)
    panels = write_panel(tmp_path / "panels")
    (panels / "a_torn.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="left out: UnidentifiedImageError"):
        board.panels(panels)
    monkeypatch.setattr("matplotlib.figure.Figure.subplots", None)
    with pytest.warns(UserWarning, match="a picture for TensorBoard is left out: TypeError"):
        board.centroids(0, 3, torch.rand(3, 3))
    board.close()
    assert read(tmp_path, "adaptation").Tags()["images"] == ["panels/p0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.000"), (0.0341, "0.034"), (1.2, "1.20"), (12.34, "12.3"), (123.4, "123"),
     (4321.0, "4e+03"), (0.0001, "1e-04"), (-0.5, "-0.50")],
)  # fmt: skip
def test_numbers_fit_their_cells(value: float, text: str) -> None:
    assert short(value) == text

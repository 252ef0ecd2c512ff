"""TensorBoard's event files, read with TensorBoard's own reader."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cscl_fast.config import ConfigError
from cscl_fast.data import ClassList
from cscl_fast.trainer.evaluation import Score
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
    Image.new("RGB", (20, 10), "red").save(folder / "overview.png")
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
    (panel,) = reader.Images("panels/overview")
    picture = Image.open(io.BytesIO(panel.encoded_image_string))
    assert picture.size == (20, 10) and picture.getpixel((3, 3)) == (255, 0, 0)
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
    assert len(read(tmp_path, "adaptation").Images("panels/overview")) == 1
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


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        TensorBoard(tmp_path, CLASSES)


def test_matrix_shows_its_differences() -> None:
    names = [f"class {i}" for i in range(19)]
    distances = np.arange(361, dtype=np.float64).reshape(19, 19) / 361
    picture = matrix_picture(distances, names)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and picture.shape[0] > 900
    distances[4] = np.nan  # a class that the source did not show leaves its row empty
    assert (matrix_picture(distances, names) != picture).any()
    matrix_picture(np.full((2, 2), np.nan), names[:2])  # nothing to show is no error


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.000"), (0.0341, "0.034"), (1.2, "1.20"), (12.34, "12.3"), (123.4, "123"),
     (4321.0, "4e+03"), (0.0001, "1e-04"), (-0.5, "-0.50")],
)  # fmt: skip
def test_numbers_fit_their_cells(value: float, text: str) -> None:
    assert short(value) == text

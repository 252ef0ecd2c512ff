"""The report on the compiled CUDA kernels: what it checks, and the page that it writes."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_checks  # noqa: E402
import gpu_page  # noqa: E402
import gpu_report  # noqa: E402
import gpu_roofline  # noqa: E402

Report = dict[str, Any]

# ---- the checks, of what is stored --------------------------------------------------------------


@pytest.fixture
def report() -> Report:
    """What is stored, without the faults that it may have: tests plant their own."""
    found = copy.deepcopy(gpu_report.load())
    for kernel in found["kernels"]:
        for facts in kernel["architectures"].values():
            for key in ("stack", "local", "local_memory", "double"):
                facts.pop(key, None)
            for wide in gpu_checks.WIDE:
                for key, least in wide.least.items() if wide.concerns(kernel) else ():
                    facts[key] = max(least, facts.get(key, 0))
    return found


def facts_of(report: Report, architecture: str = "90", **wanted: str) -> dict[str, int]:
    found = [k for k in report["kernels"] if all(k.get(key) == v for key, v in wanted.items())]
    assert found, wanted
    facts: dict[str, int] = found[0]["architectures"][architecture]
    return facts


def checked(report: Report, monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """The exit status of --check with this in the place of what is stored, page included."""
    stored, page = folder / "gpu_code.json", folder / "gpu.md"
    stored.write_text(gpu_report.dump(report), encoding="utf-8")
    text = gpu_report.PAGE.read_text(encoding="utf-8")
    page.write_text(gpu_report.page(report, text), encoding="utf-8")
    monkeypatch.setattr(gpu_report, "load", lambda: json.loads(stored.read_text(encoding="utf-8")))
    monkeypatch.setattr(gpu_report, "PAGE", page)
    return gpu_report.main(["--check"])


def test_the_stored_kernels_are_as_they_have_to_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gpu_report.main(["--check"]) == 0, capsys.readouterr().out


def test_the_page_shows_what_is_stored() -> None:
    text = gpu_report.PAGE.read_text(encoding="utf-8")
    assert gpu_report.page(gpu_report.load(), text) == text, "run: python benchmarks/gpu_report.py"


def test_what_is_stored_is_written_the_same_again() -> None:
    assert gpu_report.dump(gpu_report.load()) == gpu_report.STORED.read_text(encoding="utf-8")


PLANTED = [
    ({"kernel": "walk_planes", "classes": "19"}, {"stack": 8}, "bytes of stack"),
    ({"kernel": "walk_upsampled"}, {"local": 16}, "bytes of local memory"),
    ({"kernel": "finish_loss"}, {"local_memory": 2}, "local memory"),
    ({"kernel": "rank_digit"}, {"double": 1}, "double precision"),
    ({"kernel": "walk_planes", "classes": "19", "pack": "4"}, {"load_128": 18}, "loads of 128"),
    (
        {"kernel": "walk_planes", "classes": "19", "pack": "4", "body": "label"},
        {"store_128": 0},
        "stores of 128",
    ),
    (
        {"kernel": "sum_classes", "walk": "rows", "element": "float32", "width": "4"},
        {"load_128": 0},
        "loads of 128",
    ),
    ({"kernel": "write_rows", "element": "float32", "width": "4"}, {"store_128": 0}, "stores of"),
    ({"kernel": "sum_classes", "walk": "tiles"}, {"inner_divisions": 1}, "divisions of integers"),
    ({"kernel": "walk_upsampled"}, {"outer_divisions": 1}, "divisions of integers"),
    ({"kernel": "sum_classes", "walk": "rows", "width": "4"}, {"shared": 40 << 10}, "not fit"),
]


@pytest.mark.parametrize(
    ("architecture", "kernel", "planted", "message"),
    # So much shared memory is too much for the smaller of the two only.
    [(a, *fault) for a in ("80", "120") for fault in PLANTED if (a, fault[2]) != ("80", "not fit")],
)
def test_a_planted_fault_fails_the_check(
    report: Report,
    architecture: str,
    kernel: dict[str, str],
    planted: dict[str, int],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts_of(report, architecture, **kernel).update(planted)
    assert checked(report, monkeypatch, tmp_path) == 1
    printed = [line for line in capsys.readouterr().out.splitlines() if message in line]
    assert len(printed) == 1, "one fault, one message"
    assert f"sm_{architecture}" in printed[0]
    assert kernel["kernel"] in printed[0]


def test_without_a_fault_the_same_check_passes(
    report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert checked(report, monkeypatch, tmp_path) == 0


def test_a_page_that_shows_something_else_fails_the_check(report: Report) -> None:
    text = gpu_report.PAGE.read_text(encoding="utf-8")
    facts_of(report, kernel="finish_loss")["registers"] += 8
    assert any("gpu_report.py" in line for line in gpu_report.check(report, report, text))


def test_wide_kernels_that_are_gone_are_missed(report: Report) -> None:
    report["kernels"] = [k for k in report["kernels"] if k["kernel"] != "write_rows"]
    assert any("there is no kernel" in line for line in gpu_checks.problems(report["kernels"]))


def test_a_changed_build_is_told_apart(report: Report) -> None:
    other = copy.deepcopy(report)
    assert gpu_report.difference(report, other) == ""
    facts_of(other, kernel="finish_loss")["registers"] += 8
    other["kernels"].pop()
    assert "1 gone" in gpu_report.difference(report, other)
    assert "1 other" in gpu_report.difference(report, other)


def test_a_page_without_the_comments_is_refused() -> None:
    with pytest.raises(ValueError, match="resources"):
        gpu_page.with_blocks("# a page", {"resources": ""})


# ---- the roofline -------------------------------------------------------------------------------


def test_every_case_is_predicted_for_every_card(report: Report) -> None:
    assert report["roofline"] == gpu_roofline.roofline(report["kernels"])
    names = {card.name for card in gpu_roofline.CARDS}
    assert all(set(row["microseconds"]) == names for row in report["roofline"])


def test_bytes_are_those_of_the_cpu_benchmarks() -> None:
    cases = {(case.operator, case.case): case for case in gpu_roofline.CASES}
    for operator, stored, ours in (
        ("soft_pseudo_labels", "[1, 19, 512, 1024] {}", "512x1024"),
        ("soft_pseudo_labels", "[1, 19, 65, 129] to 512x1024 {}", "65x129 to 512x1024"),
    ):
        path = ROOT / "benchmarks" / "results" / f"{operator}.json"
        timings = json.loads(path.read_text(encoding="utf-8"))["timings"]
        for dtype in ("float32", "bfloat16"):
            found = {t["bytes"] for t in timings if t["group"] == stored.format(dtype)}
            assert found <= {cases[operator, ours].bytes_to_move(dtype, 1)}


def test_prediction_by_hand(report: Report) -> None:
    case = gpu_roofline.CASES[0]
    found = gpu_roofline.predict(case, gpu_roofline.CARDS[0], "float32", 1, report["kernels"])
    assert found is not None
    # 160 bytes for each of 524,288 pixels at 90 % of 3.35 TB/s, and one launch.
    assert found["memory"] == pytest.approx(160 * 524288 / 3.015e6, abs=0.01)
    assert found["graph"] == pytest.approx(max(found["memory"], found["instructions"]) + 1.0)
    assert found["stream"] == pytest.approx(found["graph"] + 1.5)


MEASURED = {
    "operator": "soft_pseudo_labels",
    "case": "512x1024",
    "dtype": "float32",
    "batch": 1,
    "milliseconds": 0.125,
    "gpu": "NVIDIA H100 80GB HBM3",
}


def test_measured_times_fill_the_last_column(report: Report, tmp_path: Path) -> None:
    rows = [MEASURED, {**MEASURED, "milliseconds": 0.25}, {**MEASURED, "gpu": "NVIDIA L4"}]
    (tmp_path / "gpu_first.json").write_text(json.dumps({"kernels": rows}), encoding="utf-8")
    text = gpu_report.PAGE.read_text(encoding="utf-8")
    page = gpu_report.page(report, text, tmp_path)
    assert "not measured yet" in page
    assert page.count("0.125 (H100), 0.125 (NVIDIA L4)") == 1


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-80GB", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_cards_are_known_by_the_names_of_the_driver(name: str, card: str | None) -> None:
    assert next((c.name for c in gpu_roofline.CARDS if c.matches(name)), None) == card


@pytest.mark.parametrize("wrong", [{"case": "7x7"}, {"operator": "nothing"}, {"gpu": None}])
def test_a_measured_file_with_something_else_is_refused(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    row = {key: value for key, value in {**MEASURED, **wrong}.items() if value is not None}
    (tmp_path / "gpu_first.json").write_text(json.dumps({"kernels": [row]}), encoding="utf-8")
    with pytest.raises(ValueError, match="gpu_first"):
        gpu_roofline.measured(tmp_path)


def test_a_folder_without_objects_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_report.main(["--objects", str(tmp_path), "--check"]) == 2
    assert "no CUDA objects" in capsys.readouterr().err

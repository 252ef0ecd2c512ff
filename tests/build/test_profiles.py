"""The scripts that profile training: their baseline computes the same, their tables are right."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from cscl_fast import ops

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from plain_losses import SelfTraining, cross_entropy, plain_losses


def logits(seed):
    drawn = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(seed)) * 3
    return drawn.requires_grad_()


def test_plain_losses_are_those_of_the_operators():
    labels = torch.randint(0, 5, (2, 45, 51), generator=torch.Generator().manual_seed(0))
    labels[:, :9] = 255
    thresholds = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9])
    teacher = logits(1).detach()
    pairs = [
        (lambda z: cross_entropy(z, labels), lambda z: ops.upsampled_cross_entropy(z, labels)),
        (
            lambda z: SelfTraining()(z, thresholds, 0.25, label_logits=teacher, size=(45, 51)),
            lambda z: ops.pseudo_label_loss(
                z, thresholds, 0.25, label_logits=teacher, size=(45, 51)
            ),
        ),
    ]
    for plain, ours in pairs:
        answers = []
        for loss in (plain, ours):
            z = logits(2)
            loss(z).backward()
            answers += [(loss(z).detach(), z.grad)]
        assert answers[0][0] > 0.1
        # p / δ to the fourth power rounds in float32; gradients as SPEC's bound.
        torch.testing.assert_close(answers[0][0], answers[1][0], rtol=1e-4, atol=1e-6)
        scale = answers[1][1].abs().max().item()
        torch.testing.assert_close(answers[0][1], answers[1][1], rtol=0, atol=1e-4 * scale)


def test_plain_losses_take_the_operators_places_and_give_them_back():
    before = ops.upsampled_cross_entropy, ops.pseudo_label_loss
    with plain_losses():
        assert ops.upsampled_cross_entropy is cross_entropy
        assert isinstance(ops.pseudo_label_loss, SelfTraining)
    assert (ops.upsampled_cross_entropy, ops.pseudo_label_loss) == before


def test_a_runs_steps_are_profiled_as_the_run_takes_them(tmp_path, monkeypatch) -> None:
    """With micro-batches, at the size that the data set has, into a folder that is made."""
    result = tmp_path / "new" / "profile.json"
    options = ["--steps", "1", "--profiled", "1", "--result", str(result), "--accumulate", "2"]
    options += ["--warmup.batch-size", "1", "--adaptation.batch-size", "1"]
    options += ["--adaptation.bn-batches", "0", "--source.size", "default"]
    for data in ("source", "target", "evaluation"):
        options += [f"--{data}.count", "2"]
        options += [] if data == "source" else [f"--{data}.size", "64", "96"]
    monkeypatch.setattr(sys, "argv", ["profile_trainer.py", *options])
    runpy.run_path(str(BENCHMARKS / "profile_trainer.py"))["main"]()
    content = json.loads(result.read_text(encoding="utf-8"))
    assert content["size"] == [128, 256] and {*content["phases"]} == {"warmup", "adaptation"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_a_small_step():
    script = runpy.run_path(str(BENCHMARKS / "profile_memory.py"))
    rows = [
        script["measure"]("deeplabv2-resnet18", (64, 96), plain=plain, recomputing=False)
        for plain in (True, False)
    ]
    # At least the gradients and momenta of 11 million weights. (The second row finds memory that
    # the first one has given back; the script takes a process for each.)
    assert rows[0]["peak_bytes"] > 2 * 4 * 11e6
    # float32 steps on the same batches.
    assert rows[0]["objective"] == pytest.approx(rows[1]["objective"], rel=1e-3)
    table = script["markdown"]([*rows, *({**r, "activation_checkpointing": True} for r in rows)])
    assert table.splitlines()[2].startswith("| a joint step | ")
    assert table.count("|") == 4 * 4


def test_the_page_has_the_stored_memory():
    stored = json.loads((BENCHMARKS / "results" / "training_memory.json").read_text())
    table = runpy.run_path(str(BENCHMARKS / "profile_memory.py"))["markdown"](stored["rows"])
    page = (BENCHMARKS.parent / "docs" / "kernels" / "training_step.md").read_text()
    assert table in page, "run python benchmarks/profile_memory.py, and put its table into the page"

"""From preset, file and command line to one configuration; what is refused, and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from trainer_worlds import arguments

from cscl_fast.cli import keys_of, parse, to_yaml
from cscl_fast.config import Config, ConfigError
from cscl_fast.presets import PRESETS, preset
from cscl_fast.train import main, next_free


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_what_its_name_says(name: str) -> None:
    config = parse(["--preset", name])
    assert config == preset(name)
    assert config.preset == name
    for section in (config.source, config.target, config.evaluation):
        section.validate()
    assert not config.target.use_labels  # never looked at in training
    assert config.evaluation.use_labels and config.source.use_labels


def test_no_arguments_are_the_demo_and_presets_are_fresh_copies() -> None:
    first = parse([])
    assert first == preset("demo")
    first.adaptation.weights.critic = 99.0
    assert parse([]).adaptation.weights.critic == preset("demo").adaptation.weights.critic != 99.0


def test_preset_then_file_then_command_line(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        preset: small
        seed: 3
        without: [transfer, divergence]
        source_only: true
        adaptation: {gamma: 0.5, portion-max: 0.6, weights: {critic: 0.7, adversarial: 1e-4}}
        target: {root: elsewhere, limit: 5, size: [96, 128], mirror: false}
        """,
    )
    base = preset("small")
    config = parse(["--config", file])
    assert config.preset == "small" and config.seed == 3 and config.source_only
    assert config.without == ("transfer", "divergence")
    assert (config.adaptation.gamma, config.adaptation.portion_max) == (0.5, 0.6)
    assert config.adaptation.weights.critic == 0.7
    assert config.adaptation.weights.adversarial == 1e-4  # YAML 1.1 reads this as a text
    assert config.target.root == Path("elsewhere") and config.target.size == (96, 128)
    assert config.target.limit == 5 and not config.target.mirror
    assert config.adaptation.portion == base.adaptation.portion
    assert config.warmup == base.warmup

    config = parse([
        *("--config", file, "--seed", "4", "--without", "pseudo-labels", "--no-source-only"),
        *("--adaptation.gamma=0.125", "--adaptation.portion_max", "0.75", "--target.mirror"),
        *("--target.limit", "None", "--target.size", "None", "--adaptation.weights.critic", "0"),
    ])  # fmt: skip
    assert config.seed == 4 and not config.source_only
    assert config.without == ("pseudo-labels",)
    assert (config.adaptation.gamma, config.adaptation.portion_max) == (0.125, 0.75)
    assert config.target.mirror and config.target.limit is None and config.target.size is None
    assert config.adaptation.weights.critic == 0
    assert parse(["--config", file, "--without"]).without == ()  # none, whatever the file says
    # A preset on the command line takes the place of the file's.
    demo = parse(["--config", file, "--preset", "demo", "--target.kind", "folder"])
    assert demo.source.kind == "scenes" and demo.target.root == Path("elsewhere")


def test_the_resolved_configuration_reads_back_as_it_was(tmp_path: Path) -> None:
    changes = [
        *("--without", "transfer", "divergence", "--seed", "7", "--source-only"),
        *("--target.size", "None", "--target.limit", "9", "--target.scale", "0.5", "1.5"),
        *("--adaptation.discriminator-strides", "2", "2", "2", "1", "1"),
        *("--source.mirror", "--run", "some where/run", "--optimizer.weight-decay", "1e-05"),
    ]
    for options in (*(["--preset", name] for name in PRESETS), changes):
        config = parse(options)
        file = write(tmp_path, to_yaml(config))
        assert replace(parse(["--config", file]), config=None) == config


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--without", "transfer", "--without", "divergence"], ("transfer", "divergence")),
        (["--without", "transfer", "divergence"], ("transfer", "divergence")),
        (["--without=transfer", "--seed", "1", "--without=transfer"], ("transfer",)),
    ],
)
def test_repeated_ablations_add_up(options: list[str], expected: tuple[str, ...]) -> None:
    assert parse(options).without == expected


def test_repeated_sweeps_and_seeds_add_up(tmp_path: Path) -> None:
    options = ["--sweep", "xi1=0.1,0.3", "--seeds", "0", "--sweep=gamma=0.5", "--seeds", "2", "1"]
    config = parse(options)
    assert config.sweep == ("xi1=0.1,0.3", "gamma=0.5") and config.seeds == (0, 2, 1)
    file = write(tmp_path, "sweep: [xi1=0.1]\nseeds: [4, 5]\n")
    config = parse(["--config", file, "--seeds=6"])
    assert config.sweep == ("xi1=0.1",) and config.seeds == (6,)  # the command line's alone
    with pytest.raises(ConfigError, match=r"seeds is \(3, 3\); they must differ"):
        parse(["--ablation", "--seeds", "3", "--seeds", "3"])


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("adaptation.gama", "adaptation.gamma"),
        ("gamma", "adaptation.gamma"),
        ("gama", "adaptation.gamma"),
        ("adaptation.weights.critik", "adaptation.weights.critic"),
        ("sed", "seed"),
        ("gpu", "device"),
        ("epochs", "adaptation.epochs"),
        ("warmup.lr", "warmup.learning_rate"),
        ("source.rot", "source.root"),
        ("warmup.step", "warmup.steps"),
        ("target.no-miror", "target.mirror"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(
    key: str, nearest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ([f"--{key}", "1"], [f"--{key}=1"]):
        assert main(options) == 2
        message = capsys.readouterr().err
        got = key.replace("-", "_")
        assert f"unknown key '{got}'; the nearest valid one is '{nearest}'" in message
    if "no-" in key:
        return
    entries: dict = {}
    *sections, last = key.split(".")
    inner = entries
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = 1
    file = write(tmp_path, yaml.safe_dump(entries))
    assert main(["--config", file]) == 2
    message = capsys.readouterr().err
    assert f"{file}: unknown key '{key}'; the nearest valid one is '{nearest}'" in message
    assert "Traceback" not in message and message.count("\n") == 1


def test_an_unknown_key_names_all_that_are_as_near_and_none_that_is_far() -> None:
    for key, named in (
        ("lr", "the nearest valid ones are 'warmup.learning_rate', 'adaptation.learning_rate'"),
        ("batch", "the nearest valid ones are 'warmup.batch_size', 'adaptation.batch_size'"),
        ("size", "the nearest valid ones are 'source.size', 'target.size', 'evaluation.size'"),
        ("wd", "--help lists the keys"),
        ("fp16", "--help lists the keys"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse([f"--{key}", "1"])
        assert str(caught.value) == f"unknown key '{key}'; {named}"


@pytest.mark.parametrize(
    ("options", "text", "named"),
    [
        (["--adaptation.gamma", "high"], "adaptation: {gamma: high}", "--adaptation.gamma"),
        (["--warmup.steps", "1.5"], "warmup: {steps: 1.5}", "--warmup.steps"),
        (["--seed"], "seed: true", "--seed"),
        (["--model.architecture", "resnet"], "model: {architecture: resnet}", "--model.archit"),
        (["--without", "everything"], "without: [everything]", "--without"),
        (["--source.size", "96"], "source: {size: [96]}", "--source.size"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_key(
    options: list[str], text: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (options, ["--config", write(tmp_path, text)]):
        assert main(given) == 2
        message = capsys.readouterr().err
        assert named in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adaptation.gamma", "0"], "adaptation.gamma is 0.0; it has to be above 0"),
        (["--adaptation.gamma", "nan"], "adaptation.gamma is nan"),
        (["--adaptation.portion", "1.5"], "adaptation.portion is 1.5; S_A is a share in (0, 1]"),
        (["--adaptation.portion-max", "0"], "adaptation.portion_max is 0.0"),
        (["--adaptation.portion-step", "-0.1"], "adaptation.portion_step is -0.1"),
        (["--adaptation.ema-decay", "1"], "adaptation.ema_decay is 1.0; it has to be in [0, 1)"),
        (["--adaptation.centroid-momentum", "1"], "adaptation.centroid_momentum is 1.0"),
        (["--adaptation.labels", "live"], "adaptation.labels is live, which needs"),
        (["--adaptation.weights.divergence", "-1"], "adaptation.weights.divergence is -1.0"),
        (
            ["--adaptation.discriminator-strides", "3", "1", "1", "1", "1"],
            "adaptation.discriminator_strides is (3, 1, 1, 1, 1); each stride is 1 or 2",
        ),
        (["--warmup.batch-size", "0"], "warmup.batch_size is 0; it has to be above 0"),
        (["--warmup.steps", "-1"], "warmup.steps is -1; it must not be negative"),
        (["--warmup.steps", "0"], "warmup.steps is 0 and model.init is none"),
        (["--optimizer.momentum", "1"], "optimizer.momentum is 1.0"),
        (["--log-every", "0"], "log_every is 0"),
        (["--seed", "-1"], "seed is -1; it must not be negative"),
        (["--source.size", "0", "5"], "source.size is (0, 5); it is (H, W), both positive"),
        (["--target.color-jitter", "9"], "target.color_jitter is 9.0; it is between 0 and 2"),
        (["--evaluation.kind", "gta5"], "evaluation.root is not set"),
        (
            ["--source.root", "mine", "--target.root", "mine"],
            "source.root is mine, but kind is 'scenes', which are drawn and read no files; "
            "for data of your own give --preset small or --source.kind folder",
        ),
        (["--evaluation.list-file", "a"], "evaluation.list_file is a, but kind is 'scenes'"),
        (["--target.city", "Rome"], "target.city is Rome, but kind is 'scenes'"),
        (["--device", "gpu"], "device is gpu, which cannot be used"),
        (["--preset", "gta"], "unknown preset 'gta'; it is one of demo, small, gta5-cityscapes"),
        (["--config", "none.yaml"], "config is none.yaml; there is no such file"),
        (
            ["--ablation", "--seeds", "0,1", "2"],
            "seeds is 0,1 2; between seeds are spaces, not commas: --seeds 0 1 2",
        ),
        (["--resume", "nowhere"], "resume is nowhere; there is no"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_cannot_work_is_refused_with_its_key(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(options) == 2
    shown = capsys.readouterr().err
    assert f"cscl_fast.train: {message}" in shown
    assert "Traceback" not in shown and shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing was begun


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "holds a list; it needs keys and values"),
        ("seed: [1\n", "is not valid YAML"),
        ("adaptation: 3\n", "adaptation is 3; it is a section with keys such as adaptation."),
        ("preset: [demo]\n", "unknown preset '['demo']'"),
        ("preset: dmo\n", "unknown preset 'dmo'; the nearest valid one is 'demo'"),
    ],
)
def test_a_file_that_is_no_configuration(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", write(tmp_path, text)]) == 2
    assert message in capsys.readouterr().err


def test_bytes_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00seed")
    assert main(["--config", str(path)]) == 2
    assert "is not valid YAML" in capsys.readouterr().err


def test_empty_files_and_sections_change_nothing(tmp_path: Path) -> None:
    for text in ("", "adaptation:\n  # gamma: 0.5\nsource: {}\n"):
        found = parse(["--config", write(tmp_path, text)])
        assert replace(found, config=None) == preset("demo")


def test_config_and_resume_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(parse([])))
    assert parse(["--resume", str(tmp_path)]).run == tmp_path
    with pytest.raises(ConfigError, match="config and resume exclude each other"):
        parse(["--resume", str(tmp_path), "--config", write(tmp_path, "seed: 1")])


def test_help_explains_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for key in keys_of(Config):
        assert f"--{key.replace('_', '-')}" in text, key


def test_the_short_way_to_name_an_optimizers_implementation(tmp_path: Path) -> None:
    file = write(tmp_path, "optimizer: apex")
    for options in (["--optimizer", "apex"], ["--optimizer=apex"], ["--config", file]):
        assert parse(options).optimizer == replace(preset("demo").optimizer, implementation="apex")
    assert parse(["--config", file, "--optimizer", "loop"]).optimizer.implementation == "loop"


def test_next_free_folder(tmp_path: Path) -> None:
    assert next_free(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert next_free(tmp_path / "demo") == tmp_path / "demo-3"


@pytest.mark.usefixtures("tiny")
def test_folders_of_several_runs(
    worlds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--source-only", "--warmup.steps", "1"]
    assert main(arguments(worlds, None, *short)) == 0
    assert main(arguments(worlds, None, *short)) == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == ["small-seed0", "small-seed0-2"]
    again = arguments(worlds, Path("runs/small-seed0"), *short)
    capsys.readouterr()
    assert main(again) == 2
    message = capsys.readouterr().err
    assert "there is a run in runs/small-seed0 already" in message
    for way in ("--resume runs/small-seed0", "--overwrite", "--run FOLDER"):
        assert way in message
    # Starting again leaves nothing of the old run that could be taken for the new one's.
    stale = Path("runs/small-seed0/checkpoints/best.pt")
    stale.write_bytes(b"of another run")
    assert main([*again, "--overwrite", "--seed", "5"]) == 0
    assert not stale.exists()
    assert "seed: 5" in Path("runs/small-seed0/config.yaml").read_text()
    assert "overwrite" not in Path("runs/small-seed0/config.yaml").read_text()
    assert main(arguments(worlds, None, *short, "--overwrite")) == 0
    assert len(list(Path("runs").iterdir())) == 2

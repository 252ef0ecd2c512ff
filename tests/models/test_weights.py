"""Weights from files: every naming the field uses, and what is said of files that do not fit."""

import argparse
import urllib.error

import pytest
import torch
import torchvision

from cscl_fast.models import WeightsError, build_model, load_weights
from cscl_fast.models.weight_names import rename
from cscl_fast.models.weights import CHECKPOINT_VERSION

CLASSES = 5


def network(architecture="deeplabv2-resnet18", num_classes=CLASSES):
    return build_model(architecture, num_classes)


@pytest.fixture(scope="module")
def source():
    """The network whose weights are stored under one naming or another."""
    torch.manual_seed(7)
    model = network()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    return model


def as_field(state, prefix="", head="layer5"):
    """A state dict under the names of the field's DeepLab ports."""
    names = {name: name.removeprefix("encoder.") for name in state}
    names = {
        name: new.replace("classifier.branches", f"{head}.conv2d_list")
        for name, new in names.items()
    }
    return {prefix + names[name]: tensor for name, tensor in state.items()}


def own_checkpoint(model, **changes):
    return {
        "format": "cscl_fast.checkpoint",
        "version": 1,
        "architecture": model.architecture,
        "num_classes": model.num_classes,
        "model": model.state_dict(),
        **changes,
    }


def save(content, folder, name="weights.pth"):
    torch.save(content, folder / name)
    return folder / name


def assert_same_weights(found, expected, part=""):
    expected = expected.state_dict()
    for name, tensor in found.state_dict().items():
        if name.startswith(part):
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    "naming",
    [
        lambda model: model.state_dict(),
        lambda model: own_checkpoint(model),
        lambda model: as_field(model.state_dict()),
        lambda model: as_field(model.state_dict(), "Scale."),
        lambda model: as_field(model.state_dict(), "module."),
        lambda model: as_field(model.state_dict(), "module.Scale."),
        lambda model: {f"_orig_mod.module.{k}": v for k, v in model.state_dict().items()},
        lambda model: {"state_dict": as_field(model.state_dict(), "module."), "epoch": 3},
        lambda model: {"model": model.state_dict(), "optimizer": {"state": {}}},
        lambda model: {"net": {"model_state_dict": model.state_dict()}},
    ],
    ids=[
        "own names",
        "own checkpoint",
        "layer5",
        "Scale",
        "DataParallel",
        "DataParallel of Scale",
        "compiled DataParallel",
        "state_dict",
        "model",
        "nested wrappers",
    ],
)
def test_whole_networks_load_from_every_naming(naming, source, tmp_path):
    path = save(naming(source), tmp_path)
    model = network()
    report = load_weights(model, str(path))
    assert_same_weights(model, source)
    assert set(report.matched) == set(source.state_dict())
    assert not report.missing and not report.unexpected and not report.mismatched
    assert str(path) in str(report) and "encoder: 120 of 120" in str(report)
    assert "classifier: 8 of 8" in str(report)


def test_torchvision_file_fills_the_encoder_and_reports_the_rest(source, tmp_path):
    original = torchvision.models.resnet18(weights=None)
    model = network()
    head = model.classifier.branches[0].weight.clone()
    report = load_weights(model, save(original.state_dict(), tmp_path))
    for name, tensor in original.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(model.encoder.state_dict()[name], tensor)
    assert torch.equal(model.classifier.branches[0].weight, head)
    assert len(report.matched) == 120
    assert sorted(report.unexpected) == ["fc.bias", "fc.weight"]
    assert all(name.startswith("classifier.") for name in report.missing)
    assert len(report.missing) == 8
    assert len(report.renamed["* -> encoder.*"]) == 120
    assert "fc.weight" in str(report) and "classifier: 0 of 8" in str(report)
    assert len(str(report).splitlines()) < 10


def test_rules_name_the_keys_that_they_renamed(source, tmp_path):
    report = load_weights(network(), save(as_field(source.state_dict(), "Scale."), tmp_path))
    assert len(report.renamed["Scale.* -> *"]) == 128
    assert sorted(report.renamed["layer5.conv2d_list.* -> classifier.branches.*"]) == sorted(
        f"Scale.layer5.conv2d_list.{n}.{kind}" for n in range(4) for kind in ("weight", "bias")
    )
    assert "Scale.* -> *: 128" in str(report)


def test_caffe_names_come_with_a_note_except_for_the_caffe_network(source, tmp_path):
    path = save(as_field(source.state_dict()), tmp_path)
    report = load_weights(network(), path)
    assert "deeplabv2-resnet101-caffe" in str(report)
    torchvision_file = save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path)
    assert not load_weights(network(), torchvision_file).notes
    caffe = build_model("deeplabv2-resnet101-caffe", CLASSES)
    report = load_weights(caffe, save(as_field(caffe.state_dict()), tmp_path))
    assert not report.notes and len(report.matched) == len(caffe.state_dict())


def test_of_two_heads_the_one_on_the_last_layer_is_taken(source, tmp_path):
    state = as_field(source.state_dict(), head="layer6")
    auxiliary = {f"layer5.conv2d_list.{n}.weight": torch.zeros(CLASSES, 256, 3, 3) for n in "0123"}
    model = network()
    report = load_weights(model, save(state | auxiliary, tmp_path))
    assert_same_weights(model, source)
    assert set(report.unexpected) == set(auxiliary)


@pytest.mark.parametrize("wrap", [as_field, lambda state: {"model": state}], ids=["field", "own"])
def test_classifier_for_other_classes_is_left_out_and_reported(wrap, source, tmp_path):
    model = network(num_classes=19)
    before = {name: tensor.clone() for name, tensor in model.classifier.state_dict().items()}
    report = load_weights(model, save(wrap(source.state_dict()), tmp_path))
    assert_same_weights(model.encoder, source.encoder)
    for name, tensor in model.classifier.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert len(report.mismatched) == 8
    assert report.mismatched["classifier.branches.0.weight"] == ((5, 512, 3, 3), (19, 512, 3, 3))
    assert "classifier: 0 of 8" in str(report) and "[5, 512, 3, 3] for [19, 512, 3, 3]" in str(
        report
    )


def test_files_without_counted_batches_are_complete(source, tmp_path):
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    report = load_weights(network(), save(state, tmp_path))
    assert not report.missing and len(report.matched) == len(state)


def test_half_precision_files_load_into_float32(source, tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    model = network()
    load_weights(model, save(state, tmp_path))
    assert model.encoder.conv1.weight.dtype == torch.float32
    assert torch.equal(model.encoder.conv1.weight, source.encoder.conv1.weight.half().float())


def test_loading_keeps_channels_last_and_what_is_trained(source, tmp_path):
    model = build_model("deeplabv2-resnet18", CLASSES, batchnorm_affine=False)
    load_weights(model, save(source.state_dict(), tmp_path))
    weight = model.encoder.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and weight.requires_grad
    assert not model.encoder.bn1.weight.requires_grad


def test_linear_layers_of_vgg_become_convolutions():
    with torch.device("meta"):  # names and shapes are enough
        expected = build_model("fcn8s-vgg16", CLASSES).state_dict()
    fc6 = torch.arange(25088.0)  # what the linear layer reads at [channel, row, column], flattened
    found = {
        "features.0.weight": torch.zeros(64, 3, 3, 3),
        "classifier.0.weight": fc6.expand(4096, -1),
        "classifier.3.weight": torch.arange(4096.0).expand(4096, -1),
        "classifier.3.bias": torch.zeros(4096),
        "classifier.6.weight": torch.zeros(1000, 4096),
    }
    names = rename(found, expected)
    assert names.left == ("classifier.6.weight",)
    assert set(names.tensors) == {
        "encoder.features.0.weight",
        "encoder.fc6.weight",
        "encoder.fc7.weight",
        "encoder.fc7.bias",
    }
    for name, tensor in names.tensors.items():
        assert tensor.shape == expected[name].shape, name
    # On a 7x7 input, the centre of the padded convolution is the linear layer.
    channel, row, column = 300, 2, 5
    pool5 = torch.zeros(512, 7, 7)
    pool5[channel, row, column] = 1
    assert names.tensors["encoder.fc6.weight"][9, channel, row, column] == pool5.flatten() @ fc6
    assert names.tensors["encoder.fc7.weight"][9, 77, 0, 0] == 77


# What is refused. In every case the network keeps its weights.


def assert_refused(model, spec, *parts):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, spec)
    for part in parts:
        assert part in str(caught.value)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_missing_file_is_named(tmp_path):
    assert_refused(network(), str(tmp_path / "no.pth"), str(tmp_path / "no.pth"), "does not exist")
    assert_refused(network(), str(tmp_path), str(tmp_path), "is a folder")


@pytest.mark.parametrize(
    "content",
    [b"", b"a text file, not a checkpoint", b"\x89PNG\r\n\x1a\n" + bytes(64), b"PK\x03\x04junk"],
    ids=["empty", "text", "png", "zip"],
)
def test_what_is_no_checkpoint_is_named(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert_refused(network(), path, str(path), "not a PyTorch checkpoint, or is damaged")


def test_truncated_checkpoint_is_named(source, tmp_path):
    path = save(source.state_dict(), tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert_refused(network(), path, str(path), "damaged")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_objects_are_refused(zipped, tmp_path):
    content = {"state_dict": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=1)}
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_refused(network(), path, str(path), "argparse.Namespace", "state_dict()")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {}}, torch.zeros(3)])
def test_file_without_a_state_dict_is_refused(content, tmp_path):
    path = save(content, tmp_path)
    assert_refused(network(), path, str(path), "no state dict")


def test_nothing_matched_names_three_keys_of_each(tmp_path):
    path = save({f"blocks.{n}.kernel": torch.zeros(2) for n in range(5)}, tmp_path)
    assert_refused(
        network(),
        path,
        str(path),
        "blocks.0.kernel, blocks.1.kernel, blocks.2.kernel and 2 more",
        "encoder.conv1.weight, encoder.bn1.weight, encoder.bn1.bias",
    )


@pytest.mark.parametrize(("depth", "reason"), [(34, "layer1.2."), (50, "instead of")])
def test_weights_of_another_encoder_are_refused(depth, reason, tmp_path):
    other = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    path = save(other.state_dict(), tmp_path)
    assert_refused(network(), path, str(path), "deeplabv2-resnet18", reason)


def test_checkpoint_of_another_architecture_is_refused_with_both_names(source, tmp_path):
    path = save(own_checkpoint(source, architecture="fcn8s-vgg16"), tmp_path)
    assert_refused(network(), path, str(path), "fcn8s-vgg16", "deeplabv2-resnet18")


@pytest.mark.parametrize("version", [CHECKPOINT_VERSION + 1, None, "1"])
def test_checkpoint_of_a_newer_version_is_refused(version, source, tmp_path):
    path = save(own_checkpoint(source, version=version), tmp_path)
    assert_refused(
        network(), path, str(path), f"version {version}", f"to version {CHECKPOINT_VERSION}"
    )


# ImageNet weights, from a torch hub folder of the test's own.


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_imagenet_weights_come_from_the_hub_folder(hub):
    original = torchvision.models.resnet18(weights=None)
    torch.save(original.state_dict(), hub / "resnet18-f37072fd.pth")
    model = network()
    report = load_weights(model, "imagenet")
    assert torch.equal(model.encoder.layer4[1].conv2.weight, original.layer4[1].conv2.weight)
    assert len(report.matched) == 120


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("deeplabv2-resnet18", "resnet18-f37072fd.pth"),
        ("deeplabv2-resnet101", "resnet101-63fe2227.pth"),
    ],
)
def test_imagenet_weights_offline_name_the_file_and_its_place(architecture, name, hub, monkeypatch):
    attempts = []

    def unreachable(url, *_, **__):
        attempts.append(url)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    assert_refused(network(architecture), "imagenet", name, str(hub), "no network")
    assert len(attempts) == 1


def test_damaged_imagenet_file_is_named(hub):
    (hub / "resnet18-f37072fd.pth").write_bytes(b"half a download")
    assert_refused(network(), "imagenet", str(hub / "resnet18-f37072fd.pth"), "damaged")


def test_caffe_network_has_no_imagenet_weights_of_torchvision(hub):
    model = build_model("deeplabv2-resnet101-caffe", CLASSES)
    assert_refused(model, "imagenet", "deeplabv2-resnet101-caffe")

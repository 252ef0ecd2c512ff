"""Samples: sizes, normalisation, augmentation, caching, and bad files in the middle of a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from data_writers import save_image, save_label, write_folder
from PIL import Image
from torchvision.transforms.v2 import functional as F

from cscl_fast.data import DataError, DatasetConfig, load_image, open_dataset

PLAIN = DatasetConfig(kind="folder", mirror=False)


@pytest.fixture
def folder(tmp_path) -> DatasetConfig:
    return replace(PLAIN, root=write_folder(tmp_path, size=(24, 40)))


def raw(config: DatasetConfig, index: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The files' own pixels, read without the package: [3, H, W] uint8 and [H, W] int64."""
    assert config.root is not None
    image = np.array(Image.open(config.root / "images" / "train" / f"a{index}.png"))
    label = np.array(Image.open(config.root / "labels" / "train" / f"a{index}.png"))
    return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label).long()


def test_a_sample(folder) -> None:
    dataset = open_dataset(folder, training=False)
    assert len(dataset) == 4
    sample = dataset[2]
    image, label = raw(folder, 2)
    assert sample["image"].dtype == torch.float32 and sample["image"].is_contiguous()
    assert sample["label"].dtype == torch.int64 and torch.equal(sample["label"], label)
    assert sample["clean"] is sample["image"]
    assert torch.equal(dataset.denormalise(sample["image"]), image)
    assert (sample["name"], sample["index"]) == ("a2", 2)
    assert sample["path"] == str(folder.root / "images" / "train" / "a2.png")
    assert dataset[-1]["name"] == "a3"
    with pytest.raises(IndexError):
        dataset[4]


def test_normalisations(folder) -> None:
    image = raw(folder)[0].double()
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    caffe = torch.tensor([104.00698793, 116.66876762, 122.67891434], dtype=torch.float64)
    expected = {
        "imagenet": (image / 255 - mean) / deviation,
        "caffe": image[[2, 1, 0]] - caffe.view(3, 1, 1),
        "none": image / 255,
    }
    for name, values in expected.items():
        dataset = open_dataset(replace(folder, normalisation=name), training=False)
        found = dataset[0]["image"]
        # float32 rounding of values up to 255
        torch.testing.assert_close(found.double(), values, rtol=1e-6, atol=2e-5)
        assert torch.equal(dataset.denormalise(found), raw(folder)[0])
        assert torch.equal(dataset.denormalise(found[None])[0], raw(folder)[0])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(12, 20), (7, 31), (48, 80)])
def test_resizing(folder, size, interpolation) -> None:
    config = replace(folder, size=size, interpolation=interpolation)
    dataset = open_dataset(config, training=False)
    sample = dataset[0]
    image, label = raw(folder)
    mode = getattr(F.InterpolationMode, interpolation.upper())
    expected = F.resize(image, list(size), interpolation=mode, antialias=True)
    # An independent antialiased filter; both round their two passes to whole numbers.
    assert (dataset.denormalise(sample["image"]).int() - expected.int()).abs().max() <= 2
    assert torch.equal(sample["label"], label)  # evaluation: the label file's own size

    rows = ((torch.arange(size[0]) + 0.5) * 24 / size[0]).floor().long()
    columns = ((torch.arange(size[1]) + 0.5) * 40 / size[1]).floor().long()
    nearest = label[rows][:, columns]
    assert torch.equal(open_dataset(config, training=True)[0]["label"], nearest)
    evaluation = open_dataset(replace(config, label_size=size), training=False)
    assert torch.equal(evaluation[0]["label"], nearest)


def test_a_label_of_another_size_is_resized_in_training(folder) -> None:
    save_label(folder.root / "labels" / "train" / "a1.png", np.ones((48, 80)))
    assert open_dataset(folder, training=True)[1]["label"].shape == (24, 40)
    assert open_dataset(folder, training=False)[1]["label"].shape == (48, 80)


def coded(tmp_path, size=(40, 60)) -> DatasetConfig:
    """A data set whose label can be read from the image: blocks of three grey values."""
    write_folder(tmp_path, count=1, size=size)
    blocks = np.random.default_rng(3).integers(0, 3, (5, 6))
    label = np.kron(blocks, np.ones((size[0] // 5, size[1] // 6))).astype(np.uint8)
    save_label(tmp_path / "labels" / "train" / "a0.png", label)
    grey = np.repeat((50 + 70 * label)[..., None], 3, axis=2).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "images" / "train" / "a0.png")
    return DatasetConfig(
        kind="folder", root=tmp_path, mirror=False, normalisation="none", interpolation="bilinear"
    )


def decoded_label(image: torch.Tensor) -> torch.Tensor:
    """Back from the grey value to the class."""
    return ((image[0] * 255 - 50) / 70).round().long()


def test_mirror_moves_image_and_label_alike(tmp_path) -> None:
    config = replace(coded(tmp_path), mirror=True)
    dataset = open_dataset(config, training=True)
    original = open_dataset(config, training=False)[0]
    mirrored = 0
    for epoch in range(40):
        sample = dataset[(epoch, 0)]
        assert torch.equal(decoded_label(sample["image"]), sample["label"])
        mirrored += torch.equal(sample["image"], original["image"].flip(-1))
        assert torch.equal(sample["image"].sort().values, original["image"].sort().values)
    assert 8 <= mirrored <= 32  # half of 40, four deviations wide


def test_crops_are_parts_of_the_image(tmp_path) -> None:
    config = replace(coded(tmp_path), crop=(16, 24))
    dataset = open_dataset(config, training=True)
    whole = open_dataset(config, training=False)[0]["image"]
    windows = whole.unfold(1, 16, 1).unfold(2, 24, 1)  # [3, 25, 37, 16, 24]
    places = set()
    for epoch in range(30):
        sample = dataset[(epoch, 0)]
        assert torch.equal(decoded_label(sample["image"]), sample["label"])
        equal = (windows == sample["image"][:, None, None]).all(dim=(0, 3, 4))
        assert equal.any()
        places.add(tuple(equal.nonzero()[0].tolist()))
    assert len(places) > 20


def test_scale_moves_image_and_label_alike(tmp_path) -> None:
    config = replace(coded(tmp_path), scale=(0.5, 2.0), crop=(32, 48), mirror=True)
    dataset = open_dataset(config, training=True)
    padded = 0
    for epoch in range(30):
        sample = dataset[(epoch, 0)]
        assert sample["image"].shape == (3, 32, 48) and sample["label"].shape == (32, 48)
        inside = sample["label"] != 255
        padded += not inside.all()
        # Along the blocks' borders the image is interpolated and the label is not.
        agree = decoded_label(sample["image"])[inside] == sample["label"][inside]
        assert agree.float().mean() > 0.85
    assert padded > 3


def test_scale_without_crop_keeps_the_size(tmp_path) -> None:
    dataset = open_dataset(replace(coded(tmp_path), scale=(0.5, 2.0)), training=True)
    for epoch in range(10):
        assert dataset[(epoch, 0)]["image"].shape == (3, 40, 60)


def test_an_image_smaller_than_the_crop_is_padded(tmp_path) -> None:
    config = replace(coded(tmp_path), crop=(50, 64))
    sample = open_dataset(config, training=True)[0]
    whole = open_dataset(config, training=False)[0]
    assert torch.equal(sample["image"][:, :40, :60], whole["image"])
    assert torch.equal(sample["label"][:40, :60], whole["label"])
    assert (sample["label"][40:] == 255).all() and (sample["label"][:, 60:] == 255).all()
    mean = whole["image"].mean(dim=(1, 2))
    # The mean colour, rounded to a whole number of 255.
    assert (sample["image"][:, 45, 62] - mean).abs().max() <= 0.5 / 255 + 1e-6


def test_colour_and_blur_leave_clean_and_label_alone(folder) -> None:
    plain = open_dataset(folder, training=True)[0]
    for change in ({"color_jitter": 1.0}, {"blur": 1.0}):
        dataset = open_dataset(replace(folder, **change), training=True)
        samples = [dataset[(epoch, 0)] for epoch in range(10)]
        changed = [not torch.equal(s["image"], s["clean"]) for s in samples]
        assert sum(changed) >= 3  # a blur of sigma below 0.4 may round to nothing
        assert all(torch.equal(s["clean"], plain["image"]) for s in samples)
        assert all(torch.equal(s["label"], plain["label"]) for s in samples)
    evaluation = open_dataset(replace(folder, color_jitter=1.0, blur=1.0), training=False)[0]
    assert torch.equal(evaluation["image"], plain["image"])


def test_blur_takes_contrast_away_as_often_as_asked(folder) -> None:
    dataset = open_dataset(replace(folder, blur=0.3), training=True)
    samples = [dataset[(epoch, 0)] for epoch in range(200)]
    changed = [s for s in samples if s["image"] is not s["clean"]]
    assert 34 <= len(changed) <= 86  # 60, four deviations wide
    rough = [(s["image"].diff().abs().sum(), s["clean"].diff().abs().sum()) for s in changed]
    assert all(after <= before for after, before in rough)


def test_jitter_grows_with_its_strength(folder) -> None:
    def mean_change(strength: float) -> float:
        dataset = open_dataset(replace(folder, color_jitter=strength), training=True)
        samples = [dataset[(epoch, 0)] for epoch in range(20)]
        return sum(float((s["image"] - s["clean"]).abs().mean()) for s in samples)

    assert 0 < mean_change(0.2) < mean_change(0.6) < mean_change(1.5)


AUGMENTED = {
    "mirror": True,
    "scale": (0.6, 1.4),
    "crop": (20, 30),
    "color_jitter": 0.5,
    "blur": 0.5,
}


def test_a_sample_depends_on_seed_epoch_and_index_alone(folder) -> None:
    config = replace(folder, **AUGMENTED)
    first, second = (open_dataset(config, training=True, seed=5) for _ in range(2))
    torch.manual_seed(1)
    np.random.seed(1)
    forwards = {(e, i): first[(e, i)] for e in range(3) for i in range(4)}
    torch.manual_seed(2)
    before = torch.get_rng_state()
    for e, i in sorted(forwards, reverse=True):
        second.set_epoch(e)
        for key in ("image", "clean", "label"):
            assert torch.equal(second[i][key], forwards[(e, i)][key])
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's numbers are used up
    other = open_dataset(config, training=True, seed=6)
    assert not torch.equal(other[0]["image"], forwards[(0, 0)]["image"])
    assert not torch.equal(forwards[(0, 0)]["image"], forwards[(1, 0)]["image"])


def test_switching_one_step_off_leaves_the_others_alone(folder) -> None:
    config = replace(folder, mirror=True, crop=(20, 30))
    quiet = open_dataset(config, training=True)
    loud = open_dataset(replace(config, color_jitter=1.0, blur=1.0), training=True)
    for epoch in range(5):
        assert torch.equal(quiet[(epoch, 0)]["image"], loud[(epoch, 0)]["clean"])


@pytest.mark.parametrize("training", [True, False])
def test_cached_samples_are_the_same(folder, training: bool) -> None:
    config = replace(folder, size=(18, 30), **AUGMENTED)
    plain = open_dataset(config, training=training)
    cached = open_dataset(replace(config, cache="ram"), training=training)
    keys = [(epoch, index) for epoch in (0, 1) for index in (1, 2)]
    expected = {key: plain[key] for key in keys}
    cached.preload()
    for file in folder.root.rglob("*.png"):
        file.unlink()  # nothing is read again
    for key in keys:
        for value in ("image", "clean", "label"):
            cached[key][value].zero_()  # writing into a sample does not reach the cache
            assert torch.equal(cached[key][value], expected[key][value])


def test_load_image(folder) -> None:
    config = replace(folder, size=(12, 20), normalisation="caffe")
    path = folder.root / "images" / "train" / "a1.png"
    assert torch.equal(load_image(path, config), open_dataset(config, training=False)[1]["image"])
    assert load_image(path, replace(config, root=None, size=None)).shape == (3, 24, 40)
    with pytest.raises(DataError, match=r"none\.png is missing"):
        load_image(path.with_name("none.png"), config)


def test_bad_files_in_the_middle_name_themselves(folder) -> None:
    images, labels = folder.root / "images" / "train", folder.root / "labels" / "train"
    dataset = open_dataset(folder, training=True)
    (images / "a0.png").write_bytes((images / "a0.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"image .*images/train/a0\.png"):
        dataset[0]
    (labels / "a1.png").unlink()
    with pytest.raises(DataError, match=r"label .*labels/train/a1\.png is missing"):
        dataset[1]
    save_label(labels / "a2.png", np.full((24, 40), 7))
    with pytest.raises(DataError, match=r"a2\.png has ids outside the class list: 7; 3 classes"):
        dataset[2]
    save_label(labels / "a3.png", np.zeros((24, 24)))
    with pytest.raises(DataError, match=r"a3\.png is 24x24 \(HxW\), but its image .* is 24x40"):
        dataset[3]
    save_image(labels / "a3.png", (24, 40))
    with pytest.raises(DataError, match=r"a3\.png is a colour image"):
        dataset[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "kitti"}, "kind is 'kitti'; it is one of scenes, folder, gta5"),
        ({"root": None}, "root is not set; kind 'folder' needs the data set's folder"),
        ({"kind": "scenes"}, "root is .*, but kind is 'scenes', .* read no files; .* kind folder"),
        ({"kind": "gta5", "classes": 12}, "classes is 12; kind 'gta5' has 19, 16 or 13"),
        ({"size": "large"}, "size is 'large'"),
        ({"size": (0, 4)}, r"size is \(0, 4\); it is \(H, W\), both positive"),
        ({"crop": (4,)}, r"crop is \(4,\)"),
        ({"label_size": (4, -1)}, r"label_size is \(4, -1\)"),
        ({"scale": (1.5, 0.5)}, r"scale is \(1.5, 0.5\); it is \(lowest, highest\)"),
        ({"color_jitter": -1.0}, "color_jitter is -1.0"),
        ({"blur": 1.5}, "blur is 1.5; it is a probability"),
        ({"limit": 0}, "limit is 0; it is at least 1"),
        ({"normalisation": "mean"}, "normalisation is 'mean'; it is one of imagenet, caffe, none"),
        ({"interpolation": "area"}, "interpolation is 'area'; it is one of bilinear, bicubic"),
        ({"cache": "tape"}, "cache is 'tape'; it is one of none, ram, disk"),
    ],
)
def test_values_that_cannot_work(folder, change, message) -> None:
    with pytest.raises(ValueError, match="seed is -1; it is 0 or more"):
        open_dataset(folder, training=True, seed=-1)
    with pytest.raises(ValueError, match=message):
        open_dataset(replace(folder, **change), training=True)

"""The drawn streets: deterministic, exactly labelled, and two different worlds."""

import numpy as np
import pytest

from cscl_fast.scenes import SCENE_CLASS_COLORS, SCENE_CLASS_NAMES, draw_scene

LOOKS = ("synthetic", "real")
SIZE = (96, 192)
SCENES = 40
NUM_CLASSES = len(SCENE_CLASS_NAMES)


@pytest.fixture(scope="module")
def scenes():
    return {look: [draw_scene(0, index, look, SIZE) for index in range(SCENES)] for look in LOOKS}


def class_shares(drawn):
    """[scenes, classes]: share of each class in each label."""
    counts = [np.bincount(label.ravel(), minlength=NUM_CLASSES) for _, label in drawn]
    return np.stack(counts) / (SIZE[0] * SIZE[1])


def test_class_lists_belong_together():
    assert NUM_CLASSES >= 8
    assert len(SCENE_CLASS_COLORS) == NUM_CLASSES
    assert len(set(SCENE_CLASS_NAMES)) == NUM_CLASSES
    assert len(set(SCENE_CLASS_COLORS)) == NUM_CLASSES


@pytest.mark.parametrize("look", LOOKS)
def test_same_arguments_give_the_same_bytes(look):
    for index in (0, 7):
        first, again = (draw_scene(3, index, look, SIZE) for _ in range(2))
        assert first[0].tobytes() == again[0].tobytes()
        assert first[1].tobytes() == again[1].tobytes()


@pytest.mark.parametrize("look", LOOKS)
def test_drawing_leaves_no_state_behind(look):
    """A scene does not depend on the scenes drawn before it."""
    alone = draw_scene(5, 2, look, SIZE)
    for other in LOOKS:
        draw_scene(5, 1, other, (40, 60))
    again = draw_scene(5, 2, look, SIZE)
    assert np.array_equal(alone[0], again[0])
    assert np.array_equal(alone[1], again[1])


@pytest.mark.parametrize("look", LOOKS)
def test_seed_and_index_change_the_scene(look):
    labels = [draw_scene(seed, index, look, SIZE)[1] for seed in (0, 1) for index in (0, 1, 10)]
    for number, label in enumerate(labels):
        for other in labels[number + 1 :]:
            assert np.mean(label != other) > 0.02


def test_looks_show_different_streets():
    synthetic, real = (draw_scene(0, 0, look, SIZE)[1] for look in LOOKS)
    assert np.mean(synthetic != real) > 0.02


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("size", [(96, 192), (97, 191), (65, 33), (32, 200), (16, 16)])
def test_sizes_and_types(look, size):
    image, label = draw_scene(0, 4, look, size)
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
    assert label.shape == size
    assert label.dtype == np.uint8
    assert label.max() < NUM_CLASSES
    assert image.flags.c_contiguous
    assert label.flags.c_contiguous
    assert image.flags.writeable  # torch.from_numpy warns otherwise
    assert label.flags.writeable


@pytest.mark.parametrize("look", LOOKS)
def test_another_size_shows_the_same_street(look):
    _, small = draw_scene(1, 3, look, (64, 128))
    _, large = draw_scene(1, 3, look, (128, 256))
    # Class borders and things as thin as a pixel move by the rounding.
    assert np.mean(large[1::2, 1::2] == small) > 0.9


@pytest.mark.parametrize("look", LOOKS)
def test_every_class_has_a_sane_share(scenes, look):
    shares = class_shares(scenes[look])
    mean = dict(zip(SCENE_CLASS_NAMES, shares.mean(axis=0), strict=True))
    appears = dict(zip(SCENE_CLASS_NAMES, (shares > 0.0).mean(axis=0), strict=True))
    for name in SCENE_CLASS_NAMES:
        assert mean[name] >= 0.002, name
        assert mean[name] <= 0.5, name
        assert appears[name] >= 0.3, name
    for name in ("road", "building", "sky"):
        assert mean[name] >= 0.03, name
        assert appears[name] >= 0.9, name


def test_class_frequencies_differ_between_the_looks(scenes):
    synthetic, real = (class_shares(scenes[look]).mean(axis=0) for look in LOOKS)
    ratio = dict(zip(SCENE_CLASS_NAMES, real / synthetic, strict=True))
    assert ratio["vegetation"] > 1.3
    assert ratio["car"] > 1.3
    assert ratio["sign"] < 0.8
    assert ratio["sidewalk"] < 0.9


def test_synthetic_is_flat_and_real_is_textured(scenes):
    """Neighbouring pixels of one class are often equal in the source, hardly ever in the target."""
    equal = {}
    for look in LOOKS:
        counted = same = 0
        for image, label in scenes[look]:
            inside = label[:, 1:] == label[:, :-1]
            alike = (image[:, 1:] == image[:, :-1]).all(axis=2)
            counted += int(inside.sum())
            same += int((alike & inside).sum())
        equal[look] = same / counted
    assert equal["synthetic"] > 0.5
    assert equal["real"] < 0.1


def test_no_class_takes_the_colour_of_another_class(scenes):
    """The gap is not adversarial: across the looks, sky, road and plants keep their order."""
    for look in LOOKS:
        pixels = np.concatenate([image.reshape(-1, 3) for image, _ in scenes[look]]).astype(float)
        labels = np.concatenate([label.ravel() for _, label in scenes[look]])
        mean = {
            name: pixels[labels == number].mean(axis=0)
            for number, name in enumerate(SCENE_CLASS_NAMES)
        }
        greenness = {name: color[1] - 0.5 * (color[0] + color[2]) for name, color in mean.items()}
        assert max(greenness, key=greenness.get) == "vegetation"
        brightness = {name: color.mean() for name, color in mean.items()}
        assert max(brightness, key=brightness.get) == "sky"


def test_label_follows_the_drawing():
    """In the flat look a class border is an edge of the picture nearly everywhere."""
    for index in range(4):
        image, label = draw_scene(2, index, "synthetic", SIZE)
        border = label[:, 1:] != label[:, :-1]
        step = np.abs(image[:, 1:].astype(int) - image[:, :-1].astype(int)).sum(axis=2)
        # Supersampling may move an edge by one pixel.
        near = step.copy()
        near[:, 1:] = np.maximum(near[:, 1:], step[:, :-1])
        near[:, :-1] = np.maximum(near[:, :-1], step[:, 1:])
        assert np.mean(near[border] > 12) > 0.9
        assert np.mean(step[~border] > 12) < 0.35


@pytest.mark.parametrize("size", [(15, 64), (64, 15), (0, 0)])
def test_small_sizes_are_refused(size):
    with pytest.raises(ValueError, match="at least 16"):
        draw_scene(0, 0, "synthetic", size)


def test_unknown_look_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"photo.*synthetic, real"):
        draw_scene(0, 0, "photo", SIZE)

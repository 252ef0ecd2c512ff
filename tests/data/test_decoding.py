"""Decoders: SYNTHIA's 16-bit labels, palette labels, and files that are broken."""

from __future__ import annotations

import numpy as np
import pytest
from data_writers import rows_of, save_image, save_label, save_png16, synthia_channels
from PIL import Image

from cscl_fast.data import DataError, decoding, image_size
from cscl_fast.data.decoding import decode_first_channel, decode_image, decode_label

IDS = rows_of(list(range(23)), (9, 23))


def test_the_low_byte_of_synthia_labels_survives(tmp_path) -> None:
    save_png16(tmp_path / "x.png", synthia_channels(IDS))
    assert decode_first_channel(tmp_path / "x.png").tolist() == IDS.tolist()


def test_the_trap_is_real(tmp_path) -> None:
    """Pillow alone keeps the high byte: every class becomes 0, instance 300 becomes 1."""
    save_png16(tmp_path / "x.png", synthia_channels(IDS))
    with Image.open(tmp_path / "x.png") as image:
        values = np.asarray(image)
    assert values.dtype == np.uint8
    assert not values[..., 0].any()
    assert values[0, 0, 1] == 300 // 256


def test_a_pillow_that_loses_the_low_byte_is_refused(tmp_path, monkeypatch) -> None:
    """Instead of training on labels that are all 0; the self-test runs before the first file."""
    monkeypatch.setattr(decoding, "_LOW_BYTE", {"RGB;16B": "RGB;16B"})
    decoding._check_low_byte_survives.cache_clear()
    save_png16(tmp_path / "x.png", synthia_channels(IDS))
    with pytest.raises(RuntimeError, match=r"decodes SYNTHIA's 16-bit labels .* as \[\[0, 0\]\]"):
        decode_first_channel(tmp_path / "x.png")


def test_other_forms_of_synthia_labels(tmp_path) -> None:
    alpha = np.concatenate([synthia_channels(IDS), np.full((9, 23, 1), 65535, np.uint16)], axis=2)
    save_png16(tmp_path / "rgba.png", alpha)
    save_png16(tmp_path / "gray.png", IDS[..., None].astype(np.uint16))
    save_label(tmp_path / "gray8.png", IDS)
    Image.fromarray(np.stack([IDS, IDS + 100, IDS], axis=2)).save(tmp_path / "rgb8.png")
    for name in ("rgba", "gray", "gray8", "rgb8"):
        assert decode_first_channel(tmp_path / f"{name}.png").tolist() == IDS.tolist(), name


def test_an_id_above_255_is_refused_and_not_cut_off(tmp_path) -> None:
    channels = synthia_channels(IDS)
    channels[4, 5, 0] = 256 + 7
    save_png16(tmp_path / "x.png", channels)
    with pytest.raises(DataError, match=r"x\.png cannot be decoded \(an id .* is above 255"):
        decode_first_channel(tmp_path / "x.png")
    save_png16(tmp_path / "y.png", channels[..., :1])
    with pytest.raises(DataError, match=r"y\.png holds id 263; ids are 0\.\.255"):
        decode_label(tmp_path / "y.png")


def test_palette_labels_give_the_index(tmp_path) -> None:
    save_label(tmp_path / "x.png", IDS, palette=True)
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "P"
        assert np.asarray(image.convert("L")).tolist() != IDS.tolist()
    assert decode_label(tmp_path / "x.png").tolist() == IDS.tolist()


def test_two_valued_labels_are_0_and_1(tmp_path) -> None:
    mask = IDS % 2 == 1
    Image.fromarray(mask).save(tmp_path / "x.png")
    assert decode_label(tmp_path / "x.png").tolist() == mask.astype(int).tolist()


def test_colour_pictures_are_no_labels(tmp_path) -> None:
    save_image(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png is a colour image \(mode RGB\)"):
        decode_label(tmp_path / "x.png")


def test_broken_files_name_themselves(tmp_path) -> None:
    save_image(tmp_path / "whole.png", (60, 80))
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0xFF
    (tmp_path / "damaged.png").write_bytes(bytes(damaged))
    (tmp_path / "text.png").write_text("<html>not found</html>")
    (tmp_path / "empty.png").write_bytes(b"")
    for read in (decode_image, decode_label, decode_first_channel):
        for name in ("cut", "damaged"):
            if read is decode_label:  # a picture is refused before it is decoded
                continue
            with pytest.raises(DataError, match=rf"{name}\.png cannot be decoded"):
                read(tmp_path / f"{name}.png")
        with pytest.raises(DataError, match=r"text\.png is no image file \(22 bytes\)"):
            read(tmp_path / "text.png")
        with pytest.raises(DataError, match=r"empty\.png is no image file \(0 bytes\)"):
            read(tmp_path / "empty.png")
        with pytest.raises(DataError, match=r"none\.png is missing"):
            read(tmp_path / "none.png")


def test_truncated_labels_name_themselves(tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 19, (60, 80), dtype=np.uint8)
    save_label(tmp_path / "x.png", noise)
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"label .*x\.png cannot be decoded"):
        decode_label(tmp_path / "x.png")


def test_image_size(tmp_path) -> None:
    save_image(tmp_path / "x.jpg", (12, 20))
    assert image_size(tmp_path / "x.jpg") == (12, 20)

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compress3g.errors import SceneError
from compress3g.nerf.readers import _image_cache
from compress3g.nerf.readers.images import decode, find, shrink


def _random(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def _averaged(pixels, factor):
    """Premultiplied means of squares in double, pixel by pixel."""
    height, width, channels = (s // factor for s in pixels.shape[:2]), None, pixels.shape[2]
    height, width = height
    result = np.zeros((height, width, channels))
    for y in range(height):
        for x in range(width):
            square = pixels[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            square = square.reshape(-1, channels).astype(np.float64) / 255
            if channels == 3:
                result[y, x] = square.mean(0)
                continue
            alpha = square[:, 3].mean()
            colour = (square[:, :3] * square[:, 3:]).mean(0)
            result[y, x] = [*(colour / alpha if alpha else colour), alpha]
    return result * 255


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.integers(0, 9), st.integers(0, 9), st.sampled_from([3, 4]), st.data())
def test_shrinking_equals_premultiplied_averages(factor, more_height, more_width, channels, data):
    shape = (factor + more_height, factor + more_width, channels)
    pixels = _random(*shape, seed=data.draw(st.integers(0, 99)))
    if channels == 4 and data.draw(st.booleans()):
        pixels[..., 3] *= pixels[..., 3] > 128  # much that is fully transparent
    found = shrink(pixels, factor)
    assert found.dtype == np.uint8
    # The result is the reference rounded; ties may go either way.
    assert np.abs(found - _averaged(pixels, factor)).max() <= 0.5 + 1e-9


def test_hidden_colours_do_not_bleed():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 0] = 255  # red that nobody sees
    pixels[0, 0] = [10, 200, 30, 255]
    assert shrink(pixels, 2).tolist() == [[[10, 200, 30, 64]]]


def test_white_of_full_alpha_stays_white_at_the_largest_sums():
    assert (shrink(np.full((256, 256, 4), 255, np.uint8), 256) == 255).all()


def test_a_downscaled_scene_is_the_shrunken_pictures(tmp_path):
    pixels = _random(3, 51, 70, 4)
    files = [_save(tmp_path / f"{i}.png", each) for i, each in enumerate(pixels)]
    found = decode(files, 3)
    assert found.shape == (3, 17, 23, 4)
    for image, each in zip(found.numpy(), pixels, strict=True):
        assert np.abs(image - _averaged(each, 3)).max() <= 0.5 + 1e-9


def test_downscaling_below_16_pixels_names_the_largest_factor(tmp_path):
    file = _save(tmp_path / "a.png", _random(40, 80, 3))
    with pytest.raises(SceneError, match=r"downscale 3 leaves fewer than 16 .*a.png .*at most 2"):
        decode([file], 3)
    assert decode([file], 2).shape == (1, 20, 40, 3)


def test_grey_palette_and_16_bit_pictures_become_8_bit_colours(tmp_path):
    grey = _random(20, 30)
    wide = (grey.astype(np.uint16) * 257) + 100  # rounds to the same 8 bits
    wide = np.where(grey == 255, 65535, wide).astype(np.uint16)
    palette = Image.fromarray(_random(20, 30, 3)).quantize(16)
    palette.save(tmp_path / "palette.png")
    files = [
        _save(tmp_path / "grey.png", grey),
        _save(tmp_path / "wide.png", wide),
        _save(tmp_path / "bits.png", grey > 128),
    ]
    found = decode([*files, tmp_path / "palette.png"]).numpy()
    assert found.shape == (4, 20, 30, 3)
    for channel in range(3):
        assert np.array_equal(found[0, ..., channel], grey)
        assert np.array_equal(found[1, ..., channel], grey)
        assert np.array_equal(found[2, ..., channel], 255 * (grey > 128))
    assert np.array_equal(found[3], np.asarray(palette.convert("RGB")))


def test_16_bit_colours_keep_their_high_byte(tmp_path):
    # PIL cannot write these: a PNG by hand.
    import struct
    import zlib

    pixels = _random(4, 5, 4).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 5, 4, 16, 6, 0, 0, 0)
    file = tmp_path / "wide.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    assert np.array_equal(decode([file]).numpy()[0], (pixels // 257).astype(np.uint8))


@pytest.mark.parametrize("mode", ["LA", "P", "RGB"])
def test_every_kind_of_transparency_becomes_alpha(tmp_path, mode):
    file = tmp_path / "a.png"
    if mode == "LA":
        Image.fromarray(_random(20, 20, 4)).convert("LA").save(file)
    elif mode == "P":
        Image.fromarray(_random(20, 20) % 4, "L").quantize(4).save(file, transparency=0)
    else:
        Image.fromarray(_random(20, 20, 3) // 128 * 255).save(file, transparency=(0, 0, 0))
    with Image.open(file) as picture:
        expected = np.asarray(picture.convert("RGBA"))
    assert np.array_equal(decode([file]).numpy()[0], expected)
    assert expected[..., 3].min() < 255


def test_opaque_alpha_is_dropped_and_any_transparency_keeps_it(tmp_path):
    pixels = _random(2, 20, 20, 4)
    pixels[..., 3] = 255
    files = [_save(tmp_path / f"{i}.png", each) for i, each in enumerate(pixels)]
    assert np.array_equal(decode(files).numpy(), pixels[..., :3])
    pixels[1, 4, 5, 3] = 254
    _save(files[1], pixels[1])
    assert np.array_equal(decode(files).numpy(), pixels)


def test_pictures_without_alpha_beside_others_are_opaque(tmp_path):
    a = _save(tmp_path / "a.png", _random(20, 20, 3))
    b = _save(tmp_path / "b.png", _random(20, 20, 4))
    found = decode([a, b])
    assert (found[0, ..., 3] == 255).all()


def test_floating_point_pictures_are_refused(tmp_path):
    file = _save(tmp_path / "a.tiff", _random(20, 20).astype(np.float32))
    with pytest.raises(SceneError, match=r"a.tiff: it has floating-point samples"):
        decode([file])


def test_text_named_png_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_text("a cat")
    with pytest.raises(SceneError, match=r"a.png: it is no picture"):
        decode([tmp_path / "a.png"])


def test_a_name_finds_its_picture_with_or_without_suffix(tmp_path):
    for name in ("a.png", "b.JPG", "c", "d.1.png", "d.1"):
        (tmp_path / name).touch()
    assert find(tmp_path / "a") == find(tmp_path / "a.png") == tmp_path / "a.png"
    assert find(tmp_path / "b") == tmp_path / "b.JPG"
    assert find(tmp_path / "c") == tmp_path / "c"
    assert find(tmp_path / "d.1") == tmp_path / "d.1.png"
    assert find(tmp_path / "e") is None
    assert find(tmp_path) is None


@pytest.fixture
def files(tmp_path):
    return [_save(tmp_path / f"{i}.png", _random(32, 32, 3, seed=i)) for i in range(3)]


@pytest.fixture
def count(monkeypatch):
    """The number of pictures decoded since."""
    from compress3g.nerf.readers import images

    seen = []
    real = images._pixels
    monkeypatch.setattr(images, "_pixels", lambda f, c: (seen.append(f), real(f, c))[1])
    return seen


def test_images_are_decoded_once(files, count, cache):
    first = decode(files, 2)
    assert len(count) == 3
    assert torch.equal(decode(files, 2), first)
    assert len(count) == 3
    assert [file.suffix for file in cache.iterdir()] == [".npy"]


def test_downscale_order_and_every_change_of_a_file_decode_again(files, count):
    decode(files)
    for change in (
        lambda: decode(files, 2),
        lambda: decode(files[::-1]),
        lambda: (os.utime(files[1], (1, 1)), decode(files)),
        lambda: (_save(files[0], _random(32, 32, 3, seed=9)), decode(files)),
    ):
        count.clear()
        change()
        assert len(count) == 3
    assert np.array_equal(decode(files)[0].numpy(), _random(32, 32, 3, seed=9))


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_cache_is_replaced(files, count, cache, damage):
    first = decode(files)
    (entry,) = cache.iterdir()
    entry.write_bytes(entry.read_bytes()[:-10] if damage is None else damage)
    assert torch.equal(decode(files), first)
    assert len(count) == 6
    assert torch.equal(decode(files), first)
    assert len(count) == 6


def test_a_cached_array_of_another_shape_is_not_used(files, count, cache):
    first = decode(files)
    (entry,) = cache.iterdir()
    np.save(entry, np.zeros((3, 16, 16, 3), np.uint8))
    assert torch.equal(decode(files), first)


def test_a_cache_that_cannot_be_written_is_only_noted(files, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("COMPRESS3G_CACHE", str(tmp_path / "file" / "below"))
    with caplog.at_level(logging.DEBUG, "compress3g.nerf"):
        assert decode(files).shape == (3, 32, 32, 3)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert "cannot cache images" in caplog.text


def test_a_full_disk_leaves_no_half_of_a_cache(files, cache, monkeypatch):
    def full(file, images):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert decode(files).shape == (3, 32, 32, 3)
    assert list(cache.iterdir()) == []


def test_the_oldest_images_go_when_the_cache_is_full(files, cache, monkeypatch):
    monkeypatch.setattr(_image_cache, "CAPACITY", 3 * 32 * 32 * 3 * 2 + 1000)
    cache.mkdir()
    (cache / "something else").write_bytes(bytes(10**6))
    for i, subset in enumerate((files[:3], files[1::-1] + files[2:], files[::-1])):
        decode(subset)
        for age, entry in enumerate(sorted(cache.glob("*.npy"), key=os.path.getmtime)):
            os.utime(entry, (1000 * i + age, 1000 * i + age))
    kept = {entry.name for entry in cache.glob("*.npy")}
    order = (files[1::-1] + files[2:], files[::-1])
    assert kept == {f"images-{_image_cache.key_of(each, 1)}.npy" for each in order}
    assert (cache / "something else").exists()

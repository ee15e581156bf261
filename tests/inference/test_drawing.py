import os

import cv2
import numpy as np
import pytest

from ssd_jax.inference.drawing import (
    captioned,
    contact_sheet,
    draw_boxes,
    draw_matches,
    label_color,
    resize,
    save_image,
    side_by_side,
)
from ssd_jax.io import atomic_write

CLASSES = ["red blood cell", "gjpqy", "x"]


def gray(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def test_colors_are_stable_and_distinct():
    colors = np.array([label_color(k) for k in range(64)], np.float32)
    assert len(np.unique(colors, axis=0)) == 64
    assert label_color(64) == label_color(0)
    lab = cv2.cvtColor(colors[None, :20] / 255, cv2.COLOR_RGB2LAB)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(20, 1)]
    assert distance.min() > 25


def test_frame_is_at_the_box_and_the_input_is_unchanged():
    image = gray(300, 400)
    out = draw_boxes(image, np.array([[100, 100, 300, 200]]), np.array([1]), CLASSES)
    assert (image == 128).all()
    assert out.dtype == np.uint8
    color = label_color(1)
    for x, y in ((100, 150), (300, 150), (250, 100), (250, 200)):
        assert tuple(out[y, x]) == color
    assert (out[120:190, 120:280] == 128).all()
    assert (out[:, :90] == 128).all()
    assert (out[:, 310:] == 128).all()


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 30, 20],
        [370, 0, 400, 20],
        [0, 280, 30, 300],
        [370, 280, 400, 300],
        [0, 0, 400, 300],
        [-50, -50, 500, 400],
    ],
)
def test_names_stay_inside_the_image(box):
    def text(box):
        """Number of pixels of the name, the only dark ones."""
        out = draw_boxes(gray(300, 400), np.array([box]), np.array([0]), CLASSES, np.array([0.5]))
        return (out.max(-1) < 60).sum()

    assert text(box) == text([200, 150, 202, 152]) > 100


def test_names_at_the_same_box_do_not_overlap():
    box = [150, 150, 260, 250]
    one = draw_boxes(gray(400, 400), np.array([box]), np.array([0]), CLASSES)
    three = draw_boxes(gray(400, 400), np.array([box] * 3), np.array([0, 0, 0]), CLASSES)

    def text(image):
        return (image.max(-1) < 60).sum()

    assert text(three) == 3 * text(one) > 0


def test_higher_score_is_drawn_on_top():
    box = np.array([[50, 50, 200, 200]] * 2)
    for scores in ([0.9, 0.2], [0.2, 0.9]):
        out = draw_boxes(gray(300, 300), box, np.array([0, 1]), CLASSES, np.array(scores))
        assert tuple(out[200, 125]) == label_color(int(np.argmax(scores)))


def test_higher_score_is_placed_above_its_box():
    box = np.array([[50, 50, 200, 200]] * 2)
    for scores in ([0.9, 0.2], [0.2, 0.9]):
        out = draw_boxes(gray(300, 300), box, np.array([0, 1]), CLASSES, np.array(scores))
        above = out[:47, 50:200].reshape(-1, 3)
        assert (above == label_color(int(np.argmax(scores)))).all(-1).sum() > 200


def test_overlapping_names_have_the_higher_score_on_top():
    box = np.array([[0, 0, 15, 15]] * 2)
    for scores in ([0.9, 0.2], [0.2, 0.9]):
        out = draw_boxes(gray(16, 16), box, np.array([0, 1]), CLASSES, np.array(scores))
        counts = [(out == label_color(k)).all(-1).sum() for k in (0, 1)]
        assert np.argmax(counts) == np.argmax(scores)


def test_lines_and_names_grow_with_the_image():
    def tag_height(side):
        box = np.array([[0.4, 0.4, 0.9, 0.9]]) * side
        out = draw_boxes(gray(side, side), box, np.array([2]), CLASSES)
        column = (out[:, int(0.4 * side) + 3] == label_color(2)).all(-1)
        return column.sum()

    assert tag_height(1200) > 1.5 * tag_height(400)


def test_without_boxes_the_image_is_unchanged():
    out = draw_boxes(gray(20, 30), np.zeros((0, 4)), np.zeros(0, int), CLASSES, np.zeros(0))
    assert (out == 128).all()


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_an_error(label):
    with pytest.raises(
        ValueError, match=f"label {label} is out of range for 3 classes; use 0 to 2"
    ):
        draw_boxes(gray(20, 30), np.zeros((1, 4)), np.array([label]), CLASSES)


def test_names_wider_than_the_image_are_cut():
    out = draw_boxes(gray(16, 16), np.array([[2, 2, 9, 9]]), np.array([0]), CLASSES)
    assert out.shape == (16, 16, 3)


def test_priors_have_the_color_of_their_object():
    """Thick frames of objects, thin ones of priors, and a margin that they may extend into."""
    boxes = np.array([[50, 50, 200, 150], [300, 200, 380, 280]])
    priors = np.array([[20, 250, 120, 290], [250, 20, 410, 120], [-20, -20, 390, 290]])
    image = gray(300, 400)
    out = draw_matches(image, boxes, ["a", "b"], np.zeros(2, bool), priors, np.array([0, 1, 1]))
    assert (image == 128).all()
    assert out.shape == (360, 480, 3)
    first, second = label_color(0), label_color(1)

    def thickness(x, y, color):
        """Pixels of the colour in a row, from the middle of a vertical line at x of the image."""
        row = (out[y + 30, x + 40 - 5 : x + 40 + 6] == color).all(-1)
        return row.sum()

    assert thickness(50, 100, first) == thickness(200, 100, first) >= 3
    assert thickness(300, 240, second) == thickness(380, 240, second) >= 3
    assert thickness(20, 270, first) == thickness(120, 270, first) == 1
    assert thickness(250, 60, second) == thickness(410, 60, second) == 1
    assert tuple(out[30 - 20, 200]) == second
    assert tuple(out[150, 40 - 20]) == second
    assert (out[5, :] == out[5, 0]).all()
    assert (out[5, 0] != 128).all()


def test_dashed_frames_have_gaps():
    boxes = np.array([[50, 50, 250, 250]])
    none = np.zeros((0, 4))

    def share(gaps):
        out = draw_matches(gray(300, 300), boxes, [""], np.array([gaps]), none, np.zeros(0, int))
        sides = [out[100:260, 80], out[100:260, 280], out[80, 100:260], out[280, 100:260]]
        return [(side == label_color(0)).all(-1).mean() for side in sides]

    assert share(False) == [1, 1, 1, 1]
    assert all(0.3 < s < 0.7 for s in share(True))


def test_without_matches_only_the_margin_is_added():
    none, nobody = np.zeros((0, 4)), np.zeros(0, int)
    out = draw_matches(gray(20, 30), none, [], nobody, none, nobody)
    assert out.shape == (24, 36, 3)
    assert (out[2:-2, 3:-3] == 128).all()
    assert (out[:2] == out[0, 0]).all()


def test_captions_of_a_fixed_size_fit():
    small, large = (captioned(gray(900, 900), "A caption", s) for s in (0.5, 1.5))
    assert (small[-900:] == 128).all()
    assert small.shape[0] < large.shape[0]
    assert (small[:-900] < 100).sum() < (large[:-900] < 100).sum()
    narrow = captioned(gray(90, 90), "A caption that is wider than that", 1.5)
    assert (narrow[:-90] < 100).any()
    assert not (narrow[:-90, -2:] < 100).any()


def test_side_by_side_has_both_images_below_captions():
    left, right = gray(100, 120), gray(100, 80) // 2
    out = side_by_side(left, right, ("left", "a caption that is much wider than its image"))
    height = out.shape[0]
    assert height > 100
    assert (out[-100:, :120] == 128).all()
    assert (out[-100:, -80:] == 64).all()
    # Dark text above each, none of it in the last columns: nothing is cut.
    bar = out[: height - 100].max(-1) < 100
    assert bar[:, :120].any()
    assert bar[:, -80:].any()
    assert not bar[:, -2:].any()
    with pytest.raises(ValueError, match="100 and 50 pixels high"):
        side_by_side(left, gray(50, 80), ("", ""))


def test_contact_sheet_places_images_in_rows():
    images = [np.full((20, 30, 3), 10 * k, np.uint8) for k in range(5)]
    sheet = contact_sheet(images, columns=2, gap=4)
    assert sheet.shape == (3 * 24 + 4, 2 * 34 + 4, 3)
    for k, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]):
        y, x = 4 + 24 * row, 4 + 34 * column
        assert (sheet[y : y + 20, x : x + 30] == 10 * k).all()
    assert (sheet[-24:, 38:] == sheet[0, 0]).all()


def test_contact_sheet_reduces_larger_images_and_centers_smaller_ones():
    sheet = contact_sheet([gray(80, 40), gray(10, 10)], columns=5, cell=(40, 40), gap=0)
    assert sheet.shape == (40, 80, 3)
    assert (sheet[:, 10:30] == 128).all()
    assert (sheet[:, :10] != 128).all()
    assert (sheet[15:25, 55:65] == 128).all()
    with pytest.raises(ValueError, match="0 images"):
        contact_sheet([], columns=2)


def test_resize_has_at_least_a_pixel():
    assert resize(gray(10, 20), 2.5).shape == (25, 50, 3)
    assert resize(gray(10, 2000), 0.01).shape == (1, 20, 3)


def test_save_image_takes_rgb_and_leaves_no_other_file(tmp_path):
    image = np.zeros((8, 9, 3), np.uint8)
    image[..., 0] = 200
    save_image(tmp_path / "a.png", gray(3, 3))
    save_image(tmp_path / "a.png", image)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    back = cv2.cvtColor(cv2.imread(str(tmp_path / "a.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(back, image)


def test_save_image_errors_name_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No such file.*missing.a\.png"):
        save_image(tmp_path / "missing" / "a.png", gray(3, 3))
    for name in ("a.pnk", "a"):
        with pytest.raises(ValueError, match=r"use \.png or \.jpg"):
            save_image(tmp_path / name, gray(3, 3))


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic_write(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(type(path), "replace", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]

"""Augmentation: what is promised of every draw, and how often each change happens."""

import colorsys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.data import augment
from ssd_jax.data.augment import (
    CROP_IOUS,
    augment_train,
    expand,
    horizontal_flip,
    photometric_distort,
    preprocess_eval,
    random_crop,
    random_resize,
    sample_crop,
    vertical_flip,
)

FILL = (123.0, 117.0, 104.0)
NO_BOXES, NO_LABELS = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)


class Always(np.random.Generator):
    """Says yes to every change of probability 0.5."""

    def __init__(self, seed=0):
        super().__init__(np.random.PCG64(seed))

    def random(self):
        return 0.0


def noise(seed=0, height=20, width=30):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@st.composite
def scenes(draw):
    """An image of up to 60x60 and up to 5 boxes of a hundredth of a side or more."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    n = draw(st.integers(0, 5))
    sides = rng.uniform(0.01, 1, (n, 2))
    corners = rng.uniform(0, 1 - sides)
    boxes = np.concatenate([corners, corners + sides], 1).clip(0, 1).astype(np.float32)
    return rng, noise(seed, height, width), boxes, np.arange(1, n + 1, dtype=np.int32)


def check_boxes(boxes, n):
    assert boxes.dtype == np.float32
    assert boxes.shape == (n, 4)
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


class TestAugmentTrain:
    @given(scenes(), st.booleans(), st.sampled_from([1.0, 1.5, 4.0]))
    @settings(max_examples=150, deadline=None)
    def test_every_draw_keeps_the_contract(self, scene, upright, ratio):
        rng, image, boxes, labels = scene
        before = image.copy(), boxes.copy(), labels.copy()
        out, kept, kinds = augment_train(
            rng,
            image,
            boxes,
            labels,
            size=24,
            fill=FILL,
            expand_ratio=ratio,
            crop_scale=0.3,
            crop_aspect=2,
            flip_vertically=upright,
        )
        assert out.shape == (24, 24, 3)
        assert out.dtype == np.uint8
        check_boxes(kept, len(kinds))
        assert kinds.dtype == np.int32
        assert set(kinds) <= set(labels)
        assert min(1, len(labels)) <= len(kinds) <= len(labels)
        for mine, theirs in zip((image, boxes, labels), before, strict=True):
            np.testing.assert_array_equal(mine, theirs)

    def test_the_generator_decides(self):
        def run(seed):
            boxes, labels = np.array([[0.2, 0.2, 0.8, 0.7]], np.float32), np.ones(1, np.int32)
            rng = np.random.default_rng(seed)
            return augment_train(
                rng,
                noise(),
                boxes,
                labels,
                size=16,
                fill=FILL,
                expand_ratio=4,
                crop_scale=0.3,
                crop_aspect=2,
                flip_vertically=True,
            )

        for one, two in zip(run(5), run(5), strict=True):
            np.testing.assert_array_equal(one, two)
        assert not np.array_equal(run(5)[0], run(6)[0])

    def test_boxes_follow_the_pixels(self):
        """A white square on black stays where its box says, through everything but colours."""
        image = np.zeros((120, 160, 3), np.uint8)
        image[30:90, 40:100] = 255
        boxes = np.array([[40 / 160, 30 / 120, 100 / 160, 90 / 120]], np.float32)
        rng, seen = np.random.default_rng(0), 0
        for _ in range(200):
            out, kept = expand(rng, image, boxes, (0, 0, 0), 3.0)
            out, kept, _ = random_crop(rng, out, kept, np.ones(1, np.int32))
            out = preprocess_eval(out, 200)
            out, kept = horizontal_flip(rng, out, kept)
            out, kept = vertical_flip(rng, out, kept)
            x, y, w, h = cv2.boundingRect((out[..., 0] > 127).astype(np.uint8))
            np.testing.assert_allclose([x, y, x + w, y + h], kept[0] * 200, atol=2)
            seen += kept.min() > 0 and kept.max() < 1
        assert 40 < seen < 200


class Scripted:
    """A generator that says which changes happen and by how much, and notes what was asked."""

    def __init__(self, happens, amounts=()):
        self.happens, self.amounts, self.asked = list(happens), list(amounts), []

    def random(self):
        return 0.0 if self.happens.pop(0) else 0.9

    def uniform(self, low, high):
        self.asked.append((low, high))
        return self.amounts.pop(0)


class TestPhotometricDistort:
    """Changes are drawn as: brightness, contrast, contrast last, saturation, hue."""

    def distort(self, pixel, happens, amounts=()):
        rng = Scripted(happens, amounts)
        out = photometric_distort(rng, np.full((2, 3, 3), pixel, np.uint8))
        assert not rng.happens
        assert not rng.amounts
        assert out.shape == (2, 3, 3)
        assert out.dtype == np.uint8
        assert (out == out[0, 0]).all()
        return out[0, 0].tolist()

    def test_ranges(self):
        rng = Scripted([1, 1, 1, 1, 1], [0, 1, 1, 0])
        photometric_distort(rng, noise())
        assert rng.asked == [(-32, 32), (0.5, 1.5), (0.5, 1.5), (-18, 18)]

    def test_nothing(self):
        assert self.distort((200, 90, 30), [0, 0, 0, 0, 0]) == [200, 90, 30]

    def test_brightness(self):
        assert self.distort((240, 90, 10), [1, 0, 0, 0, 0], [30]) == [255, 120, 40]
        assert self.distort((240, 90, 10), [1, 0, 0, 0, 0], [-30]) == [210, 60, 0]

    @pytest.mark.parametrize("last", [0, 1])
    def test_contrast(self, last):
        assert self.distort((200, 90, 10), [0, 1, last, 0, 0], [1.5]) == [255, 135, 15]
        assert self.distort((200, 90, 10), [0, 1, last, 0, 0], [0.5]) == [100, 45, 5]

    @pytest.mark.parametrize("amount", [0.5, 0.8, 1.2, 1.5])
    def test_saturation(self, amount):
        hue, saturation, value = colorsys.rgb_to_hsv(200 / 255, 120 / 255, 80 / 255)
        expected = np.array(colorsys.hsv_to_rgb(hue, min(1, saturation * amount), value)) * 255
        got = self.distort((200, 120, 80), [0, 0, 0, 1, 0], [amount])
        np.testing.assert_allclose(got, expected, atol=4)

    @pytest.mark.parametrize("amount", [-18, -7, 9, 18])
    @pytest.mark.parametrize("pixel", [(200, 120, 80), (200, 100, 110), (60, 70, 220)])
    def test_hue_goes_round_the_circle(self, pixel, amount):
        hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in pixel))
        expected = np.array(colorsys.hsv_to_rgb((hue + amount / 180) % 1, saturation, value)) * 255
        got = self.distort(pixel, [0, 0, 0, 0, 1], [amount])
        np.testing.assert_allclose(got, expected, atol=6)

    def test_contrast_first_or_last(self):
        """A contrast of 1.5 clips red; before the saturation that loses more colour."""
        first = self.distort((240, 120, 120), [0, 1, 0, 1, 0], [1.5, 0.5])
        last = self.distort((240, 120, 120), [0, 1, 1, 1, 0], [1.5, 0.5])
        np.testing.assert_allclose(first, [255, 218, 218], atol=3)  # 255, 180, 180 less colour
        np.testing.assert_allclose(last, [255, 255, 255], atol=3)  # 240, 180, 180, brighter

    def test_frequencies(self):
        rng = np.random.default_rng(0)
        grey = np.full((1, 1, 3), 100, np.uint8)
        red = np.full((1, 1, 3), (200, 100, 100), np.uint8)
        greys = np.array([photometric_distort(rng, grey)[0, 0] for _ in range(2000)], int)
        reds = np.array([photometric_distort(rng, red)[0, 0] for _ in range(2000)], int)
        # Grey shows brightness and contrast alone: neither happens in a quarter of the draws.
        assert (greys == greys[:, :1]).all()
        assert 0.22 < (greys[:, 0] == 100).mean() < 0.30
        assert 30 < greys.min() < 45
        assert 185 < greys.max() <= 198
        # Green and blue stay equal without a change of hue; 1 in 36 changes rounds to none.
        assert 0.44 < (reds[:, 1] != reds[:, 2]).mean() < 0.53
        # Nothing at all: one in sixteen.
        assert 0.045 < (reds == (200, 100, 100)).all(1).mean() < 0.085


class TestExpand:
    def test_how_often_and_how_much(self):
        rng = np.random.default_rng(0)
        image, box = noise(height=50, width=40), np.array([[0, 0, 1, 1]], np.float32)
        sides = []
        for _ in range(2000):
            canvas, moved = expand(rng, image, box, FILL, 4.0)
            if canvas.shape == image.shape:
                continue
            sides.append(canvas.shape[0] / 50)
            left, top, right, bottom = np.round(
                moved[0] * np.array([*canvas.shape[1::-1], *canvas.shape[1::-1]])
            ).astype(int)
            np.testing.assert_array_equal(canvas[top:bottom, left:right], image)
        assert 0.45 < len(sides) / 2000 < 0.55
        assert 2.4 < np.mean(sides) < 2.6
        assert max(sides) <= 4

    def test_the_canvas_is_the_mean(self):
        canvas, _ = expand(Always(), np.zeros((5, 5, 3), np.uint8), NO_BOXES, FILL, 4.0)
        around = canvas[(canvas != 0).any(2)]
        assert len(around) > 25
        assert np.unique(around, axis=0).tolist() == [[123, 117, 104]]

    def test_ratio_of_one_changes_nothing(self):
        image = noise()
        assert expand(Always(), image, NO_BOXES, FILL, 1.0)[0] is image

    @given(scenes())
    @settings(max_examples=100, deadline=None)
    def test_boxes_shrink_and_stay_inside(self, scene):
        rng, image, boxes, _ = scene
        canvas, moved = expand(Always(rng.integers(99)), image, boxes, FILL, 4.0)
        check_boxes(moved, len(boxes))
        pixels = (boxes[:, 2:] - boxes[:, :2]) * image.shape[1::-1]
        np.testing.assert_allclose(
            (moved[:, 2:] - moved[:, :2]) * canvas.shape[1::-1], pixels, atol=1e-4
        )


class TestRandomCrop:
    def slow_iou(self, a, b):
        w = min(a[2], b[2]) - max(a[0], b[0])
        h = min(a[3], b[3]) - max(a[1], b[1])
        if w <= 0 or h <= 0:
            return 0.0
        area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return w * h / (area - w * h)

    @pytest.mark.parametrize("min_iou", CROP_IOUS)
    def test_iou_holds_for_an_object_that_stays(self, min_iou):
        rng = np.random.default_rng(1)
        found, lowest = 0, 1.0
        for _ in range(150):
            width, height = rng.integers(20, 200, 2).tolist()
            sides = rng.uniform(0.05, 1, (3, 2)) * (width, height)
            corners = rng.uniform(0, (width, height) - sides)
            boxes = np.concatenate([corners, corners + sides], 1)
            crop = sample_crop(rng, boxes, width, height, min_iou)
            if crop is None:
                continue
            found += 1
            x0, y0, x1, y1 = crop.tolist()
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            ious = [
                self.slow_iou(crop, box)
                for box in boxes
                if x0 <= (box[0] + box[2]) / 2 < x1 and y0 <= (box[1] + box[3]) / 2 < y1
            ]
            assert ious
            assert max(ious) >= min_iou - 1e-9
            lowest = min(lowest, max(ious))
        assert found > 10
        assert lowest < min_iou + 0.1  # the bound is the sampler's, not a stricter one

    def test_scale_and_aspect(self):
        rng = np.random.default_rng(0)
        boxes = np.array([[0.0, 0, 1000, 1000]])
        crops = np.array([sample_crop(rng, boxes, 1000, 1000, 0.0) for _ in range(2000)])
        w, h = (crops[:, 2:] - crops[:, :2]).T / 1000
        scale, aspect = np.sqrt(w * h), w / h
        assert 0.29 < scale.min() < 0.32
        assert 0.99 < scale.max() <= 1.001
        assert 0.49 < aspect.min() < 0.55
        assert 1.9 < aspect.max() < 2.02

    def test_no_crop_is_good_enough(self):
        tiny = np.array([[10.0, 10, 11, 11]])
        assert sample_crop(np.random.default_rng(0), tiny, 100, 100, 0.1) is None

    def test_each_sampler_gets_its_share(self, monkeypatch):
        """All seven find a crop here, so that each is drawn one time in seven."""
        asked = []

        def whole_quarter(rng, boxes, width, height, min_iou, **_):
            asked.append(min_iou)
            k = CROP_IOUS.index(min_iou) + 1
            return np.array([0, 0, width - k, height])

        monkeypatch.setattr(augment, "sample_crop", whole_quarter)
        rng, counts = np.random.default_rng(0), np.zeros(7)
        boxes, labels = np.array([[0, 0, 0.5, 1]], np.float32), np.ones(1, np.int32)
        image = np.zeros((4, 20, 3), np.uint8)
        for _ in range(2100):
            counts[20 - random_crop(rng, image, boxes, labels)[0].shape[1]] += 1
        assert asked[:6] == [0.1, 0.3, 0.5, 0.7, 0.9, 0.0]
        assert (np.abs(counts - 300) < 60).all()

    def test_samplers_that_find_nothing_are_not_drawn(self, monkeypatch):
        monkeypatch.setattr(augment, "sample_crop", lambda *_, **__: None)
        image, boxes = noise(), np.array([[0, 0, 1, 1]], np.float32)
        for seed in range(20):
            out, kept, _ = random_crop(np.random.default_rng(seed), image, boxes, np.ones(1, int))
            assert out is image
            assert kept is boxes

    @given(scenes())
    @settings(max_examples=150, deadline=None)
    def test_objects_whose_centre_is_inside_stay_clipped(self, scene):
        rng, image, boxes, labels = scene
        height, width = image.shape[:2]
        crops = []
        original = augment.sample_crop
        augment.sample_crop = lambda *a, **k: crops.append(original(*a, **k)) or crops[-1]
        try:
            out, kept, kinds = random_crop(rng, image, boxes, labels)
        finally:
            augment.sample_crop = original
        check_boxes(kept, len(kinds))
        if len(boxes) == 0 or out.shape == image.shape:
            return
        # Which of the crops it was: the one whose pixels these are.
        start = (out.ctypes.data - image.ctypes.data) // 3
        top, left = divmod(start, width)
        crop = [left, top, left + out.shape[1], top + out.shape[0]]
        assert any(c is not None and c.tolist() == crop for c in crops)
        expected = []
        for box, label in zip(
            boxes.astype(float) * [width, height, width, height], labels, strict=True
        ):
            cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            if crop[0] <= cx < crop[2] and crop[1] <= cy < crop[3]:
                clipped = np.clip(box, [left, top, left, top], [crop[2], crop[3]] * 2)
                moved = (clipped - [left, top, left, top]) / ([*out.shape[1::-1]] * 2)
                expected.append((label, moved))
        assert kinds.tolist() == [label for label, _ in expected]
        np.testing.assert_allclose(kept, [moved for _, moved in expected], atol=1e-5)

    def test_an_image_without_objects_stays_whole(self):
        image = noise()
        out, boxes, labels = random_crop(np.random.default_rng(0), image, NO_BOXES, NO_LABELS)
        assert out is image
        assert len(boxes) == len(labels) == 0


class TestFlips:
    @pytest.mark.parametrize("flip", [horizontal_flip, vertical_flip])
    @given(scenes())
    @settings(max_examples=50, deadline=None)
    def test_twice_is_nothing(self, flip, scene):
        _, image, boxes, _ = scene
        again, boxes_again = flip(Always(), *flip(Always(), image, boxes))
        np.testing.assert_array_equal(again, image)
        np.testing.assert_allclose(boxes_again, boxes, atol=1e-6)
        check_boxes(flip(Always(), image, boxes)[1], len(boxes))

    def test_horizontal(self):
        image = noise()
        out, boxes = horizontal_flip(Always(), image, np.array([[0.1, 0.2, 0.4, 0.9]], np.float32))
        np.testing.assert_array_equal(out, image[:, ::-1])
        np.testing.assert_allclose(boxes, [[0.6, 0.2, 0.9, 0.9]], atol=1e-6)

    def test_vertical(self):
        image = noise()
        out, boxes = vertical_flip(Always(), image, np.array([[0.1, 0.2, 0.4, 0.9]], np.float32))
        np.testing.assert_array_equal(out, image[::-1])
        np.testing.assert_allclose(boxes, [[0.1, 0.1, 0.4, 0.8]], atol=1e-6)

    @pytest.mark.parametrize("flip", [horizontal_flip, vertical_flip])
    def test_half_of_the_time(self, flip):
        rng, image = np.random.default_rng(0), noise()
        share = np.mean([flip(rng, image, NO_BOXES)[0] is not image for _ in range(2000)])
        assert 0.45 < share < 0.55


class TestResize:
    def test_all_interpolations_are_used_alike(self):
        rng, image = np.random.default_rng(0), noise()
        kinds = {}
        for _ in range(2000):
            out = random_resize(rng, image, 13)
            assert out.shape == (13, 13, 3)
            kinds[out.tobytes()] = kinds.get(out.tobytes(), 0) + 1
        assert len(kinds) == 5
        assert min(kinds.values()) > 330

    def test_evaluation_is_bilinear(self):
        image = noise(height=7, width=9)
        expected = cv2.resize(image, (20, 20), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(preprocess_eval(image, 20), expected)

"""Augmentation: invariants of every draw, and frequencies of the changes."""

import colorsys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.data import augmentation, ssd_pytorch
from ssd_jax.data.augmentation import (
    CROP_IOUS,
    augment_caffe,
    boxes_in_view,
    cut,
    expand,
    horizontal_flip,
    photometric_distort,
    preprocess_eval,
    random_crop,
    resample,
    sample_crop,
    vertical_flip,
)
from ssd_jax.data.ssd_pytorch import augment_ssd_pytorch
from tests.data import reference_augmentation

FILL = (123.0, 117.0, 104.0)
NO_BOXES, NO_LABELS = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)


class Always(np.random.Generator):
    """Generator that applies every change of probability 0.5."""

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


BOTH = {"caffe": augment_caffe, "ssd.pytorch": augment_ssd_pytorch}
REFERENCES = {
    "caffe": reference_augmentation.caffe,
    "ssd.pytorch": reference_augmentation.ssd_pytorch,
}


@pytest.mark.parametrize("name", BOTH)
class TestAugment:
    def run(self, name, rng, image, boxes, labels, ratio=4.0, upright=True, size=24):
        return BOTH[name](
            rng,
            image,
            boxes,
            labels,
            size=size,
            fill=FILL,
            expand_ratio=ratio,
            min_crop_scale=0.3,
            max_crop_aspect_ratio=2,
            flip_vertically=upright,
        )

    @given(scenes(), st.booleans(), st.sampled_from([1.0, 1.5, 4.0]))
    @settings(max_examples=150, deadline=None)
    def test_shapes_types_and_ranges_of_every_draw(self, name, scene, upright, ratio):
        rng, image, boxes, labels = scene
        before = image.copy(), boxes.copy(), labels.copy()
        out, kept, kinds = self.run(name, rng, image, boxes, labels, ratio, upright)
        assert out.shape == (24, 24, 3)
        assert out.dtype == np.uint8
        check_boxes(kept, len(kinds))
        assert kinds.dtype == np.int32
        assert set(kinds) <= set(labels)
        assert min(1, len(labels)) <= len(kinds) <= len(labels)
        for current, original in zip((image, boxes, labels), before, strict=True):
            np.testing.assert_array_equal(current, original)

    @given(scenes(), st.booleans(), st.sampled_from([1.0, 4.0]), st.integers(0, 2**32 - 1))
    @settings(max_examples=300, deadline=None)
    def test_equals_the_reference(self, name, scene, upright, ratio, seed):
        """The same pixels and the same objects."""
        _, image, boxes, labels = scene
        ours = self.run(name, np.random.default_rng(seed), image, boxes, labels, ratio, upright)
        expected = REFERENCES[name](
            np.random.default_rng(seed),
            image,
            boxes,
            labels,
            size=24,
            fill=FILL,
            expand_ratio=ratio,
            scale=0.3,
            aspect=2,
            upright=upright,
        )
        # OpenCV rounds a pixel's uint8 colour one level up or down by its place in the row.
        levels = 3 if name == "caffe" else 0
        np.testing.assert_allclose(ours[0].astype(int), expected[0].astype(int), atol=levels)
        np.testing.assert_allclose(ours[1], expected[1], atol=1e-6)
        np.testing.assert_array_equal(ours[2], expected[2])

    def test_generator_decides(self, name):
        def run(seed):
            boxes, labels = np.array([[0.2, 0.2, 0.8, 0.7]], np.float32), np.ones(1, np.int32)
            return self.run(name, np.random.default_rng(seed), noise(), boxes, labels)

        for one, two in zip(run(5), run(5), strict=True):
            np.testing.assert_array_equal(one, two)
        assert not np.array_equal(run(5)[0], run(6)[0])

    def test_boxes_follow_the_pixels(self, name, monkeypatch):
        """A white square on black stays where its box says, through everything but colours."""
        module = augmentation if name == "caffe" else ssd_pytorch
        monkeypatch.setattr(module, "photometric_distort", lambda _, image: image)
        monkeypatch.setattr(augmentation, "INTERPOLATIONS", (cv2.INTER_LINEAR,))
        monkeypatch.setitem(globals(), "FILL", (0, 0, 0))
        image = np.zeros((120, 160, 3), np.uint8)
        image[30:90, 40:100] = 255
        boxes = np.array([[40 / 160, 30 / 120, 100 / 160, 90 / 120]], np.float32)
        rng, seen = np.random.default_rng(0), 0
        for _ in range(200):
            out, kept, _ = self.run(name, rng, image, boxes, np.ones(1, np.int32), 3.0, size=200)
            x, y, w, h = cv2.boundingRect((out[..., 0] > 127).astype(np.uint8))
            np.testing.assert_allclose([x, y, x + w, y + h], kept[0] * 200, atol=2)
            seen += kept.min() > 0 and kept.max() < 1
        assert 40 < seen < 200


class Scripted:
    """Generator with scripted draws that records the requested ranges."""

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

    def test_no_change(self):
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
    def test_hue_wraps_around(self, pixel, amount):
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
    def test_frequency_and_ratios(self):
        rng = np.random.default_rng(0)
        views = np.array([expand(rng, 40, 50, 4.0) for _ in range(4000)])
        larger = views[(views != [0, 0, 40, 50]).any(1)]
        assert 0.47 < len(larger) / 4000 < 0.53
        sides = (larger[:, 2:] - larger[:, :2]) / [40, 50]
        assert 2.42 < sides.mean() < 2.55
        assert sides.max() <= 4
        np.testing.assert_allclose(sides[:, 0], sides[:, 1], atol=1 / 40)
        # The image is inside, anywhere: its place among the possible ones is uniform.
        assert (larger[:, :2] <= 0).all()
        assert (larger[:, 2:] >= [40, 50]).all()
        roomy = larger[(sides > 2).all(1)]
        place = -roomy[:, :2] / (roomy[:, 2:] - roomy[:, :2] - [40, 50])
        np.testing.assert_allclose(np.quantile(place, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.04)

    def test_ratio_of_one_changes_nothing(self):
        assert expand(Always(), 40, 50, 1.0).tolist() == [0, 0, 40, 50]


class TestView:
    def test_canvas_is_the_mean(self):
        image = np.zeros((5, 5, 3), np.uint8)
        out = resample(*cut(image, np.array([-3, -1, 6, 8])), 9, FILL)
        expected = np.full((9, 9, 3), (123, 117, 104), np.uint8)
        expected[1:6, 3:8] = 0
        np.testing.assert_array_equal(out, expected)

    def test_canvas_of_a_large_photograph_is_small(self, monkeypatch):
        """A square keeps its position, and intermediate images have at most (2 * 8 * 10)^2 pixels,
        apart from those that the aspect of the view adds."""
        image = np.zeros((600, 900, 3), np.uint8)
        image[300:500, 150:450] = 255
        sizes = []
        original = cv2.copyMakeBorder
        monkeypatch.setattr(
            cv2,
            "copyMakeBorder",
            lambda *a, **k: sizes.append(original(*a, **k)) or sizes[-1],
        )
        view = np.array([-1300, -300, 2100, 1700])
        out = resample(*cut(image, view), 10, (0, 0, 0), cv2.INTER_AREA)
        assert sizes[0].size <= 3 * 160 * 160 * 1.7
        x, y, w, h = 10 * (1300 + 150) / 3400, 10 * (300 + 300) / 2000, 10 * 300 / 3400, 1
        ours = cv2.moments(out[..., 0].astype(np.float32))
        centre = np.array([ours["m10"], ours["m01"]]) / ours["m00"] + 0.5
        np.testing.assert_allclose(centre, [x + w / 2, y + h / 2], atol=0.06)
        np.testing.assert_allclose(ours["m00"] / 255, w * h, rtol=0.05)

    def test_part_is_a_view(self):
        image = noise()
        part, margins = cut(image, np.array([-2, 5, 11, 26]))
        assert np.shares_memory(part, image)
        np.testing.assert_array_equal(part, image[5:, :11])
        assert margins == (0, 6, 2, 0)

    def test_objects_whose_centre_is_inside_stay_clipped(self):
        boxes = np.array([[0, 0, 8, 8], [2, 2, 10, 10], [9, 0, 11, 4], [4, 4, 5, 5.0]])
        out, inside = boxes_in_view(boxes, np.array([4, 0, 10, 6]))
        # The second one's centre is on the lower edge, the third one's on the right edge.
        assert inside.tolist() == [True, False, False, True]
        np.testing.assert_allclose(out, [[0, 0, 2 / 3, 1], [0, 2 / 3, 1 / 6, 5 / 6]])


class TestRandomCrop:
    @pytest.mark.parametrize("min_iou", CROP_IOUS)
    def test_iou_holds_for_an_object_that_stays(self, min_iou):
        """Thousands of draws: the bound holds, and it is the sampler's and not a stricter one."""
        rng = np.random.default_rng(1)
        kept = []
        for _ in range(600):
            width, height = rng.integers(20, 200, 2).tolist()
            sides = rng.uniform(0.05, 1, (3, 2)) * (width, height)
            corners = rng.uniform(0, (width, height) - sides)
            boxes = np.concatenate([corners, corners + sides], 1)
            x0, y0 = rng.integers(-30, 1, 2).tolist()
            view = np.array([x0, y0, width + 7, height])
            crop = sample_crop(rng, boxes, view, min_iou)
            if crop is None:
                continue
            assert (crop[:2] >= view[:2]).all()
            assert (crop[2:] <= view[2:]).all()
            assert (crop[:2] < crop[2:]).all()
            ious = [
                reference_augmentation.iou(crop, box)
                for box in boxes
                if reference_augmentation.centre_inside(box, crop)
            ]
            assert ious
            assert max(ious) >= min_iou - 1e-9
            kept.append(max(ious))
        assert len(kept) > 10
        assert min(kept) < min_iou + 0.05

    def test_scale_and_aspect(self):
        rng = np.random.default_rng(0)
        boxes, view = np.array([[0.0, 0, 1000, 1000]]), np.array([0, 0, 1000, 1000])
        crops = np.array([sample_crop(rng, boxes, view, 0.0) for _ in range(4000)])
        w, h = (crops[:, 2:] - crops[:, :2]).T / 1000
        scale, aspect = np.sqrt(w * h), w / h
        assert 0.29 < scale.min() < 0.31
        assert 0.99 < scale.max() <= 1.001
        assert 0.49 < aspect.min() < 0.52
        assert 1.94 < aspect.max() < 2.02

    def test_image_is_kept_if_no_crop_qualifies(self):
        tiny, view = np.array([[10.0, 10, 11, 11]]), np.array([0, 0, 100, 100])
        assert sample_crop(np.random.default_rng(0), tiny, view, 0.1) is None

    def shares(self, monkeypatch, finds):
        """Count how often each sampler's crop is taken, the one that keeps the view last."""

        def crop(rng, boxes, view, min_iou, **_):
            k = CROP_IOUS.index(min_iou)
            return np.array([0, 0, k + 1, 9]) if k in finds else None

        monkeypatch.setattr(augmentation, "sample_crop", crop)
        rng, boxes, view = np.random.default_rng(0), np.ones((1, 4)), np.array([0, 0, 7, 9])
        widths = [random_crop(rng, boxes, view)[2] for _ in range(4200)]
        return np.bincount(widths, minlength=8)[1:]

    def test_samplers_are_equally_likely(self, monkeypatch):
        np.testing.assert_allclose(self.shares(monkeypatch, range(6)), 600, atol=75)

    def test_failed_samplers_are_replaced_by_others(self, monkeypatch):
        expected = [1400, 0, 0, 1400, 0, 0, 1400]
        np.testing.assert_allclose(self.shares(monkeypatch, {0, 3}), expected, atol=100)

    def test_image_without_objects_is_not_cropped(self):
        view = np.array([-5, 0, 10, 9])
        for crop in (random_crop, ssd_pytorch.random_crop):
            out = crop(np.random.default_rng(0), NO_BOXES, view, scale=0.3, aspect=2)
            assert out.tolist() == view.tolist()


class TestSsdPytorchCrop:
    def test_frequency_sizes_and_missing_iou_check(self):
        rng = np.random.default_rng(0)
        view, box = np.array([-100, 0, 900, 800]), np.array([[350.0, 350, 450, 450]])
        crops = np.array(
            [ssd_pytorch.random_crop(rng, box, view, scale=0.3, aspect=2) for _ in range(3000)]
        )
        whole = (crops == view).all(1)
        assert 0.14 < whole.mean() < 0.19
        crops = crops[~whole]
        assert (crops[:, :2] >= view[:2]).all()
        assert (crops[:, 2:] <= view[2:]).all()
        w, h = (crops[:, 2:] - crops[:, :2]).T
        assert 300 <= w.min() < 320
        assert 240 <= h.min() < 260
        assert 0.5 <= (h / w).min() < 0.52
        assert 1.9 < (h / w).max() <= 2
        assert ((crops[:, :2] <= 400) & (crops[:, 2:] > 400)).all()
        # Small objects come with any IoU: more than half would fail the lowest bound, 0.1.
        assert np.mean([reference_augmentation.iou(crop, box[0]) < 0.1 for crop in crops]) > 0.5


class TestSsdPytorchColours:
    def test_channels_take_any_order_half_of_the_time(self):
        rng, pixel = np.random.default_rng(0), np.array([[[40, 90, 200]]], np.uint8)
        orders = {}
        for _ in range(6000):
            out = ssd_pytorch.photometric_distort(rng, pixel)
            order = tuple(np.argsort(out[0, 0]))
            orders[order] = orders.get(order, 0) + 1
        # Brightness, contrast and saturation keep the order of values, and so does a hue of 18
        # degrees; one in six of the permuted half keeps its order.
        assert len(orders) == 6
        assert 0.55 < orders.pop((0, 1, 2)) / 6000 < 0.62
        assert min(orders.values()) / 6000 > 0.065

    def test_hue_turns_18_degrees_at_most(self):
        rng, pixel = np.random.default_rng(0), np.full((1, 1, 3), (200, 100, 100), np.uint8)
        hues = []
        for _ in range(3000):
            red, green, blue = ssd_pytorch.photometric_distort(rng, pixel)[0, 0].tolist()
            if red > max(green, blue):  # channels as they were, or green and blue in each other's
                degrees = colorsys.rgb_to_hsv(red, green, blue)[0] * 360
                hues.append((degrees + 180) % 360 - 180)
        assert -18.01 < min(hues) < -17
        assert 17 < max(hues) < 18.01

    def test_nothing_is_clipped(self):
        rng, white = np.random.default_rng(0), np.full((1, 1, 3), 255, np.uint8)
        values = [ssd_pytorch.photometric_distort(rng, white).max() for _ in range(500)]
        assert 400 < max(values) <= (255 + 32) * 1.5


class TestFlips:
    @pytest.mark.parametrize("flip", [horizontal_flip, vertical_flip])
    @given(scenes())
    @settings(max_examples=50, deadline=None)
    def test_flipping_twice_is_the_identity(self, flip, scene):
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
    def test_flip_probability_is_one_half(self, flip):
        rng, image = np.random.default_rng(0), noise()
        share = np.mean([flip(rng, image, NO_BOXES)[0] is not image for _ in range(2000)])
        assert 0.45 < share < 0.55


class TestResize:
    def test_all_interpolations_are_used_alike(self, monkeypatch):
        used = []
        original = augmentation.resample
        monkeypatch.setattr(augmentation, "resample", lambda *a: used.append(a[4]) or original(*a))
        for seed in range(2000):
            augment_caffe(
                np.random.default_rng(seed),
                np.zeros((2, 2, 3), np.uint8),
                NO_BOXES,
                NO_LABELS,
                size=1,
                fill=FILL,
                expand_ratio=1,
                min_crop_scale=0.3,
                max_crop_aspect_ratio=2,
                flip_vertically=False,
            )
        counts = np.unique(used, return_counts=True)[1]
        assert len(counts) == 5
        assert counts.min() > 330

    def test_evaluation_is_bilinear(self):
        image = noise(height=7, width=9)
        expected = cv2.resize(image, (20, 20), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(preprocess_eval(image, 20), expected)

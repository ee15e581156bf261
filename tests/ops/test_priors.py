import numpy as np
import pytest

from ssd_jax.ops.boxes import cxcywh_to_xyxy
from ssd_jax.ops.priors import make_priors, num_priors, priors_per_cell

pytestmark = pytest.mark.smoke

FEATURES_300 = (38, 19, 10, 5, 3, 1)
RATIOS_300 = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
STEPS_300 = (8, 16, 32, 64, 100, 300)
SIZES_300 = {
    "voc300": (30, 60, 111, 162, 213, 264, 315),
    "coco300": (21, 45, 99, 153, 207, 261, 315),
}
FEATURES_512 = (64, 32, 16, 8, 4, 2, 1)
RATIOS_512 = ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))
SIZES_512 = (35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6)


def priors_300(name: str, clip: bool) -> np.ndarray:
    return make_priors(
        FEATURES_300,
        300,
        sizes=SIZES_300[name],
        steps=STEPS_300,
        aspect_ratios=RATIOS_300,
        clip=clip,
    )


@pytest.mark.parametrize("name", ["voc300", "coco300"])
def test_priors_equal_ssd_pytorch(golden, name):
    expected = np.load(golden / "priors.npz")[name]
    priors = priors_300(name, clip=True)
    assert priors.dtype == np.float32
    np.testing.assert_allclose(priors, expected, rtol=0, atol=1e-6)


def test_clipping_changes_134_priors_of_voc():
    changed = np.any(priors_300("voc300", clip=True) != priors_300("voc300", clip=False), axis=1)
    assert changed.sum() == 134


def test_counts():
    assert priors_per_cell(RATIOS_300) == (4, 6, 6, 6, 4, 4)
    assert num_priors(FEATURES_300, RATIOS_300) == 8732 == len(priors_300("voc300", clip=False))
    assert num_priors(FEATURES_512, RATIOS_512) == 24564


def test_empty_steps_are_the_image_divided_by_the_cells():
    arguments = {"sizes": SIZES_512, "aspect_ratios": RATIOS_512}
    explicit = make_priors(FEATURES_512, 512, steps=(8, 16, 32, 64, 128, 256, 512), **arguments)
    assert explicit.shape == (24564, 4)
    np.testing.assert_array_equal(make_priors(FEATURES_512, 512, steps=(), **arguments), explicit)


def test_priors_equal_caffe(caffe):
    case = caffe["prior box"]
    side = case["feature_map"]
    priors = make_priors(
        [side],
        case["image"],
        sizes=[case["min_size"], case["max_size"]],
        steps=[],
        aspect_ratios=[case["aspect_ratios"]],
    )
    cells = np.asarray(cxcywh_to_xyxy(priors)).reshape(side, side, 4, 4)
    np.testing.assert_allclose(cells[0, 0], case["cell_0_0"], atol=1e-6)
    for box, expected in case["cell_row4_col4"].items():
        np.testing.assert_allclose(cells[4, 4, int(box)], expected, atol=1e-6)


def test_order_is_layer_row_column_box():
    sources = {"sizes": (20, 30, 40), "steps": (50, 100), "aspect_ratios": ((2,), ())}
    priors = make_priors((2, 1), 100, **sources)
    expected = []
    for cy in (0.25, 0.75):
        for cx in (0.25, 0.75):
            for size in [(0.2, 0.2), (0.06**0.5, 0.06**0.5)]:
                expected.append((cx, cy, *size))
            long, short = 0.2 * 2**0.5, 0.2 / 2**0.5
            expected += [(cx, cy, long, short), (cx, cy, short, long)]
    expected += [(0.5, 0.5, 0.3, 0.3), (0.5, 0.5, 0.12**0.5, 0.12**0.5)]
    np.testing.assert_allclose(priors, expected, atol=1e-6)


def test_offset_moves_the_centers():
    priors = make_priors((2,), 100, sizes=(20, 30), steps=(), aspect_ratios=((),), offset=0.25)
    np.testing.assert_allclose(np.unique(priors[:, :2]), [0.125, 0.625])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (20, 30)}, "sizes has 2 entries; the feature layers need 3"),
        ({"steps": (50,)}, "steps has 1 entries"),
        ({"aspect_ratios": ((2,),)}, "aspect_ratios has 1 entries"),
    ],
)
def test_mismatched_lengths_are_reported(change, message):
    arguments = {"sizes": (20, 30, 40), "steps": (50, 100), "aspect_ratios": ((2,), ())}
    with pytest.raises(ValueError, match=message):
        make_priors((2, 1), 100, **(arguments | change))


def test_num_priors_reports_mismatched_lengths():
    with pytest.raises(ValueError, match="aspect_ratios"):
        num_priors((2, 1), ((2,),))


def test_clip_wh_leaves_centers_unchanged():
    """torchvision's rule: cells may reach past the image, boxes may not be wider than it."""
    common = {"sizes": (90, 120), "steps": (60,), "aspect_ratios": ((2,),)}
    plain = make_priors((2,), 100, **common)
    clipped = make_priors((2,), 100, **common, clip_wh=True)
    np.testing.assert_array_equal(clipped[:, :2], plain[:, :2])
    np.testing.assert_array_equal(clipped[:, 2:], np.minimum(plain[:, 2:], 1))
    assert plain.max() > 1

"""CPU convolutions equal the plain one, in value and gradient, at every layer shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.inputs import voc_config
from ssd_jax.kernels import winograd
from ssd_jax.kernels.conv2d import conv2d, set_cpu_conv, use_cpu_conv
from ssd_jax.kernels.geometry import ConvGeometry
from ssd_jax.models.ssd import make_model

# (cells, channels in, channels out, kernel size, geometry): the kinds of layer that SSD has, with
# fewer channels; at odd sizes Winograd's tiles reach past the map.
LAYERS = [
    (20, 3, 64, 3, ConvGeometry(1, 1)),
    (19, 64, 64, 3, ConvGeometry(1, 1)),
    (16, 64, 72, 3, ConvGeometry(1, 1)),
    (19, 8, 16, 3, ConvGeometry(1, 6, 6)),
    (4, 8, 16, 3, ConvGeometry(1, 6, 6)),
    (9, 8, 16, 3, ConvGeometry(1, 1, 2)),
    (19, 16, 8, 1, ConvGeometry()),
    (19, 8, 16, 3, ConvGeometry(2, 1)),
    (10, 8, 16, 3, ConvGeometry(2, 1)),
    (5, 8, 16, 3, ConvGeometry()),
    (3, 8, 16, 3, ConvGeometry()),
    (1, 8, 24, 3, ConvGeometry(1, 1)),
    (2, 8, 16, 4, ConvGeometry(1, 1)),
    # Large maps are processed one image, or one block of rows, at a time.
    (41, 3, 8, 3, ConvGeometry(1, 1)),
    (40, 16, 8, 1, ConvGeometry()),
    (45, 8, 16, 3, ConvGeometry(2, 6, 6)),
    (41, 128, 130, 3, ConvGeometry(1, 1)),
    (42, 128, 128, 3, ConvGeometry(1)),
    (96, 3, 4, 3, ConvGeometry(1, 1)),
    (95, 4, 4, 3, ConvGeometry(1, 1)),
    (94, 4, 4, 3, ConvGeometry(1, 1)),
]


def plain(x, kernel, bias, geometry, relu=False):
    y = lax.conv_general_dilated(
        x,
        kernel,
        (geometry.stride,) * 2,
        [(geometry.padding,) * 2] * 2,
        rhs_dilation=(geometry.dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    y = y + bias[None, None, None]
    return jax.nn.relu(y) if relu else y


def value_and_gradients(function, inputs, *options):
    """Return the value for x, kernel and bias and its gradients; `inputs` ends with its own."""

    @jax.jit
    def run(*arrays, grad):
        value, vjp = jax.vjp(lambda *arrays: function(*arrays, *options), *arrays)
        return value, *vjp(grad)

    return run(*inputs[:-1], grad=inputs[-1])


def arguments(layer, batch, seed=0):
    cells, channels_in, channels_out, size, geometry = layer
    keys = jax.random.split(jax.random.key(seed), 4)
    side = geometry.output_size(cells, size)
    return (
        jax.random.normal(keys[0], (batch, cells, cells, channels_in)),
        jax.random.normal(keys[1], (size, size, channels_in, channels_out)),
        10 * jax.random.normal(keys[2], (channels_out,)),
        jax.random.normal(keys[3], (batch, side, side, channels_out)),
    )


@pytest.mark.parametrize("algorithm", ["direct", "winograd", "auto"])
@pytest.mark.parametrize(
    "layer", [*LAYERS[:3], *(pytest.param(layer, marks=pytest.mark.slow) for layer in LAYERS[3:])]
)
def test_equals_the_plain_convolution(layer, algorithm):
    relu = layer[0] % 2 == 1
    *inputs, grad = arguments(layer, batch=2)
    geometry = layer[-1]
    # Where an output is 0 up to rounding, either side of the ReLU's kink is correct.
    y = plain(*inputs, geometry)
    inputs = (*inputs, jnp.where(jnp.abs(y) > 2e-5 * jnp.abs(y).max(), grad, 0))
    with use_cpu_conv(algorithm):
        results = value_and_gradients(conv2d, inputs, geometry, relu)
    expected = value_and_gradients(plain, inputs, geometry, relu)
    for a, b in zip(results, expected, strict=True):
        assert a.shape == b.shape
        assert float(jnp.abs(a - b).max()) < 2e-5 * float(jnp.abs(b).max())


@pytest.mark.nightly
@pytest.mark.parametrize("size", [300, 512])
def test_every_layer_of_the_network_equals_the_plain_convolution(size, monkeypatch):
    config = voc_config(size=size)
    layers = set()

    def record(x, kernel, bias, geometry, relu=False):
        layers.add(((x.shape[1], *kernel.shape[2:], kernel.shape[0], geometry), relu))
        return plain(x, kernel, bias, geometry, relu)

    monkeypatch.setattr("ssd_jax.models.layers.conv2d", record)
    image = jax.ShapeDtypeStruct((1, size, size, 3), "uint8")
    jax.eval_shape(make_model(config.model, config.priors).init, jax.random.key(0), image)
    assert len(layers) > 20
    assert {relu for _, relu in layers} == {True, False}
    for layer, relu in layers:
        inputs = arguments(layer, batch=1, seed=size)
        results, expected = (
            value_and_gradients(f, inputs, layer[-1], relu) for f in (conv2d, plain)
        )
        for a, b in zip(results, expected, strict=True):
            # XLA's sum over the cells of a large map is the less exact of the two.
            assert float(jnp.abs(a - b).max()) < 1e-4 * float(jnp.abs(b).max()), layer


def test_against_a_double_loop():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 7, 7, 2)), rng.normal(size=(3, 3, 2, 3))
    bias = np.array([-8.0, 0.0, 8.0])
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    expected = np.zeros((1, 4, 4, 3))
    for i in range(4):
        for j in range(4):
            for a in range(3):
                for b in range(3):
                    expected[0, i, j] += padded[0, 2 * i + 2 * a, 2 * j + 2 * b] @ kernel[a, b]
    for relu in (False, True):
        arguments = (jnp.float32(a) for a in (x, kernel, bias))
        result = conv2d(*arguments, ConvGeometry(2, 2, 2), relu)
        biased = np.maximum(expected + bias, 0) if relu else expected + bias
        np.testing.assert_allclose(result, biased, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cells", "algorithm"), [(96, "winograd"), (42, "direct")])
def test_one_program_for_batches_of_any_size(cells, algorithm):
    (batch,) = jax.export.symbolic_shape("b")

    @jax.jit
    def gradients(x, kernel, bias):
        y, vjp = jax.vjp(lambda *a: conv2d(*a, ConvGeometry(1, 1), True), x, kernel, bias)
        return vjp(y)

    weights = 0.1 * jnp.ones((3, 3, 2, 2)), jnp.ones(2)
    shapes = [jax.ShapeDtypeStruct((batch, cells, cells, 2), "float32")]
    shapes += [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
    with use_cpu_conv(algorithm):
        program = jax.export.export(gradients)(*shapes)
    x = jax.random.normal(jax.random.key(0), (2, cells, cells, 2))
    for a, b in zip(program.call(x, *weights), gradients(x, *weights), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_other_platforms_use_the_compilers_convolution():
    """A program lowered for a TPU has a convolution and no matrix products."""
    step = jax.grad(lambda k, x, b: jnp.sum(conv2d(x, k, b, ConvGeometry(1, 1), True) ** 2))
    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((3, 3, 64, 64), (1, 20, 20, 64), (64,))]
    with use_cpu_conv("winograd"):
        text = jax.jit(step).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
    assert "convolution" in text
    assert "dot_general" not in text


@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
@pytest.mark.parametrize("cells", [19, 41])
def test_error_is_float32_rounding(cells, algorithm):
    rng = np.random.default_rng(cells)
    x, grad = rng.random((2, cells, cells, 128)), rng.normal(size=(2, cells, cells, 128))
    kernel = 0.02 * rng.normal(size=(3, 3, 128, 128))

    def run(function, kind):
        inputs = [jnp.asarray(a, kind) for a in (x, kernel, np.zeros(128), grad)]
        return value_and_gradients(function, inputs, ConvGeometry(1, 1))

    with jax.enable_x64(True):
        exact = [np.asarray(a) for a in run(plain, "float64")]
    with use_cpu_conv(algorithm):
        results = run(conv2d, "float32")
    for a, b in zip(results, exact, strict=True):
        assert b.dtype == np.float64
        assert np.sqrt(np.mean((np.asarray(a) - b) ** 2) / np.mean(b**2)) < 1e-6


@pytest.mark.parametrize("algorithm", ["direct", "winograd", "auto"])
def test_bfloat16_weight_gradients_of_large_maps_are_summed_in_float32(algorithm):
    """Blocks and images are added in float32 and rounded once."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (8, 40, 40, 128)).astype(jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (3, 3, 128, 128)).astype(jnp.bfloat16) / 32
    grad = jax.random.normal(keys[2], (8, 40, 40, 128)).astype(jnp.bfloat16)

    def weight_gradient(function, x, kernel, grad):
        bias = jnp.zeros(kernel.shape[-1], kernel.dtype)
        return value_and_gradients(function, (x, kernel, bias, grad), ConvGeometry(1, 1))[2]

    arrays = x, kernel, grad
    with use_cpu_conv(algorithm):
        result = weight_gradient(conv2d, *arrays)
    exact = weight_gradient(plain, *(a.astype(jnp.float32) for a in arrays))
    error = jnp.sqrt(jnp.mean((result.astype(jnp.float32) - exact) ** 2) / jnp.mean(exact**2))
    assert result.dtype == jnp.bfloat16
    # Rounding once gives 0.0011.
    assert float(error) < 0.003


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["direct", "winograd", "auto"])
@pytest.mark.parametrize("geometry", [ConvGeometry(1, 1), ConvGeometry(1, 6, 6)])
def test_bfloat16_stays_bfloat16(algorithm, geometry):
    """The paths of all platforms must agree on the type."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (1, 8, 8, 64), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (3, 3, 64, 64), jnp.bfloat16)
    bias = jnp.ones(64, jnp.bfloat16)

    def loss(*arrays):
        return jnp.sum(jax.jit(conv2d, static_argnums=(3, 4))(*arrays, geometry, True))

    arrays = x, kernel, bias
    with use_cpu_conv(algorithm):
        value = conv2d(*arrays, geometry)
        gradients = jax.grad(loss, (0, 1, 2))(*arrays)
    assert value.dtype == jnp.bfloat16
    expected = plain(*(a.astype(jnp.float32) for a in arrays), geometry)
    error = np.abs(np.asarray(value, np.float32) - expected)
    assert error.max() < 0.03 * np.abs(expected).max()
    assert {g.dtype for g in gradients} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("transform", [jax.jit, jax.pmap], ids=["jit", "pmap"])
def test_changed_algorithm_is_not_served_by_an_earlier_program(transform, monkeypatch):
    """Also within one function, and for the gradient, whose rule is traced later."""
    traced = []

    def transform_kernel(kernel):
        traced.append(kernel.shape)
        return winograd.transform_kernel(kernel)

    monkeypatch.setattr("ssd_jax.kernels.conv2d.transform_kernel", transform_kernel)
    x, kernel, bias = jnp.ones((1, 1, 16, 16, 4)), jnp.ones((1, 3, 3, 4, 4)), jnp.zeros((1, 4))

    @transform
    def gradient(x, kernel, bias):
        x, kernel, bias = (a.reshape(a.shape[-n:]) for a, n in ((x, 4), (kernel, 4), (bias, 1)))
        return jax.grad(lambda k: jnp.sum(conv2d(x, k, bias, ConvGeometry(1, 1))))(kernel)

    def is_winograd():
        traced.clear()
        gradient(x, kernel, bias)
        return bool(traced)

    assert not is_winograd()  # auto: too few channels
    with use_cpu_conv("winograd"):
        assert is_winograd()
        assert not is_winograd()  # compiled
    assert not is_winograd()
    try:
        set_cpu_conv("winograd")
        assert not is_winograd()  # compiled above
        assert conv2d(x[0], kernel[0], bias[0], ConvGeometry(1, 1)).shape == (1, 16, 16, 4)
        assert traced  # not under jit: the current algorithm
    finally:
        set_cpu_conv("auto")

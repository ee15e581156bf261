"""The CPU's fast convolutions equal the plain one, in value and gradient, at every layer shape."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.inputs import voc_config
from ssd_jax.kernels.conv2d import ConvGeometry, conv2d
from ssd_jax.models.ssd import make_model

# (cells, channels in, channels out, kernel, window): the kinds of layer that SSD has, with fewer
# channels; odd sizes make Winograd's tiles reach past the map.
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
    # Large maps go an image, or a strip of rows, at a time.
    (41, 3, 8, 3, ConvGeometry(1, 1)),
    (40, 16, 8, 1, ConvGeometry()),
    (45, 8, 16, 3, ConvGeometry(2, 6, 6)),
    (41, 128, 130, 3, ConvGeometry(1, 1)),
    (42, 128, 128, 3, ConvGeometry(1)),
    (96, 3, 4, 3, ConvGeometry(1, 1)),
    (95, 4, 4, 3, ConvGeometry(1, 1)),
    (94, 4, 4, 3, ConvGeometry(1, 1)),
]


def plain(x, kernel, bias, window, relu=False):
    y = lax.conv_general_dilated(
        x,
        kernel,
        (window.stride,) * 2,
        [(window.padding,) * 2] * 2,
        rhs_dilation=(window.dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    y = y + bias[None, None, None]
    return jax.nn.relu(y) if relu else y


def value_and_gradients(function, given, *options):
    """The value for x, kernel and bias, and the gradients for them from the value's."""

    @jax.jit
    def run(*arrays, grad):
        value, vjp = jax.vjp(lambda *arrays: function(*arrays, *options), *arrays)
        return value, *vjp(grad)

    return run(*given[:-1], grad=given[-1])


def arguments(layer, batch, seed=0):
    cells, channels_in, channels_out, size, window = layer
    keys = jax.random.split(jax.random.key(seed), 4)
    side = window.output_size(cells, size)
    return (
        jax.random.normal(keys[0], (batch, cells, cells, channels_in)),
        jax.random.normal(keys[1], (size, size, channels_in, channels_out)),
        10 * jax.random.normal(keys[2], (channels_out,)),
        jax.random.normal(keys[3], (batch, side, side, channels_out)),
    )


@pytest.mark.parametrize("cpu_conv", ["direct", "winograd", "auto"])
@pytest.mark.parametrize("layer", LAYERS)
def test_equals_the_plain_convolution(layer, cpu_conv):
    relu = layer[0] % 2 == 1
    *inputs, grad = arguments(layer, batch=2)
    window = layer[-1]
    # Where an output is 0 but for rounding, either side of the ReLU's kink is right.
    y = plain(*inputs, window)
    given = (*inputs, jnp.where(jnp.abs(y) > 2e-5 * jnp.abs(y).max(), grad, 0))
    ours = value_and_gradients(conv2d, given, window, relu, cpu_conv)
    known = value_and_gradients(plain, given, window, relu)
    for a, b in zip(ours, known, strict=True):
        assert a.shape == b.shape
        assert float(jnp.abs(a - b).max()) < 2e-5 * float(jnp.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize("size", [300, 512])
def test_every_layer_of_the_network_equals_the_plain_convolution(size, monkeypatch):
    config = voc_config(size=size)
    layers = set()

    def record(x, kernel, bias, window, relu=False, cpu_conv="auto"):
        assert cpu_conv == "auto"
        layers.add(((x.shape[1], *kernel.shape[2:], kernel.shape[0], window), relu))
        return plain(x, kernel, bias, window, relu)

    monkeypatch.setattr("ssd_jax.models.layers.conv2d", record)
    image = jax.ShapeDtypeStruct((1, size, size, 3), "uint8")
    jax.eval_shape(make_model(config.model, config.priors).init, jax.random.key(0), image)
    assert len(layers) > 20
    assert {relu for _, relu in layers} == {True, False}
    for layer, relu in layers:
        given = arguments(layer, batch=1, seed=size)
        ours, known = (value_and_gradients(f, given, layer[-1], relu) for f in (conv2d, plain))
        for a, b in zip(ours, known, strict=True):
            # XLA's sum over the cells of a large map is the less exact of the two.
            assert float(jnp.abs(a - b).max()) < 1e-4 * float(jnp.abs(b).max()), layer


def test_against_a_double_loop():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 7, 7, 2)), rng.normal(size=(3, 3, 2, 3))
    bias = np.array([-8.0, 0.0, 8.0])
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    known = np.zeros((1, 4, 4, 3))
    for i in range(4):
        for j in range(4):
            for a in range(3):
                for b in range(3):
                    known[0, i, j] += padded[0, 2 * i + 2 * a, 2 * j + 2 * b] @ kernel[a, b]
    for relu in (False, True):
        arguments = (jnp.float32(a) for a in (x, kernel, bias))
        ours = conv2d(*arguments, ConvGeometry(2, 2, 2), relu)
        expected = np.maximum(known + bias, 0) if relu else known + bias
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cells", "cpu_conv"), [(96, "winograd"), (42, "direct")])
def test_one_program_for_batches_of_any_size(cells, cpu_conv):
    (batch,) = jax.export.symbolic_shape("b")

    @jax.jit
    def gradients(x, kernel, bias):
        y, vjp = jax.vjp(lambda *a: conv2d(*a, ConvGeometry(1, 1), True, cpu_conv), x, kernel, bias)
        return vjp(y)

    weights = 0.1 * jnp.ones((3, 3, 2, 2)), jnp.ones(2)
    shapes = [jax.ShapeDtypeStruct((batch, cells, cells, 2), "float32")]
    shapes += [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
    program = jax.export.export(gradients)(*shapes)
    x = jax.random.normal(jax.random.key(0), (2, cells, cells, 2))
    for a, b in zip(program.call(x, *weights), gradients(x, *weights), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_other_platforms_get_the_compilers_own():
    """A program lowered for a TPU has the convolution and none of the CPU's products."""
    step = jax.grad(
        lambda k, x, b: jnp.sum(conv2d(x, k, b, ConvGeometry(1, 1), True, "winograd") ** 2)
    )
    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((3, 3, 64, 64), (1, 20, 20, 64), (64,))]
    text = jax.jit(step).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
    assert "convolution" in text
    assert "dot_general" not in text


@pytest.mark.parametrize("cpu_conv", ["direct", "winograd"])
@pytest.mark.parametrize("cells", [19, 41])
def test_is_as_exact_as_float32_allows(cells, cpu_conv):
    rng = np.random.default_rng(cells)
    x, grad = rng.random((2, cells, cells, 128)), rng.normal(size=(2, cells, cells, 128))
    kernel = 0.02 * rng.normal(size=(3, 3, 128, 128))

    def run(function, kind):
        given = [jnp.asarray(a, kind) for a in (x, kernel, np.zeros(128), grad)]
        return value_and_gradients(function, given, ConvGeometry(1, 1))

    with jax.enable_x64(True):
        exact = [np.asarray(a) for a in run(plain, "float64")]
    ours = run(partial(conv2d, cpu_conv=cpu_conv), "float32")
    for a, b in zip(ours, exact, strict=True):
        assert b.dtype == np.float64
        assert np.sqrt(np.mean((np.asarray(a) - b) ** 2) / np.mean(b**2)) < 1e-6


@pytest.mark.parametrize("cpu_conv", ["direct", "winograd", "auto"])
def test_sums_of_bfloat16_are_as_exact_on_large_maps(cpu_conv):
    """Strips and images are added up in float32, and rounded once."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (8, 40, 40, 128)).astype(jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (3, 3, 128, 128)).astype(jnp.bfloat16) / 32
    grad = jax.random.normal(keys[2], (8, 40, 40, 128)).astype(jnp.bfloat16)

    def weight_gradient(function, x, kernel, grad):
        bias = jnp.zeros(kernel.shape[-1], kernel.dtype)
        return value_and_gradients(function, (x, kernel, bias, grad), ConvGeometry(1, 1))[2]

    arrays = x, kernel, grad
    ours = weight_gradient(partial(conv2d, cpu_conv=cpu_conv), *arrays)
    exact = weight_gradient(plain, *(a.astype(jnp.float32) for a in arrays))
    error = jnp.sqrt(jnp.mean((ours.astype(jnp.float32) - exact) ** 2) / jnp.mean(exact**2))
    assert ours.dtype == jnp.bfloat16
    # Rounding once makes 0.0011.
    assert float(error) < 0.003


@pytest.mark.parametrize("cpu_conv", ["direct", "winograd", "auto"])
@pytest.mark.parametrize("window", [ConvGeometry(1, 1), ConvGeometry(1, 6, 6)])
def test_bfloat16_stays_bfloat16(cpu_conv, window):
    """Also for platforms that never take the CPU's path: all paths must agree on the type."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (1, 8, 8, 64), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (3, 3, 64, 64), jnp.bfloat16)
    bias = jnp.ones(64, jnp.bfloat16)

    def loss(*arrays):
        return jnp.sum(jax.jit(conv2d, static_argnums=(3, 4, 5))(*arrays, window, True, cpu_conv))

    arrays = x, kernel, bias
    value = conv2d(*arrays, window, cpu_conv=cpu_conv)
    assert value.dtype == jnp.bfloat16
    known = plain(*(a.astype(jnp.float32) for a in arrays), window)
    error = np.abs(np.asarray(value, np.float32) - known)
    assert error.max() < 0.03 * np.abs(known).max()
    assert {g.dtype for g in jax.grad(loss, (0, 1, 2))(*arrays)} == {jnp.dtype(jnp.bfloat16)}

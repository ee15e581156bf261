"""Small files with the formats and the names of the arrays of the published ones."""

import functools
import io
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
from safetensors.numpy import save

from ssd_jax.weights import layouts, name_maps

FEATURES = [name for name in name_maps.VGG16_POSITIONS if name not in ("conv6", "conv7")]


def pairs(names):
    return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]


def convolutions(module, layers):
    return pairs(f"{module}.{name_maps.VGG16_POSITIONS[layer]}" for layer in layers)


def array_names(layout, size):
    """Return the names of the arrays of a layout."""
    model = layouts.ssd_model(size, ("object",))
    heads = range(len(model.feature_layers))
    extras = range(2 * len(model.extras))
    positions = name_maps.VGG16_POSITIONS
    match layout:
        case "ssd.pytorch":
            return list(name_maps.ssd_pytorch_names(model))
        case "torchvision-ssd":
            return list(name_maps.torchvision_ssd_names(model))
        case "lufficc":
            return [
                *convolutions("backbone.vgg", positions),
                "backbone.l2_norm.weight",
                *pairs(f"backbone.extras.{k}" for k in extras),
                *pairs(f"box_head.predictor.cls_headers.{k}" for k in heads),
                *pairs(f"box_head.predictor.reg_headers.{k}" for k in heads),
            ]
        case "mmdetection":
            return [
                *convolutions("backbone.features", positions),
                "neck.l2_norm.weight",
                *pairs(f"neck.extra_layers.{k // 2}.{k % 2}.conv" for k in extras),
                *pairs(f"bbox_head.cls_convs.{k}.0" for k in heads),
                *pairs(f"bbox_head.reg_convs.{k}.0" for k in heads),
            ]
        case "chainercv":
            layers = [*positions, *(f"conv{8 + k // 2}_{1 + k % 2}" for k in extras)]
            names = [f"extractor/{layer}/{leaf}" for layer in layers for leaf in "Wb"]
            names += [
                f"multibox/{head}/{k}/{leaf}"
                for head in ("loc", "conf")
                for k in heads
                for leaf in "Wb"
            ]
            return [*names, "extractor/norm4/scale"]
        case "vgg16_reducedfc":
            return pairs(map(str, positions.values()))
        case "torchvision-vgg16":
            classifier = pairs(f"classifier.{k}" for k in (0, 3, 6))
            return [*convolutions("features", FEATURES), *classifier]
        case "timm-vgg16":
            classifier = pairs(("pre_logits.fc1", "pre_logits.fc2", "head.fc"))
            return [*convolutions("features", FEATURES), *classifier]
        case "keras-vgg16":
            blocks = [layer.replace("conv", "block").replace("_", "_conv") for layer in FEATURES]
            return [f"{name}/{name}_{leaf}_1:0" for name in blocks for leaf in "Wb"]
        case "caffe-mobilenet-ssd":
            return ["conv0", *(f"conv{k}/dw" for k in range(1, 14)), "conv11_mbox_loc"]
        case "torchvision-ssdlite":
            return ["backbone.features.0.0.0.weight", "head.regression_head.module_list.0.1.weight"]
    raise ValueError(layout)


def make_file(entry):
    """Return the bytes of a small file with the format and the names of an entry."""
    suffix = entry.file.rpartition(".")[2]
    return _make_file(entry.layout, suffix, 512 if "512" in entry.name else 300)


@functools.cache  # archives contain the time
def _make_file(layout, suffix, size):
    names = array_names(layout, size)
    rng = np.random.default_rng(len(names))
    arrays = {name: rng.random(3, np.float32) for name in names}
    match suffix:
        case "npz":
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            return buffer.getvalue()
        case "safetensors":
            return save(arrays)
        case "h5":
            return _write_h5(arrays)
        case "caffemodel":
            return b"".join(
                _field(100, _field(1, name.encode()) + _field(7, _field(5, value.tobytes())))
                for name, value in arrays.items()
            )
    key = {"lufficc": "model", "mmdetection": "state_dict"}.get(layout)
    return write_torch(arrays, key)


def _field(number, data):
    """Encode a field of a protocol buffer with bytes."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _write_h5(arrays):
    try:
        import h5py
    except ImportError:  # an optional library: at least the file's first bytes
        return b"\x89HDF\r\n\x1a\n" + b"".join(map(bytes, arrays.values()))
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, value in arrays.items():
            file[name] = value
    return buffer.getvalue()


class _Global:
    """Name of a class or function that need not be importable."""

    def __init__(self, module, name):
        self.text = f"c{module}\n{name}\n".encode()

    def __call__(self):
        raise NotImplementedError


class _Storage:
    def __init__(self, key, count):
        self.key, self.count = key, count


class _Tensor:
    def __init__(self, storage):
        self.storage = storage

    def __reduce__(self):
        rebuild = _Global("torch._utils", "_rebuild_tensor_v2")
        return rebuild, (self.storage, 0, (self.storage.count,), (1,), False, OrderedDict())


class _TorchPickler(pickle._Pickler):
    dispatch = pickle._Pickler.dispatch.copy()

    def persistent_id(self, obj):
        if isinstance(obj, _Storage):
            return "storage", _Global("torch", "FloatStorage"), obj.key, "cpu", obj.count
        return None

    def save_named(self, obj):
        self.write(obj.text)

    dispatch[_Global] = save_named


def write_torch(arrays, key=None):
    """Return a file as torch.save writes it, of a state dict or of a dict that holds one."""
    tree = {
        name: _Tensor(_Storage(str(k), value.size))
        for k, (name, value) in enumerate(arrays.items())
    }
    tree = {key: tree, "iteration": 1} if key else tree
    stream, buffer = io.BytesIO(), io.BytesIO()
    _TorchPickler(stream, protocol=2).dump(tree)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", "little")
        for k, value in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{k}", struct.pack(f"<{value.size}f", *value))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()

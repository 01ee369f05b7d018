"""Each 8-bit layer of a file against its arithmetic written out in PyTorch: the same codes, sums in integers."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.utils import Extractor

from backends.onnx import int8_dynamic, int8_static
from backends.onnx.session import completed, open_session
from knowledge.techniques.quantize import Int8Dynamic, Int8Static


class File:
    """A finished file: its nodes by what they write, its stored tensors, and what flows through it."""

    def __init__(self, path, split):
        self.proto, self.folder, self.split = onnx.load(path), path.parent, split
        self.writer = {name: node for node in self.proto.graph.node for name in node.output}
        self.stored = {i.name: torch.tensor(numpy_helper.to_array(i)) for i in self.proto.graph.initializer}

    def nodes(self, *kinds):
        return [node for node in self.proto.graph.node if node.op_type in kinds]

    def readers(self, name):
        return [node for node in self.proto.graph.node if name in node.input]

    def values(self, names):
        """What flows through the whole file, by name."""
        probe = onnx.ModelProto()
        probe.CopyFrom(self.proto)
        probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names))
        onnx.save(probe, self.folder / "probe.onnx")
        session = open_session(self.folder / "probe.onnx", 1)
        found = session.run(list(names), completed(dict(self.split.inputs), session))
        return dict(zip(names, found, strict=True))

    def alone(self, read, written, x):
        """The part between two values as a file of its own, which the runtime fuses as it does in the whole."""
        part = Extractor(onnx.shape_inference.infer_shapes(self.proto)).extract_model([read], [written])
        onnx.save(part, self.folder / "part.onnx")
        return open_session(self.folder / "part.onnx", 1).run([written], {read: x})[0]


def summed(x_codes, zero, weight_codes, scale, bias=None):
    """Products of integers summed exactly, then scaled once: [..., outputs]."""
    total = (x_codes.to(torch.int64) - zero) @ weight_codes.to(torch.int64)
    y = total.double() * scale.double()
    return y if bias is None else y + bias.double()


def codes_of(x, scale, zero):
    """Unsigned 8-bit codes; halves round to even, as in ONNX."""
    return torch.clamp(torch.round(x / scale) + zero, 0, 255)


def close(got, expected):
    return float(np.abs(got - expected.numpy()).max() / expected.abs().max())


@pytest.mark.parametrize(("kind", "smooth"), [("bert", 0.5), ("gpt2", 0.0), ("llama", 0.5)])
def test_every_dynamic_layer_is_the_product_of_its_integers(kind, smooth, exported, tmp_path):
    found, out = exported(kind), tmp_path / "out.onnx"
    int8_dynamic.apply(Int8Dynamic(smooth=smooth, embeddings=False), found.path, out, found.context)
    file = File(out, found.split)
    products = file.nodes("MatMulInteger")
    flows = file.values([name for p in products for name in (file.writer[p.input[0]].input[0], p.input[0])])
    assert len(products) == 12 if kind == "bert" else products
    for product in products:
        read = file.writer[product.input[0]].input[0]
        x = torch.tensor(flows[read])
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        scale = torch.tensor((np.float32(high) - np.float32(low)) / np.float32(255))
        zero = torch.clamp(torch.round(-low / scale), 0, 255)
        codes = codes_of(x, scale, zero)
        np.testing.assert_array_equal(codes.numpy(), flows[product.input[0]])  # the runtime's own
        weight = file.stored[product.input[1]]
        scales = file.stored[f"{product.input[1]}_scale"]
        (wide,) = file.readers(product.output[0])
        (last,) = file.readers(wide.output[0])  # times both scales
        expected = summed(codes, int(zero), weight, scale * scales)
        assert close(file.alone(read, last.output[0], flows[read]), expected) < 1e-5


@pytest.mark.parametrize(
    ("kind", "technique"),
    [
        ("bert", Int8Static(smooth=0.5, embeddings=False)),
        ("llama", Int8Static(calibration="percentile", embeddings=False)),
        ("cnn", Int8Static()),
    ],
    ids=["bert", "llama", "cnn"],
)
def test_every_static_dense_layer_is_the_product_of_its_integers(kind, technique, exported, tmp_path):
    found, out = exported(kind), tmp_path / "out.onnx"
    int8_static.apply(technique, found.path, out, found.context)
    file = File(out, found.split)
    layers = file.nodes("MatMul", "Gemm")
    layers = [n for n in layers if n.input[1] in file.writer and file.writer[n.input[1]].op_type == "DequantizeLinear"]
    quantizers = [file.writer[file.writer[n.input[0]].input[0]] for n in layers]
    flows = file.values([name for q in quantizers for name in (q.input[0], q.output[0])])
    assert layers
    for node, quantizer in zip(layers, quantizers, strict=True):
        x = torch.tensor(flows[quantizer.input[0]])
        scale, zero = (file.stored[name] for name in quantizer.input[1:3])
        codes = codes_of(x, scale, zero)
        np.testing.assert_array_equal(codes.numpy(), flows[quantizer.output[0]])
        dequantizer = file.writer[node.input[1]]
        weight, scales = (file.stored[name] for name in dequantizer.input[:2])
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        bias = None
        if len(node.input) > 2:  # int32, in units of both scales
            units, _ = (file.stored[name] for name in file.writer[node.input[2]].input[:2])
            bias = units * (scale * scales).double()
        expected = summed(codes, int(zero), weight.T if turned else weight, scale * scales, bias)
        got = file.alone(quantizer.input[0], node.output[0], flows[quantizer.input[0]])
        assert close(got, expected) < 1e-5


def test_every_static_convolution_is_the_sum_of_its_integers(exported, tmp_path):
    found, out = exported("cnn"), tmp_path / "out.onnx"
    int8_static.apply(Int8Static(), found.path, out, found.context)
    file = File(out, found.split)
    layers = file.nodes("Conv")
    dequantizers = [file.writer[node.input[0]] for node in layers]
    flows = file.values([d.input[0] for d in dequantizers])
    assert len(layers) == 5
    for node, dequantizer in zip(layers, dequantizers, strict=True):
        x_scale, x_zero = (file.stored[name] for name in dequantizer.input[1:3])
        weight, scales = (file.stored[name] for name in file.writer[node.input[1]].input[:2])
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        x = torch.tensor(flows[dequantizer.input[0]]).double() - int(x_zero)
        pads = attributes.get("pads", [0, 0, 0, 0])
        total = torch.nn.functional.conv2d(
            x, weight.double(), padding=tuple(pads[:2]), groups=attributes.get("group", 1)
        )
        if len(node.input) > 2:
            total += file.stored[file.writer[node.input[2]].input[0]].double()[:, None, None]
        real = total * (x_scale * scales).double()[:, None, None]
        after = file.readers(node.output[0])[0]
        if after.op_type == "Relu":
            real, after = real.clamp(min=0), file.readers(after.output[0])[0]
        assert after.op_type == "QuantizeLinear"
        y_scale, y_zero = (file.stored[name] for name in after.input[1:3])
        expected = codes_of(real, y_scale, y_zero).numpy()
        got = file.alone(dequantizer.input[0], after.output[0], flows[dequantizer.input[0]])
        # the kernel scales in single precision: a sum on the edge between two codes may fall to the other side
        off = got.astype(int) - expected
        assert np.abs(off).max() <= 1
        assert (off != 0).mean() < 1e-3

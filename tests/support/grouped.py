"""What weights in groups are compared with: small graphs, and torch models that hold the numbers of the groups."""

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper, save
from transformers.pytorch_utils import Conv1D

from backends.quantize import grid


def graph_file(path, nodes, stored, given, listed=()):
    """A file that makes y of what is given; `listed` arrays are inputs beside it, as old exporters have it."""
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    ends = [helper.make_tensor_value_info(name, kinds[np.dtype(kind)], shape) for name, kind, shape in [given]]
    ends += [helper.make_tensor_value_info(name, TensorProto.FLOAT, stored[name].shape) for name in listed]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"axis{i}" for i in range(max(2, len(given[2])))])]
    arrays = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", ends, made, arrays)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def rounded_weight(weight, technique, at_end, group_size):
    """[out, in] as the file stands for it."""
    if technique.id == "nf4" and not at_end:
        return grid.dequantize_nf4(*grid.quantize_nf4(weight, group_size), group_size)
    bits = technique.embedding_bits if at_end else technique.bits
    return grid.dequantize(*grid.quantize(weight, bits, group_size, not technique.zero_bits(bits)), group_size)


@torch.no_grad()
def rounded(model, technique, layers, decision):
    """A copy of a torch model whose weights are those that the decision says are in groups."""
    copy = model.clone()
    ends = technique.end_groups(layers)
    done = set()
    for path, form in decision.formats.items():
        layer = copy.module.get_submodule(path)
        if id(layer.weight) in done:  # a head that is the embedding
            continue
        done.add(id(layer.weight))
        turned = isinstance(layer, Conv1D)
        weight = layer.weight.t() if turned else layer.weight
        at_end = bool(ends[layers.index(path)])
        found = rounded_weight(weight.contiguous(), technique, at_end, form.group_size)
        layer.weight.copy_(found.t() if turned else found)
    return copy

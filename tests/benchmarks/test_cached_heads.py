"""The benchmark's two files compute the same, and only one copies heads."""

import numpy as np

from backends.onnx import graph as graphs
from backends.onnx.decoding import greedy
from backends.onnx.session import open_session
from benchmarks.cached_heads import files, rows

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def test_both_files_write_the_same_and_one_copies(tmp_path):
    copied, shared = files(tmp_path, SIZES)
    expands = [[node.op_type for node in graphs.load(path).graph].count("Expand") for path in (copied, shared)]
    assert expands[0] - expands[1] == 2  # keys and values of the one block
    ids = np.arange(5)[None]
    written = [greedy(open_session(path, 1), ids, 8) for path in (copied, shared)]
    np.testing.assert_array_equal(*written)


def test_a_row_per_number_of_cached_tokens():
    found = list(rows([3, 20], 2, SIZES))
    assert [row["cached"] for row in found] == [3, 20]
    assert all(row["speedup"] == row["copied_ms"] / row["shared_ms"] > 0 for row in found)

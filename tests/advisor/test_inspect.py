import json

from advisor.inspect import inspect, to_json
from knowledge.layers import LayerTable, ModelInfo


def model():
    rows = [
        {"path": "wte", "kind": "embedding", "role": "token_embedding", "outputs": 100, "inputs": 8},
        {"path": "up", "kind": "linear", "role": "ffn_up", "outputs": 32, "inputs": 8, "bias": 32, "positions": 4},
        {"path": "down", "kind": "linear", "role": "ffn_down", "outputs": 8, "inputs": 32, "positions": 4},
        {
            "path": "head",
            "kind": "linear",
            "role": "head",
            "outputs": 100,
            "inputs": 8,
            "positions": 4,
            "tied_to": "wte",
        },
    ]
    return LayerTable.of(rows, ModelInfo("tiny", "transformer", "causal-lm", vocab_size=100, hidden_size=8))


def test_groups_add_up_and_tied_weights_count_once():
    found = inspect(model())
    assert found.parameters == 800 + 256 + 32 + 256
    assert sum(g.parameters for g in found.groups) == found.parameters
    assert sum(g.macs for g in found.groups) == found.macs
    assert found.groups[0].name == "embedding, token_embedding"
    assert next(g for g in found.groups if g.name == "linear, head").parameters == 0
    assert found.facts == {"vocab_size": 100, "hidden_size": 8}


def test_every_layer_is_in_the_json():
    found = to_json(inspect(model()))
    assert json.loads(json.dumps(found)) == found
    assert [layer["path"] for layer in found["layers"]] == ["wte", "up", "down", "head"]
    assert found["layers"][1]["macs"] == 4 * 256

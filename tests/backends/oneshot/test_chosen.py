"""Which method carries out a one-shot technique, and what of it names no layer."""

import pytest

from backends.oneshot.chosen import check_layers
from knowledge.techniques.calibrated import Gptq
from knowledge.techniques.prune_once import SparseGpt, Wanda
from knowledge.values import InputError

PATHS = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]


@pytest.mark.parametrize("cls", [Wanda, SparseGpt])
def test_ratios_of_layers_that_no_block_has_are_refused_by_name(cls):
    check_layers(cls.model_validate({"layer_ratios": {"layers.1": 0.3, "layers.*.mlp": 0.2}}), PATHS)
    check_layers(Gptq(), PATHS)
    wrong = cls.model_validate({"layer_ratios": {"layers.1": 0.3, "layers.2": 0.3}})
    with pytest.raises(InputError, match=rf"^{cls.id}\.layer_ratios: layers\.2: names no layer of the blocks"):
        check_layers(wrong, PATHS)

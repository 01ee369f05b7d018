"""What an exported file stores of a model: not quite the same numbers as the module.

    module                                        ONNX file
    conv [32, 1, 3, 3] + batch norm 4 × 32        conv [32, 1, 3, 3] + bias 32
    embedding and head, one tied matrix           one matrix (the head transposes it as it runs)
    LSTM without bias                             LSTM with a bias of zeros
    an encoder's pooler that no output reads      nothing

Sizes of files are compared with tables through this.
"""

from __future__ import annotations

import numpy as np

from knowledge.layers import LayerTable


def deployed(layers: LayerTable) -> LayerTable:
    """The table as the exported file stores it: norms folded, unread layers gone. Applying it twice changes nothing."""
    files = layers.keep(layers.exported.astype(bool))
    files = _without_folded_norms(files)
    recurrent = files.kind == "lstm"
    return files.change(recurrent, bias=files.copies[recurrent] * files.outputs[recurrent])


def _without_folded_norms(layers: LayerTable) -> LayerTable:
    if not (layers.folds_into != "").any():
        return layers
    folded = np.isin(layers.folds_into, layers.path) & (layers.folds_into != "")
    hosts = np.isin(layers.path, layers.folds_into[folded])
    changed = layers.change(hosts, bias=layers.outputs[hosts])
    return changed.keep(~folded)

"""Makes a deeper model from a shallow one's layers, for timing where no real weights of that depth are available."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

from transformers import AutoModel

WEIGHTS = ("*.safetensors", "*.bin", "*.onnx", "*.h5", "onnx", "openvino")


def stack_layers(source: Path, target: Path, times: int) -> Path:
    """Writes a model folder whose encoder has all layers of `source` `times` over, each time with the same weights.

    Everything beside weights and configuration (tokenizer, pooling, length limit) is copied. The vectors mean nothing;
    how long it takes to compute them is what a model of that depth takes.

    Args:
        source: folder of a BERT in the layout of sentence-transformers.
        target: folder to write; must not exist.
        times: how often the layers are repeated.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*WEIGHTS))
    model = AutoModel.from_pretrained(source)
    layers = model.encoder.layer
    own = len(layers)
    for number in range(own * (times - 1)):
        layers.append(copy.deepcopy(layers[number % own]))
    model.config.num_hidden_layers = len(layers)
    model.save_pretrained(target)
    return target

"""Exports a style as an ONNX file for other runtimes.

The file takes any batch and size. The style's resize mode is part of its graph.
"""

import logging
from pathlib import Path

import numpy as np
import torch

from serve_app.engine.checkpoints import load_generator
from serve_app.errors import StyleError
from serve_app.styles.catalogue import InstalledStyle

OPSET = 18
LARGEST_DIFFERENCE = 1e-3  # between torch and ONNX Runtime, of values in [-1, 1]
CHECKED_SIZES = [(1, 32, 48), (2, 64, 40), (1, 100, 36)]  # (batch, height, width), none as in the traced example


def export_onnx(style: InstalledStyle, path: Path) -> float:
    """Writes an ONNX model of a style, after checking that ONNX Runtime paints with it as torch does.

    The model's input `photo` is (N, 3, H, W), its output `painting` has the same shape, and both are float32 in
    [-1, 1]. H and W are at least 8 in the mode `align`, and multiples of 4 in `half` and `tf`.

    Returns:
        The largest difference between torch and ONNX Runtime, at sizes and batches other than the traced one.

    Raises:
        StyleError: if a package is missing, or if the difference is too large. Then nothing is written.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter imports it late, and its own error says less
    except ImportError as error:
        raise StyleError(
            f"exporting needs onnx, onnxscript and onnxruntime ({error.name} is missing): "
            "pip install 'animegan-serve[onnx]'"
        ) from None
    generator = load_generator(style)
    dynamic = torch.export.Dim.DYNAMIC
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about torchvision, which is not used here
    program = torch.onnx.export(
        generator,
        (torch.zeros(2, 3, 64, 80),),
        dynamo=True,
        dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
        input_names=["photo"],
        output_names=["painting"],
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    name_dimensions(model)
    data = model.SerializeToString()
    onnx.checker.check_model(data)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, height, width in CHECKED_SIZES:
        photo = np.random.default_rng(0).uniform(-1, 1, (batch, 3, height, width)).astype(np.float32)
        with torch.inference_mode():
            expected = generator(torch.from_numpy(photo)).numpy()
        (painted,) = session.run(None, {"photo": photo})
        worst = max(worst, float(np.abs(painted - expected).max()))
    if worst > LARGEST_DIFFERENCE:
        raise StyleError(f"ONNX Runtime paints {style.name} otherwise than torch, by {worst:.1e}; nothing was written")
    path.write_bytes(data)
    return worst


def name_dimensions(model: "onnx.ModelProto") -> None:  # type: ignore[name-defined]  # noqa: F821
    """Renames the model's dimensions, which the exporter numbers, to batch, height and width."""
    shape = model.graph.input[0].type.tensor_type.shape
    names = {
        shape.dim[i].dim_param: name
        for i, name in ((0, "batch"), (2, "height"), (3, "width"))
        if shape.dim[i].dim_param
    }
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            for numbered, name in names.items():
                if numbered in dimension.dim_param:
                    dimension.dim_param = dimension.dim_param.replace(numbered, name)

"""A style as an ONNX file, for other runtimes: any batch and size, its growing mode in the graph."""

import logging
from pathlib import Path

import numpy as np
import torch

from serve_app.engine.checkpoints import load_generator
from serve_app.errors import StyleError
from serve_app.styles.catalogue import InstalledStyle

OPSET = 18
LARGEST_DIFFERENCE = 1e-3
CHECKED_SIZES = [(1, 32, 48), (2, 64, 40), (1, 100, 36)]  # (batch, height, width); none is the one it was traced at


def export_onnx(style: InstalledStyle, path: Path) -> float:
    """Writes `photo` (N, 3, H, W) to `painting` of the same shape, both float32 in [-1, 1].

    H and W are any of at least 8 in the mode `align`, multiples of 4 in `half` and `tf`.

    Returns:
        The largest difference to torch that ONNX Runtime showed at other sizes and batches than the traced one.

    Raises:
        StyleError: if the packages are missing, or the file does not paint as torch does; then it is not written.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter asks for it late, and in other words
    except ImportError as error:
        raise StyleError(
            f"exporting needs onnx, onnxscript and onnxruntime ({error.name} is missing): "
            "pip install 'animegan-serve[onnx]'"
        ) from None
    generator = load_generator(style)
    dynamic = torch.export.Dim.DYNAMIC
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which nothing here uses
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
    """Gives the exporter's numbered dimensions their names."""
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

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from seeding import seeded_state
from shared import SHIPPED_STYLES

from serve_app.cli.main import main
from serve_app.engine.checkpoints import load_generator, save_style
from serve_app.engine.generator import Generator
from serve_app.errors import StyleError
from serve_app.frames import ResizeMode
from serve_app.styles.catalogue import InstalledStyle, Style, read_installed

onnxruntime = pytest.importorskip(
    "onnxruntime", reason="the extra `onnx` is not installed: scripts/setup test,train,onnx"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANIMEGAN_STYLES_DIR", str(tmp_path))
    return tmp_path


def style_of(mode: ResizeMode, folder: Path) -> InstalledStyle:
    style = Style(name=mode, title="T", resize=mode, eps=1e-5, licence="test", source="test", credit="test")
    save_style(seeded_state(Generator(mode)), style, folder / f"{mode}.safetensors")
    return read_installed(folder / f"{mode}.safetensors")


def export(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["animegan", "export", *map(str, arguments)])
    return main()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["align", "half", "tf"])
def test_exported_style_paints_as_torch_does_at_any_size_and_batch(
    mode: ResizeMode, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    style = style_of(mode, folder)
    path = folder / "style.onnx"
    assert export(monkeypatch, mode, "--onnx", path) == 0
    assert capsys.readouterr().out.startswith(f"wrote {path} (test); ONNX Runtime paints within ")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", 3, "height", "width"]
    sizes = [(3, 40, 28), (1, 128, 96)] + ([(2, 61, 83)] if mode == "align" else [])
    for batch, height, width in sizes:
        photo = np.random.default_rng(1).uniform(-1, 1, (batch, 3, height, width)).astype(np.float32)
        with torch.inference_mode():
            expected = load_generator(style)(torch.from_numpy(photo)).numpy()
        assert np.abs(session.run(None, {"photo": photo})[0] - expected).max() <= 1e-3


def test_style_that_is_not_installed_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(monkeypatch, "ghibli", "--onnx", folder / "x.onnx") == 1
    assert capsys.readouterr().err == f"animegan: no style ghibli is installed (known: {', '.join(SHIPPED_STYLES)})\n"


def test_missing_folder_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(monkeypatch, "toon", "--onnx", folder / "absent" / "x.onnx") == 1
    assert capsys.readouterr().err == f"animegan: there is no folder {folder / 'absent'}\n"


def test_file_that_paints_differently_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import TensorProto, helper

    from serve_app.engine.onnx import export_onnx

    shape: list[str | int | None] = ["batch", 3, "height", "width"]
    photo, painting = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("photo", "painting"))
    copy = helper.make_graph([helper.make_node("Identity", ["photo"], ["painting"])], "copy", [photo], [painting])
    model = helper.make_model(copy, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: SimpleNamespace(model_proto=model))
    with pytest.raises(StyleError, match="ONNX Runtime paints tf otherwise than torch"):
        export_onnx(style_of("tf", folder), folder / "x.onnx")
    assert not (folder / "x.onnx").exists()


def test_missing_package_is_named_with_the_way_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve_app.engine.onnx import export_onnx

    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(StyleError, match=r"onnxscript is missing\): pip install 'animegan-serve\[onnx\]'"):
        export_onnx(style_of("tf", folder), folder / "x.onnx")

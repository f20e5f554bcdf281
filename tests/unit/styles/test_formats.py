import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import torch_bytes
from safetensors.torch import save
from torch import nn

from serve_app.styles.formats import identify, identify_by_name

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:06b8\nsize 8601086\n"


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("mine.pt"), io.BytesIO())
    return buffer.getvalue()


def saved_array(save_array: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save_array(buffer, np.zeros(3))
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Conv2d(1, 1, 1)), buffer)
    return buffer.getvalue()


def exported() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Conv2d(1, 1, 1), (torch.zeros(1, 1, 4, 4),)), buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: b"", "empty"),
        (lambda: LFS, "a Git LFS pointer"),
        (lambda: b"<!DOCTYPE html>\n<html><head>", "a web page"),
        (lambda: b"\xef\xbb\xbf\r\n  <HTML lang='en'>", "a web page"),
        (lambda: b"<!-- saved -->\n<!doctype html>", "a web page"),
        (lambda: b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "x">', "a web page"),
        (lambda: "<html><title>é</title>".encode("utf-16"), "a web page"),
        (lambda: "<html><title>caf\xe9</title>".encode("latin-1"), "a web page"),
        (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
        (lambda: b'{"message": "Not Found"}', "a JSON document"),
        (lambda: b'{"data":{"message": "Not Found"}}', "a JSON document"),
        (lambda: b"404: Not Found", "plain text"),
        (lambda: gzip.compress(b"x"), "compressed with gzip"),
        (lambda: bz2.compress(b"x"), "compressed with bzip2"),
        (lambda: lzma.compress(b"x"), "compressed with xz"),
        (tarred, "a tar archive"),
        (lambda: zipped(**{"weights/mine.pt": b"x"}), "a zip archive of other files"),
        (lambda: zipped(), "a zip archive of other files"),
        (lambda: zipped(**{"config.json": b"{}", "model.weights.h5": b""}), "a Keras model"),
        (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (lambda: saved_array(np.save), "a NumPy file"),
        (lambda: saved_array(np.savez), "a NumPy file"),
        (lambda: b"model_checkpoint_path: 'AnimeGANv2.ckpt-100'\n", "a TensorFlow file"),
        (lambda: bytes(range(256)) + bytes.fromhex("57fb808b247547db"), "a TensorFlow file"),
        (lambda: b"\x1c\0\0\0TFL3" + bytes(50), "a TensorFlow Lite model"),
        (lambda: b"\x89PNG\r\n\x1a\n" + bytes(20), "a picture"),
        (torchscript, "a TorchScript archive"),
        (exported, "an archive of torch.export"),
    ],
)
def test_file_of_another_kind_is_called_what_it_is(make: Callable[[], bytes], said: str) -> None:
    assert (identify(make()) or "").startswith(said)


def onnx_model() -> bytes:
    onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed: scripts/setup test,train,onnx")
    value: Any = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [value])
    model = onnx.helper.make_model(graph, producer_name="a test")
    model.metadata_props.add(key="made", value="here")
    data: bytes = model.SerializeToString()
    return data


def test_onnx_model_is_called_so_even_if_it_is_cut_off() -> None:
    data = onnx_model()
    for length in range(40, len(data) + 1):
        assert (identify(data[:length]) or "").startswith("an ONNX model"), length


@pytest.mark.parametrize(
    "data",
    [
        torch_bytes({"weight": torch.ones(3)}),
        torch_bytes({"weight": torch.ones(3)}, _use_new_zipfile_serialization=False),
        save({"weight": torch.ones(3)}),
        torch_bytes({"weight": torch.ones(3)})[:-10],
        np.random.default_rng(0).bytes(4096),
        b"\x08\x01" + np.random.default_rng(1).bytes(4096),
    ],
    ids=["zip", "legacy", "safetensors", "truncated zip", "random", "almost protobuf"],
)
def test_what_may_be_a_checkpoint_is_not_judged(data: bytes) -> None:
    assert identify(data) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("AnimeGANv2-100.ckpt.data-00000-of-00001", "a TensorFlow file"),
        ("saved_model.pb", "a TensorFlow file"),
        ("AnimeGANv2-100.ckpt.meta", "a TensorFlow file"),
        ("Anime.mlmodel", "a Core ML model"),
        ("mine.pt", None),
    ],
)
def test_what_content_does_not_tell_the_name_may(name: str, said: str | None) -> None:
    assert (identify_by_name(name) or "None").startswith(str(said))

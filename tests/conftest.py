import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_style, torch_bytes
from PIL import Image
from seeding import seeded_state
from shared import ROOT
from torch import Tensor

from serve_app.engine.checkpoints import save_style
from serve_app.engine.generator import Generator
from serve_app.styles.catalogue import STYLES_DIR_VARIABLE, InstalledStyle, read_installed

RunCommand = Callable[..., int]

MARKERS = {"cluster": ["cluster", "slow"], "browser": ["browser", "slow"], "packaging": ["slow"], "service": ["slow"]}
QUICK = {ROOT / "tests" / "packaging" / "test_docs.py"}  # reads the documents and installs nothing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by their folder: those that start clusters, browsers, services or installations."""
    for item in items:
        if item.path in QUICK:
            continue
        for name in MARKERS.get(item.path.relative_to(ROOT / "tests").parts[0], []):
            item.add_marker(name)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """On pictures this small, threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps jobs out of the data folder of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANIMEGAN_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def weights() -> Mapping[str, Tensor]:
    """The generator's weights by the seeding rule; a test that changes them makes a new dict."""
    return seeded_state(Generator())


@pytest.fixture(scope="session")
def checkpoint(weights: Mapping[str, Tensor]) -> bytes:
    """Those weights as the public checkpoints come: a plain state dict in PyTorch's zip."""
    return torch_bytes(weights)


@pytest.fixture(scope="session")
def seeded_style(weights: Mapping[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> InstalledStyle:
    path = tmp_path_factory.mktemp("styles") / "seeded.safetensors"
    save_style(weights, make_style(), path)
    return read_installed(path)


@pytest.fixture(scope="module")
def small_photograph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Has styles measured and thumbnails painted with one small photograph, for tests that install many styles."""
    folder = tmp_path_factory.mktemp("photographs")
    spots = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(spots).resize((48, 32), Image.Resampling.BICUBIC).save(folder / "spots.jpg")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("serve_app.engine.fidelity.PHOTOGRAPHS", folder)
        monkeypatch.setattr("serve_app.engine.thumbnails.PHOTOGRAPH", folder / "spots.jpg")
        yield


@pytest.fixture
def styles_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local folder of styles, named by the environment."""
    folder = tmp_path / "styles"
    folder.mkdir()
    monkeypatch.setenv(STYLES_DIR_VARIABLE, str(folder))
    return folder


@pytest.fixture
def animegan(monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Runs the command `animegan` with these arguments, in this process."""

    def run(*arguments: object) -> int:
        from serve_app.cli.main import main

        monkeypatch.setattr("sys.argv", ["animegan", *map(str, arguments)])
        return main()

    return run


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """What a constructed replica does to this package's logger is undone: it sends all to the log of Serve."""
    package = logging.getLogger("serve_app")
    handlers, level = package.handlers[:], package.level
    yield
    package.handlers[:] = handlers
    package.setLevel(level)

"""Files and folders of the repository that the benchmarks use, and URL paths of the servers that they measure."""

from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
ROOT = SCRIPTS.parent
LOCAL_CONFIG = ROOT / "configs" / "local.yaml"
SAMPLE_PHOTOGRAPH = ROOT / "serve_app" / "web" / "page" / "samples" / "photo.jpg"
RESULTS = ROOT / "docs" / "benchmarks"
RUNS = ROOT / "runs"
SCRATCH = RUNS / "bench"
RIVALS_PYTHON = RUNS / "rivals" / "bin" / "python"

STYLIZE_PATH = "/v1/stylize"
READY_PATH = "/readyz"

"""A service with jobs over HTTP: a real store on SQLite, and a worker of the test in place of the runner."""

from pathlib import Path
from typing import Any

from fakes import FakePipeline
from httpx2 import Response
from jobstores import Bench, make_settings
from pictures import photo_bytes
from starlette.testclient import TestClient
from workers import work_off

from serve_app.jobs.desk import JobDesk
from serve_app.web.routes import create_app

PHOTO = photo_bytes(60, 80)
ADDRESS = "192.0.2.1"


class Shop:
    """A service with jobs, its store, and an HTTP client."""

    def __init__(self, folder: Path, pipeline: FakePipeline | None = None, **settings: Any) -> None:
        self.bench = Bench(make_settings(folder, **settings))
        self.desk = JobDesk(self.bench.settings)
        self.pipeline = pipeline or FakePipeline()
        self.pipeline.have(self.desk)
        self.http = TestClient(create_app(self.pipeline), raise_server_exceptions=False, client=(ADDRESS, 50000))

    def submit(self, photo: bytes = PHOTO, query: str = "", **headers: str) -> dict[str, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.http.post(f"/v1/jobs{query}", content=photo, headers=named)
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def succeed(self, photo: bytes = PHOTO, query: str = "") -> dict[str, Any]:
        job = self.submit(photo, query)
        assert work_off(self.bench.store) == 1
        return self.look(job)

    def look(self, job: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.get(job["links"]["self"])
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def close(self) -> None:
        self.desk.close()
        self.bench.close()


def assert_problem(answer: Response, status: int, code: str, detail: str | None = None) -> None:
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert (answer.status_code, document["status"], document["code"]) == (status, status, code)
    assert detail is None or document["detail"] == detail

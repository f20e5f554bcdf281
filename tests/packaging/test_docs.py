"""Links in the documents lead somewhere, and the documents know every refusal."""

import re
from pathlib import Path

import pytest
from shared import ROOT

from serve_app.errors import RequestError
from serve_app.settings import JobsSettings, StrictModel, WebhookSettings

NAMES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
DOCUMENTS = [ROOT / name for name in NAMES] + sorted((ROOT / "docs").glob("*.md"))


def links(document: Path) -> list[str]:
    """The targets of links and images that are not web addresses; code is left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(), flags=re.DOTALL)
    targets: list[str] = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings: list[str] = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    broken = []
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_page_on_http_names_every_refusal_with_its_status() -> None:
    rows = [line for line in (ROOT / "docs" / "http.md").read_text().splitlines() if line.startswith("| ")]
    for refusal in RequestError.__subclasses__():
        assert any(f"`{refusal.code}`" in row and str(refusal.status) in row for row in rows), refusal.code


def test_the_page_on_settings_names_every_setting_of_jobs_with_its_default() -> None:
    assert_defaults_are_named(JobsSettings, "| `jobs` |")


def test_the_page_on_settings_names_every_setting_of_webhooks_with_its_default() -> None:
    assert_defaults_are_named(WebhookSettings, "| `webhooks` | default")


def assert_defaults_are_named(model: type[StrictModel], heading: str) -> None:
    lines = (ROOT / "docs" / "settings.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(heading)) + 2
    rows = [[cell.strip(" `") for cell in line.split("|")[1:3]] for line in lines[start:]]
    defaults = {}
    for name, field in model.model_fields.items():
        if name.endswith("_bytes"):
            defaults[name] = f"{field.default // 2**20:,} MiB"
        elif field.default is None or isinstance(field.default, StrictModel):
            defaults[name] = ""
        elif isinstance(field.default, str | tuple):
            defaults[name] = str(field.default or "[]")
        else:
            defaults[name] = str(field.default).lower() if field.default < 1 else f"{field.default:,}"
    assert dict(rows[: len(defaults)]) == defaults

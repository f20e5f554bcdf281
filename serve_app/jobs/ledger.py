"""The ledger of blobs: how many bytes each client uses, which jobs name a blob, and when it may be deleted.

A blob has its row before its file is written, and until its file is gone, so a process may die at any point and no file
is forgotten:

    reserve: refs 0, delete_after in a minute → keep: refs 1 → drop: refs 0, delete_after now → deleted

Names are never used twice, and `refs` never rises from 0 again once a blob was dropped. So whoever deletes an unused
blob cannot take it from a job. `usage` is changed in the transactions that add and remove rows here; it is locked
before rows of `blobs` are inserted or deleted, first the sum, then the client.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, delete, insert, literal, select, text, update

from serve_app.errors import StoreUnavailable
from serve_app.jobs.database import RETRY_AFTER_S
from serve_app.jobs.table import blobs, now_ms, usage

EVERYBODY = ""
RESERVED_S = 60  # from the reservation of a blob until a job must name it
UNUSED = (blobs.c.refs == literal(0, literal_execute=True),)  # a literal, for the partial index


INSERT_BLOB = insert(blobs).values(refs=0, delete_after=now_ms() + 1000 * RESERVED_S)


class NoRoom(Exception):
    """A reservation that would pass a limit.

    Args:
        client: whose limit it is, or None if it is that of all.
        excess_bytes: that must be freed first.
    """

    def __init__(self, client: str | None, excess_bytes: int) -> None:
        super().__init__(client, excess_bytes)
        self.client = client
        self.excess_bytes = excess_bytes


def reserve(connection: Connection, client: str, sizes: Mapping[str, int], most: int, share: int) -> None:
    """Reserves blobs of a client before they are written.

    Args:
        connection: in a transaction, which the caller rolls back after an error.
        client: who is charged.
        sizes: bytes of each name.
        most: bytes of all blobs.
        share: bytes of this client's blobs.

    Raises:
        NoRoom: if a limit would be passed.
    """
    wanted = sum(sizes.values())
    for name, limit in ((EVERYBODY, most), (client, share)):
        if name == client:  # whose row may be removed by whoever holds the lock on the sum
            new = text("INSERT INTO usage (client, bytes) VALUES (:client, 0) ON CONFLICT DO NOTHING")
            connection.execute(new, {"client": client})
        added = update(usage).where(usage.c.client == name, usage.c.bytes + wanted <= limit)
        if connection.execute(added.values(bytes=usage.c.bytes + wanted)).rowcount == 0:
            used = connection.execute(select(usage.c.bytes).where(usage.c.client == name)).scalar_one()
            raise NoRoom(None if name == EVERYBODY else client, used + wanted - limit)
    values = [{"name": name, "bytes": size, "client": client} for name, size in sizes.items()]
    connection.execute(INSERT_BLOB, values)


def keep(connection: Connection, name: str) -> None:
    """Lets the first job name a reserved blob.

    Raises:
        StoreUnavailable: if the reservation ran out before.
    """
    is_reserved = (blobs.c.name == name, blobs.c.refs == 0, blobs.c.is_deleting.is_(False))
    if connection.execute(update(blobs).where(*is_reserved).values(refs=1, delete_after=None)).rowcount == 0:
        raise StoreUnavailable("Storing the picture took too long. Try again.", retry_after_s=RETRY_AFTER_S)


def share(connection: Connection, name: str, times: int = 1) -> bool:
    """Lets other jobs name a blob, so many; returns False if no job names it any more."""
    is_kept = update(blobs).where(blobs.c.name == name, blobs.c.refs > 0)
    return connection.execute(is_kept.values(refs=blobs.c.refs + times)).rowcount == 1


def drop(connection: Connection, names: Iterable[str | None]) -> None:
    """Takes away one job's naming of each blob; one that no job names any more may be deleted."""
    for name, times in sorted(Counter(name for name in names if name is not None).items()):
        dropped = update(blobs).where(blobs.c.name == name)
        connection.execute(dropped.values(refs=blobs.c.refs - times, delete_after=now_ms()))


def abandon(connection: Connection, names: Iterable[str]) -> None:
    """Ends reservations; blobs that a job names by now are left alone."""
    abandoned = update(blobs).where(blobs.c.name.in_(list(names)), *UNUSED)
    connection.execute(abandoned.values(delete_after=now_ms()))


def take_unused(connection: Connection, most: int) -> list[str]:
    """Returns names of blobs whose files must be deleted now, at most so many, and bars them from being kept."""
    due = select(blobs.c.name).where(*UNUSED, blobs.c.delete_after <= now_ms()).order_by(blobs.c.delete_after)
    # What another sweep holds is passed over: two that waited for each other's rows would never end.
    found = connection.execute(due.limit(most).with_for_update(skip_locked=True)).scalars().all()
    taken = update(blobs).where(blobs.c.name.in_(found), *UNUSED, blobs.c.delete_after <= now_ms())
    return list(connection.execute(taken.values(is_deleting=True).returning(blobs.c.name)).scalars())


def forget(connection: Connection, names: Sequence[str]) -> int:
    """Removes blobs whose files are gone; returns how many another process has not removed already."""
    connection.execute(select(usage.c.bytes).where(usage.c.client == EVERYBODY).with_for_update())
    return sum(forget_one(connection, name) for name in names)


def forget_one(connection: Connection, name: str) -> bool:
    """Removes a blob; the sum of `usage` is locked."""
    gone = delete(blobs).where(blobs.c.name == name, blobs.c.is_deleting).returning(blobs.c.bytes, blobs.c.client)
    row = connection.execute(gone).one_or_none()
    if row is None:
        return False
    for client in (EVERYBODY, row.client):
        connection.execute(update(usage).where(usage.c.client == client).values(bytes=usage.c.bytes - row.bytes))
    connection.execute(
        delete(usage).where(usage.c.client == row.client, usage.c.bytes == 0, usage.c.client != EVERYBODY)
    )
    return True


def clamp(connection: Connection) -> None:
    """Shortens reservations that lie in the future because the database's clock was set back."""
    latest = now_ms() + 1000 * RESERVED_S
    connection.execute(update(blobs).where(*UNUSED, blobs.c.delete_after > latest).values(delete_after=latest))


def unknown(connection: Connection, names: Sequence[str]) -> list[str]:
    """Returns those of some names that have no row."""
    known = set(connection.execute(select(blobs.c.name).where(blobs.c.name.in_(names))).scalars())
    return [name for name in names if name not in known]


def bytes_used(connection: Connection, client: str = EVERYBODY) -> int:
    """Returns the bytes of all blobs, or of those of one client; reservations count."""
    return connection.execute(select(usage.c.bytes).where(usage.c.client == client)).scalar() or 0

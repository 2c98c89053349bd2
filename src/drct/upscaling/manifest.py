"""What was made of which file: one SQLite file in the folder of the results.

A row tells from which content (size, time and hash), with which options and weights and by which tile plan a result was made, and
what the result looked like when it was written. So a row can be checked against the files themselves, and one that was lost, in a
power cut say, costs the work on one picture and nothing else. While a picture is in work its row is a lease: it belongs to the
process that is at it, and other processes leave the picture alone until that process ends, however it ends.

The journal is SQLite's rollback journal: its other mode needs memory that processes share, which there is not across machines, and
the folder may lie on a network drive. Commits wait for the disk, which takes longer than all else here, so one thread owns the
connection and commits together what has gathered meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import platform
import queue
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from drct.errors import ImageError, ManifestError
from drct.upscaling.tiles import TilePlan
from drct.weights.files import file_sha256

NAME = ".drct-manifest.sqlite"
SCHEMA = 1
APPLICATION = int.from_bytes(b"DRCT", "big")  # in the header of the SQLite file
HEARTBEAT = 5.0  # seconds between signs of life
LEASE = 60.0  # seconds without one after which a process that cannot be looked at, as on another machine, is taken for dead
LOCK_TIMEOUT = 60.0  # seconds to wait for other processes' commits
RACY = 2_000_000_000  # nanoseconds: a file changed so shortly before it was read may change again without a new time (FAT: 2 s)
SPENT = 3  # after so many processes died over a picture, its plan and the folder's tile sizes are chosen anew

_CREATE = (
    "CREATE TABLE counter (changes INTEGER NOT NULL)",
    "INSERT INTO counter VALUES (0)",
    # processes at work here; those that were killed are removed when somebody notices
    """CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        machine TEXT NOT NULL, boot TEXT NOT NULL, space TEXT NOT NULL, pid INTEGER NOT NULL, born TEXT NOT NULL,
        beats INTEGER NOT NULL
    )""",
    # largest tile by network and device; NULL where only the device's size limits it
    "CREATE TABLE limits (name TEXT PRIMARY KEY, tile INTEGER)",
    """CREATE TABLE files (
        target BLOB PRIMARY KEY,  -- name of the result, relative to this folder, as bytes
        state TEXT NOT NULL CHECK (state IN ('working', 'done', 'failed')),
        changed INTEGER NOT NULL,  -- counter.changes when the state was set
        run INTEGER,  -- who set it; NULL when that run gave the picture back
        attempts INTEGER NOT NULL DEFAULT 0,  -- processes that died over it
        source BLOB, source_size INTEGER, source_mtime INTEGER, source_hash TEXT, source_read INTEGER,
        options TEXT, networks TEXT, plans TEXT,
        result BLOB, result_size INTEGER, result_mtime INTEGER, result_hash TEXT,
        report TEXT, error TEXT, code TEXT
    ) WITHOUT ROWID""",
)


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What a file looked like.

    Attributes:
        size: bytes.
        mtime: time of the last change, in nanoseconds.
        hash: sha256 of the content; "" if it changed while it was in work, so that it equals no other.
        read: when it was looked at, in nanoseconds.
    """

    size: int
    mtime: int
    hash: str
    read: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Look at a file.

        Raises:
            OSError: it cannot be read.
            ImageError: it is a pipe or the like, which would be waited for.
        """
        now = time.time_ns()
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path}: is not a regular file")
        return cls(status.st_size, mtime_of(status), file_sha256(path), now)

    def still(self, path: Path) -> bool:
        """Whether a file has this size and time; its content is not read."""
        try:
            status = path.stat()
        except OSError:
            return False
        return (status.st_size, mtime_of(status)) == (self.size, self.mtime)

    def same(self, path: Path) -> bool:
        """Whether a file has this content. It is only read where size and time leave doubt.

        Raises:
            OSError: it cannot be looked at.
        """
        status = path.stat()
        if status.st_size != self.size or not stat.S_ISREG(status.st_mode):
            return False
        return (mtime_of(status) == self.mtime and self.settled) or file_sha256(path) == self.hash

    @property
    def settled(self) -> bool:
        """Whether any later change would show in the time."""
        return bool(self.hash) and self.mtime + RACY < self.read


def mtime_of(status: os.stat_result) -> int:
    """The time of a file's last change in nanoseconds, as far as SQLite counts: from 1677 to 2262; files may have other dates."""
    return max(-(2**63), min(status.st_mtime_ns, 2**63 - 1))


@dataclasses.dataclass(frozen=True)
class Work:
    """What decides about the bytes of a result beside the input.

    Attributes:
        options: the options that do, as JSON.
        networks: digests of the networks of all passes, in order.
    """

    options: str
    networks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of one result.

    Attributes:
        state: of the last attempt.
        changed: number that no other change of state has; later changes have larger ones.
        mine: whether this run set the state.
        held: whether a live process is at work on it.
        attempts: processes that died over it.
        source: the input's absolute path; None before it was read.
        stamp: the input as it was read.
        work: how the result is made.
        plans: its tile plans.
        result: the file that was written, absolute, and what it looked like; None before the first one.
        report: sizes, as :class:`drct.upscaling.FileResult` tells them.
        error, code: why it failed.
    """

    state: Literal["working", "done", "failed"]
    changed: int
    mine: bool
    held: bool
    attempts: int
    source: Path | None
    stamp: Stamp | None
    work: Work | None
    plans: tuple[TilePlan, ...]
    result: tuple[Path, Stamp] | None
    report: dict[str, Any]
    error: str | None
    code: str | None


@dataclasses.dataclass
class _Order:
    """Something to do on the connection.

    Attributes:
        kept: it is tried again with the next commit when it fails, since nobody waits for it.
    """

    do: Callable[[sqlite3.Connection], Any]
    future: Future[Any]
    writes: bool = False
    kept: bool = False


class Manifest:
    """The manifest of one folder of results, open for one run.

    Args:
        folder: of the results; made if it is not there.

    Raises:
        ManifestError: it cannot be opened, is damaged, or is that of a newer release.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._unsaved: list[_Order] = []
        self._lost = 0  # orders that SQLite cannot take
        self._beaten = time.monotonic()
        self._beats: dict[int, tuple[int, float]] = {}  # by run on other machines: its last beat, and when it came
        self._identity = _Identity.own()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666))  # tells better than SQLite why it cannot
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or error
            raise ManifestError(f"{folder}: no results can be written here ({cause})") from None
        try:
            status = os.stat(self.path)
            self._file = status.st_dev, status.st_ino
            with contextlib.ExitStack() as opening:
                self._db = _connect(self.path)
                opening.callback(self._db.close)
                self._prepare()
                opening.pop_all()
        except sqlite3.Error as error:
            raise _explained(self.path, error) from None
        self._thread = threading.Thread(target=self._serve, name="drct-manifest", daemon=True)
        self._thread.start()

    def look(self, targets: Sequence[Path]) -> list[Entry | None]:
        """What is known of results; None where nothing is.

        Raises:
            ManifestError: the manifest cannot be read.
        """
        keys = [self._key(target) for target in targets]

        def do(db: sqlite3.Connection) -> list[Entry | None]:
            live: dict[int, bool] = {}
            rows = [db.execute("SELECT * FROM files WHERE target = ?", (key,)).fetchone() for key in keys]
            try:
                return [None if row is None else self._entry(db, row, live) for row in rows]
            except (ValueError, TypeError, KeyError) as error:  # a row that this module never wrote
                raise ManifestError(_damaged(self.path, error)) from None

        result: list[Entry | None] = self._wait(do)
        return result

    def claim(self, targets: Sequence[tuple[Path, Entry | None]]) -> list[bool]:
        """Take the leases of pictures, with what was known of them.

        Returns:
            For each whether it is ours now; not if something changed since it was looked at.

        Raises:
            ManifestError: the manifest cannot be written.
        """

        def do(db: sqlite3.Connection) -> list[bool]:
            return [self._claim(db, self._key(target), entry) for target, entry in targets]

        result: list[bool] = self._wait(do, writes=True)
        return result

    def begin(self, target: Path, source: Path, stamp: Stamp, work: Work, plans: Iterable[TilePlan]) -> None:
        """Tell what a result is made of, before the network runs; told again when the plans get more or others."""
        values = (
            *(os.fsencode(os.path.abspath(source)), stamp.size, stamp.mtime, stamp.hash, stamp.read),
            *(work.options, json.dumps(work.networks), json.dumps([plan.to_json() for plan in plans])),
            *(self._key(target), self.run),
        )
        self._tell(
            "UPDATE files SET source = ?, source_size = ?, source_mtime = ?, source_hash = ?, source_read = ?, options = ?,"
            " networks = ?, plans = ? WHERE target = ? AND run = ?",
            values,
        )

    def done(self, target: Path, stamp: Stamp, result: Path, written: Stamp, report: dict[str, Any]) -> None:
        """A result is there.

        Args:
            target: the key.
            stamp: of the input.
            result: file that was written.
            written: its looks.
            report: sizes.
        """
        self._tell(
            "UPDATE files SET state = 'done', attempts = 0, source_size = ?, source_mtime = ?, source_hash = ?, source_read = ?,"
            " result = ?, result_size = ?, result_mtime = ?, result_hash = ?, report = ?, error = NULL, code = NULL, changed = ?"
            " WHERE target = ? AND run = ?",
            (
                *(stamp.size, stamp.mtime, stamp.hash, stamp.read, self._key(result)),
                *(written.size, written.mtime, written.hash, json.dumps(report), _CHANGES, self._key(target), self.run),
            ),
        )

    def failed(self, target: Path, error: str, code: str) -> None:
        """A picture failed; the next run tries again."""
        self._tell(
            "UPDATE files SET state = 'failed', attempts = 0, error = ?, code = ?, changed = ? WHERE target = ? AND run = ?",
            # it names the file, which need not be UTF-8
            (error.encode("utf-8", "backslashreplace").decode(), code, _CHANGES, self._key(target), self.run),
        )

    def renew(self, target: Path, source: Path, stamp: Stamp, written: Stamp) -> None:
        """Input and result have the known content, but not the known times or place: remember the new ones."""
        self._tell(
            "UPDATE files SET source = ?, source_mtime = ?, source_read = ?, result_mtime = ? WHERE target = ? AND state = 'done'",
            (os.fsencode(os.path.abspath(source)), stamp.mtime, stamp.read, written.mtime, self._key(target)),
        )

    def limit(self, name: str, find: Callable[[], int | None]) -> int | None:
        """The largest tile of the pictures in this folder, which the first run decided on, so that later ones cut them alike.

        Args:
            name: of network and device.
            find: decides; called if no run did yet, or if the decision may be what processes die of.
        """

        deadly = "SELECT count(*) FROM files WHERE state = 'working' AND attempts >= ?"
        select = "SELECT tile FROM limits WHERE name = ?"

        def known(db: sqlite3.Connection) -> sqlite3.Row | None:
            row: sqlite3.Row | None = db.execute(select, (name,)).fetchone()
            return None if db.execute(deadly, (SPENT,)).fetchone()[0] else row

        def decide(db: sqlite3.Connection) -> sqlite3.Row:
            how = "REPLACE" if db.execute(deadly, (SPENT,)).fetchone()[0] else "IGNORE"  # another process may have been faster
            db.execute(f"INSERT OR {how} INTO limits VALUES (?, ?)", (name, tile))
            row: sqlite3.Row = db.execute(select, (name,)).fetchone()
            return row

        found: sqlite3.Row | None = self._wait(known)
        if found is None:
            tile = find()
            found = self._wait(decide, writes=True)
        limit: int | None = found[0]
        return limit

    def set_limit(self, name: str, tile: int | None) -> None:
        """Memory ran out: from now on tiles of this size are the largest."""
        self._tell("INSERT OR REPLACE INTO limits VALUES (?, ?)", (name, tile))

    def changes(self) -> int:
        """The number of changes of state so far."""
        count: int = self._wait(lambda db: db.execute("SELECT changes FROM counter").fetchone()[0])
        return count

    def close(self) -> str | None:
        """Give back the pictures still in work and end.

        Returns:
            What a user should know: that results could not be recorded.
        """
        identity = (self.run,)

        def give_back(db: sqlite3.Connection) -> None:
            db.execute("UPDATE files SET run = NULL WHERE run = ? AND state = 'working'", identity)
            db.execute("DELETE FROM runs WHERE id = ?", identity)

        if not self._thread.is_alive():
            return None
        farewell = self._order(give_back, writes=True)
        self._orders.put(None)
        self._thread.join()
        self._db.close()
        error = farewell.exception()
        if self._unsaved and error is not None:
            return f"{error}; {len(self._unsaved)} results are not recorded there and will be made again by the next run"
        if self._lost:
            return f"{self.path}: {self._lost} entries cannot be recorded: the next run makes their results again"
        return None

    def is_there(self) -> bool:
        """Whether the file is still the one that was opened: its folder may have been emptied meanwhile."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._file

    # Everything below runs on the thread that owns the connection, after the constructor has set it up.

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if not _has_tables(self._db, self.path):
                for statement in _CREATE:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {SCHEMA}")
            for row in self._db.execute("SELECT * FROM runs").fetchall():
                if _Identity.of(row).alive(self._identity) is False:
                    self._db.execute("DELETE FROM runs WHERE id = ?", (row["id"],))
            cursor = self._db.execute(
                "INSERT INTO runs (machine, boot, space, pid, born, beats) VALUES (?, ?, ?, ?, ?, 0)",
                dataclasses.astuple(self._identity),
            )
            assert cursor.lastrowid is not None
            self.run = cursor.lastrowid
            self._db.execute("COMMIT")
        except BaseException:
            _rollback(self._db)
            raise

    def _serve(self) -> None:
        ending = False
        while not ending:
            orders = self._unsaved
            try:
                first = self._orders.get(timeout=HEARTBEAT)
                while first is not None:
                    orders.append(first)
                    first = self._orders.get_nowait()
                ending = True
            except queue.Empty:
                pass
            self._unsaved = []
            self._perform(orders)

    def _perform(self, orders: list[_Order]) -> None:
        beat = time.monotonic() - self._beaten > HEARTBEAT
        writes = beat or any(order.writes for order in orders)
        answers = []
        try:
            if writes:
                self._db.execute("BEGIN IMMEDIATE")
            answers = [self._carry_out(order) for order in orders]
            if beat:
                self._db.execute("UPDATE runs SET beats = beats + 1 WHERE id = ?", (self.run,))
            if writes:
                self._db.execute("COMMIT")
                self._beaten = time.monotonic()
        except Exception as error:  # whatever it is: who waits for an answer must get one, and the thread must live on
            _rollback(self._db)
            explained = _explained(self.path, error) if isinstance(error, sqlite3.Error) else error
            self._unsaved = [order for order in orders if order.kept]
            for order in orders:
                if not order.kept:
                    order.future.set_exception(explained)
            return
        for order, answer in zip(orders, answers, strict=True):
            order.future.set_result(answer)

    def _carry_out(self, order: _Order) -> Any:
        """The answer to an order. One that is tried again when the commit fails, but that SQLite cannot take at all, is given up:
        it would fail again, and with it all that is committed together."""
        if not order.kept:
            return order.do(self._db)
        self._db.execute("SAVEPOINT one")
        try:
            order.do(self._db)
        except (UnicodeError, OverflowError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
            self._db.execute("ROLLBACK TO one")
            self._lost += 1
        self._db.execute("RELEASE one")
        return None

    def _claim(self, db: sqlite3.Connection, key: bytes, entry: Entry | None) -> bool:
        row = db.execute("SELECT state, changed, run, attempts FROM files WHERE target = ?", (key,)).fetchone()
        if (None if row is None else row["changed"]) != (None if entry is None else entry.changed):
            return False
        changed = _next_change(db)
        if row is None:
            db.execute(
                "INSERT INTO files (target, state, changed, run) VALUES (?, 'working', ?, ?)",
                (key, changed, self.run),
            )
            return True
        died = row["state"] == "working" and row["run"] is not None
        db.execute(
            "UPDATE files SET state = 'working', changed = ?, run = ?, attempts = ? WHERE target = ?",
            (changed, self.run, row["attempts"] + died, key),
        )
        return True

    def _entry(self, db: sqlite3.Connection, row: sqlite3.Row, live: dict[int, bool]) -> Entry:
        run = row["run"]
        held = False
        if row["state"] == "working" and run is not None:
            if run not in live:
                live[run] = self._alive(db, run)
            held = live[run]
        stamp = work = result = None
        if row["source_size"] is not None:
            stamp = Stamp(row["source_size"], row["source_mtime"], row["source_hash"], row["source_read"])
            work = Work(row["options"], tuple(json.loads(row["networks"])))
        if row["result"] is not None:
            # its time is trusted: what was just written is only then written again when somebody means to
            looks = Stamp(row["result_size"], row["result_mtime"], row["result_hash"], row["result_mtime"] + RACY + 1)
            result = (self.folder / os.fsdecode(row["result"]), looks)
        return Entry(
            row["state"],
            row["changed"],
            run == self.run,
            held,
            row["attempts"],
            None if row["source"] is None else Path(os.fsdecode(row["source"])),
            stamp,
            work,
            tuple(TilePlan.from_json(plan) for plan in json.loads(row["plans"] or "[]")),
            result,
            json.loads(row["report"] or "{}"),
            row["error"],
            row["code"],
        )

    def _alive(self, db: sqlite3.Connection, run: int) -> bool:
        """Whether a run's process lives, as far as can be told from here."""
        if run == self.run:
            return True
        row = db.execute("SELECT * FROM runs WHERE id = ?", (run,)).fetchone()
        if row is None:
            return False
        alive = _Identity.of(row).alive(self._identity)
        if alive is not None:
            return alive
        # On another machine, whose clock may be wrong, or hidden: only whether it still beats counts, by the clock of this process.
        beats, since = self._beats.get(run, (-1, 0.0))
        now = time.monotonic()
        if row["beats"] != beats:
            self._beats[run] = (row["beats"], now)
            return True
        return now - since < LEASE

    def _key(self, target: Path) -> bytes:
        return os.fsencode(os.path.relpath(target, self.folder))

    def _order(self, do: Callable[[sqlite3.Connection], Any], writes: bool = False, kept: bool = False) -> Future[Any]:
        order = _Order(do, Future(), writes, kept)
        self._orders.put(order)
        return order.future

    def _wait(self, do: Callable[[sqlite3.Connection], Any], writes: bool = False) -> Any:
        return self._order(do, writes).result()

    def _tell(self, statement: str, values: tuple[Any, ...]) -> None:
        def do(db: sqlite3.Connection) -> None:
            db.execute(statement, tuple(_next_change(db) if value is _CHANGES else value for value in values))

        self._order(do, writes=True, kept=True)


_CHANGES = object()  # stands for the next number of a change


def made_in(folder: Path) -> dict[str, Path]:
    """Inputs by the results that were made of them in a folder, as paths relative to it; empty without a manifest.

    Raises:
        ManifestError: the manifest is damaged or cannot be read, or is none that this release knows.
    """
    path = folder / NAME
    if not os.path.isfile(path):
        return {}
    try:
        db = _connect(path)
        try:
            if not _has_tables(db, path):  # another run is about to make them
                return {}
            rows = db.execute("SELECT coalesce(result, target), source FROM files WHERE source IS NOT NULL").fetchall()
        finally:
            db.close()
    except sqlite3.Error as error:
        raise _explained(path, error) from None
    return {os.fsdecode(result): Path(os.fsdecode(source)) for result, source in rows}


@dataclasses.dataclass(frozen=True)
class _Identity:
    """A process among all processes of all machines.

    Attributes:
        machine: its name and number.
        boot: since when it runs.
        space: where in it the process's number counts.
        pid: the number.
        born: when the process began, since numbers are used again.
    """

    machine: str
    boot: str
    space: str
    pid: int
    born: str

    @classmethod
    def own(cls) -> _Identity:
        pid = os.getpid()
        space = ""
        if os.path.exists("/proc/self/ns/pid"):
            space = os.readlink("/proc/self/ns/pid")
        machine = f"{platform.node()} {_line('/etc/machine-id')}"
        return cls(machine, _line("/proc/sys/kernel/random/boot_id"), space, pid, _born(pid))

    @classmethod
    def of(cls, row: sqlite3.Row) -> _Identity:
        return cls(row["machine"], row["boot"], row["space"], row["pid"], row["born"])

    def alive(self, observer: _Identity) -> bool | None:
        """Whether the process lives; None if the observer, another process, cannot tell."""
        if self.machine != observer.machine or sys.platform == "win32":
            return None
        if self.boot != observer.boot:
            return False  # the machine was started anew
        if self.space != observer.space:
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # some user's
        born = _born(self.pid)
        if not self.born or not born:
            return None  # the number may have gone to another process
        return self.born == born


def _born(pid: int) -> str:
    """When a process began, in ticks since the machine's start; "dead" if its end waits to be noticed by its parent; "" where there
    is no such file."""
    line = _line(f"/proc/{pid}/stat")
    fields = line.rpartition(")")[2].split()
    if not fields:
        return ""
    return "dead" if fields[0] in "ZX" else fields[19]


def _line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _connect(path: Path) -> sqlite3.Connection:
    # commits are this module's business, and the connection moves to its thread once it is prepared
    db = sqlite3.connect(path, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    return db


def _has_tables(db: sqlite3.Connection, path: Path) -> bool:
    """Whether a manifest's tables were made; raises ManifestError where the data base is another's or that of a newer release."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    application = db.execute("PRAGMA application_id").fetchone()[0]
    tables = bool(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if tables and application != APPLICATION:
        raise ManifestError(f"{path} is not a manifest of drct: move it away or use another output folder")
    if version > SCHEMA:
        raise ManifestError(f"{path} was made by a newer drct: use that one, or another output folder")
    return tables


def _next_change(db: sqlite3.Connection) -> int:
    db.execute("UPDATE counter SET changes = changes + 1")
    number: int = db.execute("SELECT changes FROM counter").fetchone()[0]
    return number


def _rollback(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        with contextlib.suppress(sqlite3.Error):  # a drive that is gone takes no ROLLBACK either; what came first is what is told
            db.execute("ROLLBACK")


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is damaged ({str(error).splitlines()[0]}): delete it; results that exist are kept"


def _explained(path: Path, error: sqlite3.Error) -> ManifestError:
    text = str(error)
    if "malformed" in text or "not a database" in text or "no such" in text:
        return ManifestError(_damaged(path, error))
    if "locked" in text or "locking protocol" in text:
        return ManifestError(f"{path}: other processes hold its lock, or the drive has no locks: use a folder on another drive")
    if "full" in text:
        text = os.strerror(errno.ENOSPC)
    return ManifestError(f"{path}: cannot be written ({text})")

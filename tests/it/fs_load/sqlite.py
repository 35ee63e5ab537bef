"""Writes rows into a SQLite database until it is ended, or checks what is there.

    sqlite.py write DATABASE JOURNAL_MODE   prints the number of each row once it is committed
    sqlite.py check DATABASE                prints the number of the last row

Row n holds bytes that follow from n. With it goes row n - KEPT, unless n - KEPT is odd, so that
pages are freed and used again. Both, and the count of rows, change in one transaction.
"""

import hashlib
import os
import sqlite3
import sys

KEPT = 60


def body(n):
    length = 30_000 if n % 11 == 0 else n * 37 % 700
    return hashlib.shake_128(b"%d" % n).digest(length)


def write(path, mode):
    db = sqlite3.connect(path, isolation_level=None)
    assert db.execute("PRAGMA journal_mode = " + mode).fetchone()[0] == mode
    # In the delete mode a commit is an unlink: durable at once only with this.
    db.execute("PRAGMA synchronous = EXTRA")
    db.execute("PRAGMA cache_size = 20")
    db.execute("PRAGMA wal_autocheckpoint = 50")
    db.execute("PRAGMA mmap_size = 1000000")
    db.execute("BEGIN IMMEDIATE")
    db.execute("CREATE TABLE IF NOT EXISTS row (n INTEGER PRIMARY KEY, body BLOB)")
    db.execute("CREATE INDEX IF NOT EXISTS by_length ON row (length(body), n)")
    db.execute("CREATE TABLE IF NOT EXISTS total (rows INTEGER)")
    db.execute("INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total)")
    db.execute("COMMIT")
    n = db.execute("SELECT coalesce(max(n), 0) FROM row").fetchone()[0]
    directory = os.path.dirname(os.path.abspath(path))
    while True:
        n += 1
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO row VALUES (?, ?)", (n, body(n)))
        gone = db.execute("DELETE FROM row WHERE n = ? AND n % 2 = 0", (n - KEPT,)).rowcount
        db.execute("UPDATE total SET rows = rows + 1 - ?", (gone,))
        db.execute("COMMIT")
        if mode == "delete":
            # SQLite syncs the directory after the unlink, but when it cannot even open it, as on a
            # mount that just died, it says that the commit was made. Then this fails as well.
            os.close(os.open(directory, os.O_RDONLY))
        print(n, flush=True)


def check(path):
    db = sqlite3.connect(path)
    found = db.execute("PRAGMA integrity_check").fetchall()
    assert found == [("ok",)], found
    rows = db.execute("SELECT n, body FROM row ORDER BY n").fetchall()
    last = rows[-1][0]
    want = [n for n in range(1, last + 1) if n % 2 == 1 or n > last - KEPT]
    assert [n for n, _ in rows] == want, "rows are missing or came back"
    for n, found in rows:
        assert found == body(n), f"row {n} holds other bytes"
    assert db.execute("SELECT rows FROM total").fetchall() == [(len(rows),)]
    print(last)


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](*sys.argv[2:])

//! What the servers are made to do, so that their WAL holds every kind of record that matters, of every length.

use crate::server::Server;

/// All access methods, subtransactions, prepared transactions, aborts, restore points, switches, large values, databases.
const EVERYTHING: &str = "
CREATE TABLE t (id int PRIMARY KEY, v text, p point, a int[], r int4range);
INSERT INTO t SELECT i, md5(i::text), point(i, i * 2), ARRAY[i, i % 7], int4range(i, i + 5) FROM generate_series(1, 8000) i;
CREATE INDEX ON t USING hash (v); CREATE INDEX ON t USING gin (a); CREATE INDEX ON t USING gist (r);
CREATE INDEX ON t USING spgist (p); CREATE INDEX ON t USING brin (id); CREATE INDEX ON t (v, id);
SELECT pg_create_restore_point('after the indexes') \\g /dev/null
UPDATE t SET v = v || 'x' WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0;
VACUUM t; VACUUM FREEZE t;
DO $$ BEGIN
  FOR i IN 1..300 LOOP
    BEGIN INSERT INTO t (id) VALUES (100000 + i); IF i % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF;
    EXCEPTION WHEN raise_exception THEN NULL; END;
  END LOOP;
END $$;
BEGIN; INSERT INTO t (id) VALUES (-1); SAVEPOINT a; INSERT INTO t (id) VALUES (-2); ROLLBACK TO a; ROLLBACK;
BEGIN; INSERT INTO t (id) VALUES (-3); PREPARE TRANSACTION 'first';
BEGIN; CREATE TABLE u (i int); SAVEPOINT a; INSERT INTO u SELECT generate_series(1, 100); SAVEPOINT b; PREPARE TRANSACTION 'second: it''s';
COMMIT PREPARED 'first'; ROLLBACK PREPARED 'second: it''s';
BEGIN; CREATE TABLE w AS SELECT 1 AS x; DROP TABLE w; CREATE TABLE w AS SELECT generate_series(1, 50) AS x; PREPARE TRANSACTION 'third';
CHECKPOINT;
COMMIT PREPARED 'third';
CREATE TABLE big (v text); ALTER TABLE big ALTER v SET STORAGE EXTERNAL;
INSERT INTO big SELECT string_agg(md5((i * 7)::text), '') FROM generate_series(1, 60000) i;
SELECT pg_switch_wal() \\g /dev/null
SELECT count(pg_logical_emit_message(true, 'walden', repeat('0123456789abcdef', n * 1000))) FROM generate_series(1, 120) n \\g /dev/null
SELECT pg_logical_emit_message(false, 'walden', repeat('x', 2500000)) \\g /dev/null
CREATE SEQUENCE s; SELECT count(nextval('s')) FROM generate_series(1, 200) \\g /dev/null
CREATE DATABASE other; DROP DATABASE other;
TRUNCATE t; DROP TABLE big;
SELECT pg_create_restore_point(repeat('r', 63)) \\g /dev/null
SELECT pg_switch_wal() \\g /dev/null
";

/// Large messages, one after the other: when the server is killed, one of them is under way.
const LARGE_MESSAGES: &str = "
DO $$ BEGIN FOR i IN 1..60 LOOP PERFORM pg_logical_emit_message(false, 'walden', repeat('y', 700000)); END LOOP; END $$";

/// A few seconds of a server's life, on two timelines; it is stopped at the end.
pub(crate) fn live(server: &mut Server, whole: bool) {
    server.start();
    server.pgbench(&["-i", "-q", "-s", "1"]);
    server.sql(EVERYTHING);
    if whole {
        server.pgbench(&["-c", "4", "-j", "2", "-t", "250"]);
        server.sql("ALTER SYSTEM SET wal_compression = on; SELECT pg_reload_conf() \\g /dev/null");
        server.sql("CHECKPOINT;");
        server.pgbench(&["-c", "4", "-j", "2", "-t", "100", "-N"]);
    }
    for round in 0..if whole { 2 } else { 1 } {
        let mut clients = [
            server.sql_in_background(LARGE_MESSAGES),
            server.sql_in_background(LARGE_MESSAGES),
        ];
        std::thread::sleep(std::time::Duration::from_millis(60 + 30 * round));
        server.stop("immediate");
        for client in &mut clients {
            client.wait().map(drop).expect("psql");
        }
        server.start();
        server
            .sql("INSERT INTO t (id) SELECT i FROM generate_series(200000, 200100) i; TRUNCATE t;");
    }
    server.configure(&[
        "max_connections = 70",
        "wal_level = logical",
        "max_locks_per_transaction = 65",
        // Without archiving the server drops a backup's history file at once.
        "archive_mode = on",
        "archive_command = 'true'",
    ]);
    server.stop("fast");
    server.start();
    server.sql(
        "BEGIN; CREATE TABLE l (i int); PREPARE TRANSACTION 'logical'; COMMIT PREPARED 'logical';",
    );
    server.sql("BEGIN; DROP TABLE l; PREPARE TRANSACTION 'logical'; ROLLBACK PREPARED 'logical';");
    server.base_backup("nightly: 100 % 'x'");
    // With archiving the last segment of timeline 1 would be renamed.
    server.configure(&["archive_mode = off"]);
    // A standby of nobody: promoted, it goes on on timeline 2.
    server.stop("fast");
    std::fs::write(server.data().join("standby.signal"), "").expect("standby.signal");
    server.start();
    server.promote();
    server.sql("INSERT INTO t (id) SELECT i FROM generate_series(300000, 300500) i;");
    server.sql("SELECT pg_switch_wal() \\g /dev/null\nINSERT INTO t (id) VALUES (1);");
    server.stop("fast");
}

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

/// What the shorter workload leaves out: data definition of all kinds, every resource manager at least twenty times.
const THE_REST: &str = "
SET client_min_messages = warning;
CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('sad', 'happy'); CREATE DOMAIN app.pos AS int CHECK (VALUE > 0);
CREATE TABLE app.parent (id int PRIMARY KEY, m app.mood, n app.pos);
CREATE TABLE app.child (id serial PRIMARY KEY, parent int REFERENCES app.parent ON DELETE CASCADE, v text UNIQUE);
CREATE VIEW app.v AS SELECT * FROM app.parent; CREATE MATERIALIZED VIEW app.mv AS SELECT id FROM app.parent;
CREATE FUNCTION app.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER tr BEFORE INSERT ON app.child FOR EACH ROW EXECUTE FUNCTION app.f();
CREATE TABLE app.part (i int, v text) PARTITION BY RANGE (i);
CREATE TABLE app.part1 PARTITION OF app.part FOR VALUES FROM (0) TO (500);
CREATE TABLE app.part2 PARTITION OF app.part FOR VALUES FROM (500) TO (2000);
CREATE ROLE walden_reader; GRANT SELECT ON ALL TABLES IN SCHEMA app TO walden_reader; COMMENT ON TABLE app.part IS 'parts';
INSERT INTO app.parent SELECT i, 'happy', i FROM generate_series(1, 200) i;
INSERT INTO app.child (parent, v) SELECT i, 'v' || i FROM generate_series(1, 200) i;
INSERT INTO app.child (parent, v) SELECT i, 'v' || i FROM generate_series(1, 40) i ON CONFLICT (v) DO UPDATE SET parent = 1;
INSERT INTO app.child (parent, v) VALUES (1, 'new') ON CONFLICT (v) DO NOTHING;
INSERT INTO app.part SELECT i, repeat('p', 50) FROM generate_series(1, 1500) i;
COPY (SELECT i, md5(i::text) FROM generate_series(1600, 1900) i) TO '@SCRATCH@/copy'; COPY app.part FROM '@SCRATCH@/copy';
REFRESH MATERIALIZED VIEW app.mv;
ALTER TABLE app.part ADD COLUMN x int; ALTER TABLE app.child ALTER COLUMN v TYPE varchar(90); ALTER TABLE app.child RENAME v TO w;
ALTER TABLE app.child ADD COLUMN b bigint DEFAULT 1, ALTER COLUMN id TYPE bigint; CLUSTER app.child USING child_pkey;
CREATE INDEX CONCURRENTLY c ON app.child (b); REINDEX INDEX CONCURRENTLY app.c; DROP INDEX CONCURRENTLY app.c;
DELETE FROM app.parent WHERE id < 20; DROP VIEW app.v; DROP TABLE app.part1;
CREATE UNLOGGED TABLE app.un (i int PRIMARY KEY); INSERT INTO app.un SELECT generate_series(1, 100); ALTER TABLE app.un SET LOGGED;
SELECT lo_from_bytea(0, repeat('large', 2000)::bytea) \\g /dev/null
BEGIN; SELECT * FROM app.parent FOR UPDATE \\g /dev/null
DECLARE c CURSOR FOR SELECT * FROM app.parent; DELETE FROM app.parent WHERE id = 30; ROLLBACK;
CREATE TABLE gone AS SELECT i, repeat('g', 100) AS v FROM generate_series(1, 3000) i; DELETE FROM gone WHERE i > 100; VACUUM gone; VACUUM FULL gone;
CREATE TABLE m (id int PRIMARY KEY, v int); INSERT INTO m SELECT i, i FROM generate_series(1, 60) i;
DO $$ BEGIN
  FOR i IN 1..60 LOOP
    PERFORM 1 FROM m WHERE id = i FOR KEY SHARE;
    BEGIN UPDATE m SET v = -v WHERE id = i; EXCEPTION WHEN division_by_zero THEN NULL; END;
  END LOOP;
END $$;
CREATE TABLE br (i int, v text); INSERT INTO br SELECT i, repeat('b', 300) FROM generate_series(1, 2000) i;
CREATE INDEX br_i ON br USING brin (i) WITH (pages_per_range = 1); INSERT INTO br SELECT i, repeat('b', 300) FROM generate_series(1, 2000) i;
SELECT brin_summarize_new_values('br_i') \\g /dev/null
SELECT brin_desummarize_range('br_i', 3) \\g /dev/null
CREATE EXTENSION bloom; CREATE TABLE bl (i int); CREATE INDEX ON bl USING bloom (i); INSERT INTO bl SELECT generate_series(1, 60);
CREATE SEQUENCE q; SELECT count(nextval('q')) FROM generate_series(1, 1500) \\g /dev/null
SELECT pg_replication_origin_create('elsewhere') \\g /dev/null
SELECT count(pg_replication_origin_advance('elsewhere', ('0/' || to_hex(i))::pg_lsn)) FROM generate_series(1, 25) i \\g /dev/null
SELECT pg_replication_origin_session_setup('elsewhere') \\g /dev/null
BEGIN; SELECT pg_replication_origin_xact_setup('0/ABCDEF', '2001-02-03 04:05:06.789 UTC') \\g /dev/null
INSERT INTO m VALUES (1000, 1); COMMIT;
BEGIN; SELECT pg_replication_origin_xact_setup('0/ABCFFF', '2001-02-03 04:05:07.789 UTC') \\g /dev/null
INSERT INTO m VALUES (1001, 1); CREATE TABLE pt (i int); DROP TABLE bl; SAVEPOINT a; INSERT INTO pt VALUES (1); PREPARE TRANSACTION 'from elsewhere'; COMMIT PREPARED 'from elsewhere';
SELECT pg_replication_origin_session_reset() \\g /dev/null
SELECT pg_replication_origin_drop('elsewhere') \\g /dev/null
SELECT 'REINDEX INDEX pg_class_oid_index' FROM generate_series(1, 22) \\gexec
VACUUM FULL pg_class; VACUUM FULL pg_database;
SET allow_in_place_tablespaces = on;
SELECT format('CREATE TABLESPACE ts%s LOCATION %L', i, CASE i WHEN 1 THEN '@SCRATCH@/ts' ELSE '' END) FROM generate_series(1, 11) i \\gexec
ALTER TABLE gone SET TABLESPACE ts1; CREATE TABLE there (i int PRIMARY KEY) TABLESPACE ts2; INSERT INTO there SELECT generate_series(1, 100);
CREATE DATABASE w1 STRATEGY wal_log; CREATE DATABASE w2 STRATEGY wal_log TABLESPACE ts3;
SELECT format('CREATE DATABASE f%s STRATEGY file_copy', i) FROM generate_series(1, 8) i \\gexec
ALTER DATABASE w1 SET TABLESPACE ts4; ALTER DATABASE w1 SET TABLESPACE pg_default; ALTER DATABASE f1 RENAME TO f0;
SELECT 'DROP DATABASE ' || datname FROM pg_database WHERE datname ~ '^[fw][0-9]' \\gexec
ALTER TABLE gone SET TABLESPACE pg_default; DROP TABLE there, gone;
SELECT 'DROP TABLESPACE ts' || i FROM generate_series(1, 11) i \\gexec
ALTER SYSTEM SET full_page_writes = off; SELECT pg_reload_conf() \\g /dev/null
-- The checkpointer reads its settings in its own time: gone on with once a checkpoint of its own says so.
DO $$ BEGIN
  FOR i IN 1..600 LOOP
    CHECKPOINT; EXIT WHEN (SELECT NOT full_page_writes FROM pg_control_checkpoint()); PERFORM pg_sleep(0.05);
  END LOOP;
END $$;
INSERT INTO m VALUES (2000, 1);
ALTER SYSTEM RESET full_page_writes; SELECT pg_reload_conf() \\g /dev/null
CHECKPOINT;
-- Enough transactions for twenty pages of the commit log, in one commit record of 2.8 MB.
CREATE TEMP TABLE tmp (); DO $$ BEGIN
  FOR i IN 1..700000 LOOP
    BEGIN INSERT INTO tmp DEFAULT VALUES; EXCEPTION WHEN division_by_zero THEN NULL; END;
  END LOOP;
END $$;
DROP SCHEMA app CASCADE;
";

/// Page images, stored in a way that the server was built with.
const IMAGES: &str = "CHECKPOINT; UPDATE t SET v = v || 'c' WHERE id % 40 = 0; INSERT INTO t (id, v) SELECT max(id) + 1, 'x' FROM t;";

/// What only `wal_level = logical` writes.
const LOGICAL: &str = "
CREATE TABLE tr1 (i serial PRIMARY KEY); CREATE TABLE tr2 (i int REFERENCES tr1); INSERT INTO tr1 SELECT generate_series(1, 50);
TRUNCATE tr1 RESTART IDENTITY CASCADE; TRUNCATE tr2; DROP TABLE tr1, tr2;
BEGIN; CREATE TABLE nc (i int); INSERT INTO nc VALUES (1); SAVEPOINT a; ALTER TABLE nc ADD j int; INSERT INTO nc VALUES (1, 2); COMMIT;
SELECT pg_create_logical_replication_slot('walden', 'pgoutput') \\g /dev/null
CREATE TABLE after_slot (i int); DROP TABLE after_slot; VACUUM FULL pg_class; SELECT pg_drop_replication_slot('walden') \\g /dev/null
";

/// What every workload must have made: resource manager and kind.
pub(crate) const KINDS: &[&str] = &[
    "Transaction COMMIT",
    "Transaction ABORT",
    "Transaction COMMIT_PREPARED",
    "Transaction ABORT_PREPARED",
    "Transaction PREPARE",
    "XLOG RESTORE_POINT",
    "XLOG CHECKPOINT_ONLINE",
    "XLOG CHECKPOINT_SHUTDOWN",
    "XLOG SWITCH",
    "XLOG PARAMETER_CHANGE",
    "XLOG BACKUP_END",
];

/// What the whole one must have made besides.
pub(crate) const KINDS_OF_THE_WHOLE: &[&str] = &[
    "Transaction ASSIGNMENT",
    "Transaction INVALIDATION",
    "XLOG NEXTOID",
    "XLOG FPW_CHANGE",
    "XLOG FPI",
    "XLOG FPI_FOR_HINT",
    "XLOG OVERWRITE_CONTRECORD",
    "Heap INSERT",
    "Heap DELETE",
    "Heap UPDATE",
    "Heap HOT_UPDATE",
    "Heap TRUNCATE",
    "Heap INPLACE",
    "Heap LOCK",
    "Heap HEAP_CONFIRM",
    "Heap2 MULTI_INSERT",
    "Heap2 MULTI_INSERT+INIT",
    "Heap2 NEW_CID",
    "Storage CREATE",
    "Storage TRUNCATE",
    "Database CREATE_FILE_COPY",
    "Database CREATE_WAL_LOG",
    "Database DROP",
    "Tablespace CREATE",
    "Tablespace DROP",
    "Standby LOCK",
    "Standby RUNNING_XACTS",
    "Standby INVALIDATIONS",
    "ReplicationOrigin SET",
    "ReplicationOrigin DROP",
];

/// Large messages, one after the other: when the server is killed, one of them is under way.
const LARGE_MESSAGES: &str = "
DO $$ BEGIN FOR i IN 1..2000 LOOP PERFORM pg_logical_emit_message(false, 'walden', repeat('y', 700000)); END LOOP; END $$";

/// Until they are being written: a server that is stopped then is in the middle of one.
const WAIT_FOR_MESSAGES: &str = "
DO $$ DECLARE before pg_lsn := pg_current_wal_insert_lsn(); BEGIN
  FOR i IN 1..3000 LOOP EXIT WHEN pg_current_wal_insert_lsn() - before > 3000000; PERFORM pg_sleep(0.01); END LOOP;
END $$";

/// A few seconds of a server's life, on two timelines; it is stopped at the end. Gives the ways in which it must have stored page images.
pub(crate) fn live(server: &mut Server, whole: bool) -> Vec<&'static str> {
    let mut images = vec!["plain"];
    server.start();
    server.pgbench(&["-i", "-q", "-s", "1"]);
    server.sql(EVERYTHING);
    if whole {
        server.pgbench(&["-c", "4", "-j", "2", "-t", "100"]);
        server.sql("ALTER SYSTEM SET wal_compression = on; SELECT pg_reload_conf() \\g /dev/null");
        server.sql("CHECKPOINT;");
        server.pgbench(&["-c", "4", "-j", "2", "-t", "100", "-N"]);
        server.sql("ALTER SYSTEM RESET wal_compression; SELECT pg_reload_conf() \\g /dev/null");
        let scratch = server.scratch().display().to_string();
        std::fs::create_dir(server.scratch().join("ts")).expect("folder");
        server.sql(&THE_REST.replace("@SCRATCH@", &scratch));
        server.sql("INSERT INTO t (id, v) SELECT i, md5(i::text) FROM generate_series(1, 8000) i;");
        for method in ["pglz", "lz4", "zstd"] {
            let set = format!("SET wal_compression = {method};");
            if server.try_sql(&set) {
                server.sql(&format!("{set} {IMAGES}"));
                images.push(method);
            }
        }
        server.sql(&format!("SET wal_consistency_checking = 'all'; {IMAGES}"));
        images.push("for WAL verification");
        server.sql("TRUNCATE t;");
    }
    for round in 0..if whole { 2 } else { 1 } {
        let mut clients = [
            server.sql_in_background(LARGE_MESSAGES),
            server.sql_in_background(LARGE_MESSAGES),
        ];
        server.sql(WAIT_FOR_MESSAGES);
        std::thread::sleep(std::time::Duration::from_millis(30 * round));
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
    if whole {
        server.sql(LOGICAL);
    }
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
    images
}

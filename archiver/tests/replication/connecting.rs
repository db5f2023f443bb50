//! Logging in to real servers: socket, TCP, TLS with good and wrong certificates, password methods, several hosts, deadlines.

use crate::server::{Server, append, free_port, programs};
use archiver::error::{Error, ServerErrorKind};
use archiver::replication::{Connection, ConnectionInfo, Mode};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const HOST: &str = "db.walden.test";

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(parameters, key);
        Authority { issuer, pem }
    }

    /// Certificate and key, PEM, for a host or, as common name, a role.
    fn sign(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn prepare(bin: &Path) -> Server {
    let mut server = Server::init(bin);
    let (data, folder) = (server.data(), server.folder.path().to_owned());
    let authority = Authority::new();
    let (certificate, key) = authority.sign(HOST);
    write(&data.join("server.crt"), &certificate);
    write(&data.join("server.key"), &key);
    write(&data.join("ca.crt"), &authority.pem);
    write(&folder.join("ca.crt"), &authority.pem);
    write(&folder.join("other-ca.crt"), &Authority::new().pem);
    let (certificate, key) = authority.sign("by_certificate");
    write(&folder.join("client.crt"), &certificate);
    write(&folder.join("client.key"), &key);
    server.configure("ssl = on\nssl_ca_file = 'ca.crt'\npassword_encryption = 'scram-sha-256'\n");
    fs::write(
        data.join("pg_hba.conf"),
        "local     all                      postgres                    trust\n\
         local     replication              walden                      scram-sha-256\n\
         local     all                      walden                      scram-sha-256\n\
         hostssl   replication,all          walden         127.0.0.1/32 scram-sha-256\n\
         hostnossl replication              only_clear     127.0.0.1/32 trust\n\
         hostssl   replication              by_md5         127.0.0.1/32 md5\n\
         host      replication              by_password    127.0.0.1/32 password\n\
         local     replication              by_password                 password\n\
         hostssl   replication              by_certificate 127.0.0.1/32 cert\n",
    )
    .unwrap();
    server.start();
    server.psql(
        "CREATE ROLE walden LOGIN REPLICATION PASSWORD 'it''s : \\ se€cret';
         CREATE ROLE only_clear LOGIN REPLICATION; CREATE ROLE by_certificate LOGIN REPLICATION;
         CREATE ROLE by_password LOGIN REPLICATION PASSWORD 'p';
         SET password_encryption = 'md5'; SET client_min_messages = error;
         CREATE ROLE by_md5 LOGIN REPLICATION PASSWORD 'p'",
    );
    server
}

fn info(conninfo: &str, passfile: &Path) -> ConnectionInfo {
    let environment = |name: &str| match name {
        "PGPASSFILE" => Some(passfile.display().to_string()),
        _ => None,
    };
    ConnectionInfo::parse(conninfo, &environment).unwrap()
}

async fn ways_to_connect(major: u32) {
    let Some(bin) = programs(major) else { return };
    let server = prepare(&bin);
    let folder = server.folder.path().to_owned();
    let port = server.port;
    let passfile = folder.join("pgpass");
    append(&passfile, r"*:*:replication:walden:it's \: \\ se€cret");
    append(&passfile, r"*:*:postgres:walden:it's \: \\ se€cret");
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
    let tcp = format!("host={HOST} hostaddr=127.0.0.1 port={port}");
    let ca = format!("sslrootcert={}", folder.join("ca.crt").display());
    let connect = async |conninfo: String| {
        Connection::connect(&info(&conninfo, &passfile), Mode::PhysicalReplication).await
    };
    let good = async |conninfo: String, is_encrypted: bool| {
        let mut connection = connect(conninfo.clone())
            .await
            .map_err(|e| format!("{conninfo}: {e:?}"))
            .unwrap();
        assert_eq!(connection.is_encrypted(), is_encrypted, "{conninfo}");
        assert_eq!(connection.server_major(), major);
        let identity = connection.identify_system().await.unwrap();
        assert_eq!(identity.timeline.get(), 1);
        assert_eq!(identity.database, None);
        connection.close().await.unwrap();
        identity.system_identifier
    };
    let bad = async |conninfo: String| match connect(conninfo.clone()).await {
        Ok(_) => panic!("{conninfo}: connected"),
        Err(error) => error,
    };

    // The password comes from the password file's line for "replication".
    let identifier = good(server.socket("user=walden"), false).await;
    let expected = server.psql("SELECT system_identifier FROM pg_control_system()");
    assert_eq!(identifier.to_string(), expected);
    let path = percent(&folder);
    good(format!("postgresql://walden@{path}:{port}/"), false).await;

    // TLS and whom it trusts.
    for mode in ["verify-full", "verify-ca", "require"] {
        good(
            format!("{tcp} user=walden sslmode={mode} {ca} channel_binding=require"),
            true,
        )
        .await;
    }
    good(format!("{tcp} user=walden sslmode=require"), true).await;
    good(format!("{tcp} user=walden"), true).await;
    good(format!("{tcp} user=walden sslmode=allow"), true).await;
    good(
        format!("{tcp} user=walden sslmode=verify-full {ca} channel_binding=disable"),
        true,
    )
    .await;
    let wrong_host =
        format!("host=other.walden.test hostaddr=127.0.0.1 port={port} user=walden {ca}");
    good(format!("{wrong_host} sslmode=verify-ca"), true).await;
    let error = bad(format!("{wrong_host} sslmode=verify-full")).await;
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    assert!(
        format!("{error:?}").contains("NotValidForName"),
        "{error:?}"
    );
    let other_ca = format!("sslrootcert={}", folder.join("other-ca.crt").display());
    for mode in ["verify-full", "verify-ca", "require"] {
        let error = bad(format!("{tcp} user=walden sslmode={mode} {other_ca}")).await;
        assert!(matches!(error, Error::Tls { .. }), "{mode}: {error:?}");
    }
    let error = bad(format!("{tcp} user=walden sslmode=verify-full")).await;
    assert!(error.to_string().contains("sslrootcert"), "{error}");
    let direct = format!("{tcp} user=walden sslmode=verify-full {ca} sslnegotiation=direct");
    match major {
        17.. => drop(good(direct, true).await),
        _ => assert!(matches!(bad(direct).await, Error::Tls { .. })),
    }

    // The server decides who may come in clear.
    let error = bad(format!("{tcp} user=walden sslmode=disable")).await;
    assert_eq!(
        error.server_kind(),
        Some(ServerErrorKind::Rejected),
        "{error:?}"
    );
    good(format!("{tcp} user=only_clear"), false).await;
    let error = bad(format!("{tcp} user=only_clear sslmode=require")).await;
    assert_eq!(
        error.server_kind(),
        Some(ServerErrorKind::Rejected),
        "{error:?}"
    );

    // Password methods.
    let error = bad(format!("{tcp} user=walden password=wrong")).await;
    assert_eq!(
        error.server_kind(),
        Some(ServerErrorKind::AuthenticationFailed),
        "{error:?}"
    );
    let error = bad(format!("{tcp} user=by_md5")).await;
    assert!(error.to_string().contains("PGPASSWORD"), "{error}");
    good(format!("{tcp} user=by_md5 password=p"), true).await;
    let error = bad(format!(
        "{tcp} user=by_md5 password=p channel_binding=require"
    ))
    .await;
    assert!(matches!(error, Error::Authentication { .. }), "{error:?}");
    good(
        format!("{tcp} user=by_password password=p sslmode=require"),
        true,
    )
    .await;
    good(server.socket("user=by_password password=p"), false).await;
    let error = bad(format!("{tcp} user=by_password password=p sslmode=disable")).await;
    assert!(error.to_string().contains("in clear"), "{error}");
    let key = |name: &str| folder.join(name).display().to_string();
    let certificate = format!(
        "{tcp} user=by_certificate sslcert={} sslkey={}",
        key("client.crt"),
        key("client.key")
    );
    good(format!("{certificate} sslmode=require"), true).await;
    fs::set_permissions(folder.join("client.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = bad(format!("{certificate} sslmode=require")).await;
    assert!(error.to_string().contains("0600"), "{error}");
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o644)).unwrap();
    let error = bad(server.socket("user=walden")).await;
    assert!(error.to_string().contains("0600"), "{error}");
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();

    // Several hosts, kinds of servers, SQL.
    let dead = free_port();
    let list = format!(
        "host={},{HOST},{} hostaddr=127.0.0.1,127.0.0.1,127.0.0.1",
        HOST, HOST
    );
    good(
        format!("{list} port={dead},{port},{dead} user=walden"),
        true,
    )
    .await;
    let error = bad(format!("{list} port={dead} user=walden")).await;
    assert!(matches!(error, Error::NoServer { .. }), "{error:?}");
    let error = bad(format!("{tcp} user=walden target_session_attrs=standby")).await;
    assert!(matches!(error, Error::UnsuitableServer { .. }), "{error:?}");
    for attributes in ["primary", "read-write", "prefer-standby"] {
        good(
            format!("{tcp} user=walden target_session_attrs={attributes}"),
            true,
        )
        .await;
    }
    let sql = info(&format!("{tcp} user=walden dbname=postgres"), &passfile);
    let mut sql = Connection::connect(&sql, Mode::Sql).await.unwrap();
    let answer = sql
        .simple_query("SELECT 1 AS a, NULL AS b, 'é' AS c; SET DateStyle = 'ISO'")
        .await
        .unwrap();
    assert_eq!(
        (
            answer.text(0, "a"),
            answer.text(0, "b"),
            answer.text(0, "c")
        ),
        (Some("1"), None, Some("é"))
    );
    assert_eq!(answer.command_tags, ["SELECT 1", "SET"]);
    let error = sql.simple_query("SELECT 1/0").await.unwrap_err();
    assert_eq!(error.server().unwrap().sqlstate, "22012");
    let error = sql.simple_query("SELEC").await.unwrap_err();
    assert_eq!(error.server().unwrap().position, Some(1));
    let name = sql.simple_query("SHOW application_name").await.unwrap();
    assert_eq!(name.text(0, "application_name"), Some("walden"));

    // A cancelled statement ends, over TLS too, and the connection stays usable.
    let token = sql.cancel_token();
    let (slept, cancelled) = tokio::join!(sql.simple_query("SELECT pg_sleep(30)"), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        token.cancel().await
    });
    cancelled.unwrap();
    assert_eq!(
        slept.unwrap_err().server_kind(),
        Some(ServerErrorKind::Cancelled)
    );
    assert_eq!(
        sql.simple_query("SELECT 2 AS x")
            .await
            .unwrap()
            .text(0, "x"),
        Some("2")
    );
    // A command dropped half-way is noticed.
    tokio::time::timeout(
        Duration::from_millis(50),
        sql.simple_query("SELECT pg_sleep(1)"),
    )
    .await
    .unwrap_err();
    let error = sql.simple_query("SELECT 1").await.unwrap_err();
    assert!(matches!(error, Error::WrongState { .. }), "{error:?}");

    // No sender is left (max_wal_senders = 6).
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(connect(server.socket("user=walden")).await.unwrap());
    }
    let error = bad(server.socket("user=walden")).await;
    assert_eq!(
        error.server_kind(),
        Some(ServerErrorKind::TooManyConnections),
        "{error:?}"
    );
}

fn percent(path: &Path) -> String {
    path.to_str().unwrap().replace('/', "%2F")
}

#[tokio::test]
async fn every_way_to_connect_works_or_says_why_not_on_15() {
    ways_to_connect(15).await;
}

#[tokio::test]
async fn every_way_to_connect_works_or_says_why_not_on_18() {
    ways_to_connect(18).await;
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for mode in ["disable", "require"] {
        let text = format!("host=127.0.0.1 port={port} user=u sslmode={mode} connect_timeout=1");
        let start = Instant::now();
        let info = info(&text, Path::new("/nonexistent"));
        let Err(error) = Connection::connect(&info, Mode::Sql).await else {
            panic!("connected to nothing");
        };
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(4));
    }
}

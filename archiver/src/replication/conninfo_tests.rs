//! Tests of `conninfo`, kept apart for length.

use super::*;

fn environment(name: &str) -> Option<String> {
    match name {
        "USER" => Some("me".to_owned()),
        "HOME" => Some("/home/me".to_owned()),
        _ => None,
    }
}

fn parse(conninfo: &str) -> ConnectionInfo {
    ConnectionInfo::parse(conninfo, &environment).unwrap()
}

fn refuse(conninfo: &str, needle: &str) {
    let error = ConnectionInfo::parse(conninfo, &environment).unwrap_err();
    assert_eq!(error.class(), crate::error::ErrorClass::Config);
    assert!(error.to_string().contains(needle), "{conninfo}: {error}");
}

fn tcp(name: &str, address: Option<&str>, port: u16) -> Host {
    Host::Tcp {
        name: name.to_owned(),
        address: address.map(|address| address.parse().unwrap()),
        port,
    }
}

fn unix(directory: &str, port: u16) -> Host {
    Host::Unix {
        directory: directory.into(),
        port,
    }
}

#[test]
fn nothing_given_means_the_local_socket_and_the_operating_systems_user() {
    let info = parse("");
    assert_eq!(
        info.hosts,
        [unix("/var/run/postgresql", 5432), unix("/tmp", 5432)]
    );
    assert_eq!(info.user, "me");
    assert_eq!(info.application_name, "walden");
    assert_eq!(info.ssl_mode, SslMode::Prefer);
    assert_eq!(info.passfile, Some("/home/me/.pgpass".into()));
    assert_eq!(
        info.ssl_root_certificates,
        RootCertificates::DefaultFile("/home/me/.postgresql/root.crt".into())
    );
    assert_eq!(info.connect_timeout, None);
    assert!(info.keepalive.enabled);
}

#[test]
fn hosts_pair_with_addresses_and_ports() {
    let check =
        |conninfo: &str, hosts: &[Host]| assert_eq!(parse(conninfo).hosts, hosts, "{conninfo}");
    check("host=a,b port=1", &[tcp("a", None, 1), tcp("b", None, 1)]);
    check("host=a,/x port=1,", &[tcp("a", None, 1), unix("/x", 5432)]);
    check(
        "host=a hostaddr=10.0.0.1",
        &[tcp("a", Some("10.0.0.1"), 5432)],
    );
    check("hostaddr=::1", &[tcp("::1", Some("::1"), 5432)]);
    check("postgresql://h:7/d", &[tcp("h", None, 7)]);
    check(
        "host=a, port=1",
        &[
            tcp("a", None, 1),
            unix("/var/run/postgresql", 1),
            unix("/tmp", 1),
        ],
    );
    refuse("host=a,b port=1,2,3", "3 ports for 2 hosts");
    refuse("host=a,b hostaddr=1.1.1.1", "2 hosts but 1");
    refuse("hostaddr=example.org", "an IP address");
    refuse("port=0", "1 to 65535");
    refuse("port=70000", "1 to 65535");
    refuse("host=@abstract", "abstract");
    refuse(&format!("host={}", "a,".repeat(70)), "more than 64 hosts");
}

#[test]
fn root_certificates_strengthen_the_mode_as_in_libpq() {
    let check = |conninfo: &str, mode: SslMode, root: RootCertificates| {
        let info = parse(conninfo);
        assert_eq!(
            (info.ssl_mode, info.ssl_root_certificates),
            (mode, root),
            "{conninfo}"
        );
    };
    let file = || RootCertificates::File("/ca".into());
    check("sslmode=require sslrootcert=/ca", SslMode::VerifyCa, file());
    check(
        "sslmode=verify-full sslrootcert=/ca",
        SslMode::VerifyFull,
        file(),
    );
    check("sslrootcert=/ca", SslMode::Prefer, file());
    check(
        "sslrootcert=system",
        SslMode::VerifyFull,
        RootCertificates::System,
    );
    refuse("sslrootcert=system sslmode=require", "verify-full");
    refuse("sslmode=on", "verify-ca");
    refuse("sslnegotiation=direct", "sslmode=require");
    assert_eq!(
        parse("sslnegotiation=direct sslmode=require").ssl_negotiation,
        SslNegotiation::Direct
    );
}

#[test]
fn environment_is_behind_the_string_and_empty_values_are_absent() {
    let environment = |name: &str| match name {
        "PGHOST" => Some("envhost".to_owned()),
        "PGPORT" => Some("6000".to_owned()),
        "PGUSER" => Some("envuser".to_owned()),
        "PGPASSWORD" => Some("envsecret".to_owned()),
        "PGAPPNAME" => Some(String::new()),
        "PGCONNECT_TIMEOUT" => Some("1".to_owned()),
        "PGTARGETSESSIONATTRS" => Some("primary".to_owned()),
        "PGSSLMODE" => Some("verify-ca".to_owned()),
        _ => None,
    };
    let info = ConnectionInfo::parse("user=string sslmode=disable", &environment).unwrap();
    assert_eq!(info.hosts, [tcp("envhost", None, 6000)]);
    assert_eq!(info.user, "string");
    assert_eq!(info.password, Some(Password::new("envsecret")));
    assert_eq!(info.application_name, "walden");
    assert_eq!(info.connect_timeout, Some(Duration::from_secs(2)));
    assert_eq!(info.target_session, TargetSession::Primary);
    assert_eq!(info.ssl_mode, SslMode::Disable);
    assert_eq!(info.passfile, None);
    let error = ConnectionInfo::parse("", &|_: &str| None).unwrap_err();
    assert!(error.to_string().contains("no user"), "{error}");
}

#[test]
fn unknown_keywords_get_a_suggestion_and_unsupported_ones_a_reason() {
    refuse("hots=x", "did you mean \"host\"?");
    refuse("sslmod=x", "did you mean \"sslmode\"?");
    refuse("krbsrvname_of_x=1", "unknown or unsupported keyword");
    refuse("service=prod", "service files are not supported");
    refuse("gssencmode=require", "GSSAPI");
    refuse("load_balance_hosts=random", "in order");
    refuse("keepalives=yes", "0 or 1");
    refuse("connect_timeout=soon", "a number");
    refuse("target_session_attrs=master", "prefer-standby");
    refuse("channel_binding=x", "require");
}

#[test]
fn neither_display_nor_debug_shows_the_password() {
    let info = parse("host=/x,b port=1,2 user=ok dbname=d password=hunter2 sslmode=require");
    assert_eq!(
        info.to_string(),
        "host=/x,b port=1,2 user=ok dbname=d sslmode=require application_name=walden"
    );
    assert!(!format!("{info:?}").contains("hunter2"));
    assert_eq!(info.password.unwrap().reveal(), "hunter2");
    assert!(parse(r"user='a b'").to_string().contains("user='a b'"));
}

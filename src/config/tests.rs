//! What a configuration file may and may not say.

use super::*;

const RECIPIENT: &str = "age1eyj8hva38agpddvlr3gpgvcnd8dlue4aaq9ll2n32rvdwxl804uswp2dkf";

/// The example of the design, whole.
const EXAMPLE: &str = r#"
[postgres]
conninfo = "host=db1,db2 user=walden sslmode=verify-full"
slot = "walden"
system_identifier = "7412345678901234567"

[archive]
rpo = "5s"
ack = "all"
on_invalid = "store-and-report"
compression = "lz4"

[encryption]
recipients = ["age1eyj8hva38agpddvlr3gpgvcnd8dlue4aaq9ll2n32rvdwxl804uswp2dkf"]
identity = "cmd:vault kv get -field=key secret/walden"

[[repository]]
name = "primary"
url = "s3://acme-pg-eu/prod"
"#;

const SMALLEST: &str = "encryption = 'none'\n[[repository]]\nurl = 'file:///srv/w'\n";

fn parse(text: &str) -> Result<Config, Complaint> {
    Config::parse(text, Path::new("/etc/walden/walden.toml"))
}

#[track_caller]
fn refused(text: &str, line: Option<usize>, message: &str, hint: &str) {
    let complaint = parse(text).expect_err(text);
    assert_eq!(complaint.line, line, "{complaint:?}");
    assert!(complaint.message.contains(message), "{complaint:?}");
    assert!(
        complaint.hint.as_deref().unwrap_or("").contains(hint),
        "{complaint:?}"
    );
}

#[test]
fn reads_the_example_of_the_design() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(
        config.postgres.conninfo.as_deref(),
        Some("host=db1,db2 user=walden sslmode=verify-full")
    );
    assert_eq!(
        config.postgres.system_identifier.unwrap().get(),
        7412345678901234567
    );
    assert_eq!(
        config.archive,
        Archive::default(),
        "the example shows the defaults"
    );
    let Some(Encryption::Sealed {
        recipients,
        identity,
    }) = &config.encryption
    else {
        panic!("sealed")
    };
    assert_eq!(recipients.as_slice(), [RECIPIENT]);
    assert_eq!(
        identity.as_ref().unwrap().to_string(),
        "cmd:vault kv get -field=key secret/walden"
    );
    assert_eq!(config.repository().url, "s3://acme-pg-eu/prod");
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn smallest_file_names_a_repository_and_says_how_to_encrypt() {
    let config = parse(SMALLEST).unwrap();
    assert_eq!(config.encryption, Some(Encryption::None));
    assert_eq!(config.postgres, Postgres::default());
    assert_eq!(config.repository().name, "primary");
}

#[test]
fn what_is_rendered_reads_back_equal() {
    let many = EXAMPLE
        .replace("rpo = \"5s\"", "rpo = \"1m30s\"")
        .replace("ack = \"all\"", "ack = { quorum = 1 }")
        .replace("store-and-report", "refuse")
        .replace("lz4", "zstd")
        .replace("host=db1", r#"options='-c a=\"b\"' host=db1"#)
        + "endpoint = 'https://s3.example:8333'\nregion = 'eu-1'\npath_style = true\nca_file = 'ca.pem'\n\
           access_key = 'env:K'\nsecret_key = 'file:s'\n";
    let patient = format!(
        "{SMALLEST}[archive]\npatience = '7s'\n[postgres]\nwal_receiver_timeout = '2s'\n[restore]\npatience = '1h30m'\n"
    );
    let guarded =
        format!("{SMALLEST}[archive]\ndisk_guard = {{ warn = '10GB' }}\n[backup]\non_gap = true\n");
    let dropping = format!("{SMALLEST}[archive]\ndisk_guard = {{ drop_slot = '50GB' }}\n");
    for text in [EXAMPLE, SMALLEST, &many, &patient, &guarded, &dropping] {
        let config = parse(text).unwrap();
        let rendered = config.to_toml();
        assert_eq!(
            parse(&rendered).unwrap_or_else(|error| panic!("{error:?}\n{rendered}")),
            config
        );
    }
    let Location::S3 { options, .. } = &parse(&many).unwrap().repository().location.clone() else {
        panic!("S3")
    };
    assert_eq!(
        options.ca_file.as_deref(),
        Some(Path::new("/etc/walden/ca.pem")),
        "taken from the file's folder"
    );
    assert_eq!(
        options.credentials.as_ref().unwrap().secret_key.to_string(),
        "file:/etc/walden/s"
    );
}

#[test]
fn unknown_keys_are_refused_with_a_suggestion() {
    refused(
        "[postgres]\nslots = 'x'",
        Some(2),
        "unknown key `slots` in [postgres]",
        "did you mean `slot`?",
    );
    refused(
        &format!("{SMALLEST}[archiv]\nrpo='5s'\n"),
        Some(4),
        "unknown key `archiv` at the top",
        "`archive`",
    );
    refused(
        &EXAMPLE.replace("identity =", "identty ="),
        Some(15),
        "unknown key `identty` in [encryption]",
        "`identity`",
    );
    refused(
        &format!("{SMALLEST}retention = 3\n"),
        Some(4),
        "unknown key `retention` in [repository]",
        "known here: ",
    );
}

#[test]
fn encryption_must_be_said() {
    let silent = SMALLEST.replace("encryption = 'none'\n", "");
    refused(
        &silent,
        None,
        "nothing says whether to encrypt",
        "encryption = \"none\"",
    );
    refused(
        &SMALLEST.replace("none", "off"),
        Some(1),
        "`encryption` is \"none\", not \"off\"",
        "recipients",
    );
    refused(
        &format!("{silent}[encryption]\nrecipients = []\n"),
        Some(3),
        "names no key",
        "walden init",
    );
    refused(
        &format!("{silent}[encryption]\nrecipients = ['age1short']\n"),
        Some(4),
        "not an age X25519 recipient",
        "",
    );
    let seventeen = vec![format!("'{RECIPIENT}'"); 17].join(",\n");
    refused(
        &format!("{silent}[encryption]\nrecipients = [\n{seventeen}]\n"),
        Some(21),
        "more than 16",
        "",
    );
    assert!(
        parse(&format!("{silent}[encryption]\nidentity = 'file:k'\n")).is_ok(),
        "a host that only restores"
    );
}

#[test]
fn inline_secrets_are_refused_and_never_repeated() {
    const KEY: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
    let cases = [
        EXAMPLE.replace("cmd:vault kv get -field=key secret/walden", KEY),
        EXAMPLE.replace(RECIPIENT, KEY),
        format!("{EXAMPLE}access_key = 'env:A'\nsecret_key = 'wJalrXUtnFEMI/GFPYYSJ'\n"),
        EXAMPLE.replace("s3://acme", "s3://k:GFPYYSJ@acme"),
        format!("{EXAMPLE}endpoint = 'https://k:GFPYYSJ@host'\n"),
    ];
    for text in cases {
        let complaint = parse(&text).expect_err(&text);
        assert!(
            !format!("{complaint:?}").contains("GFPYYSJ"),
            "{complaint:?}"
        );
    }
}

#[test]
fn password_in_conninfo_is_allowed_warned_about_and_hidden() {
    let config = parse(&EXAMPLE.replace("user=walden", "user=walden password='a b'")).unwrap();
    assert!(
        config
            .warnings
            .iter()
            .any(|warning| warning.contains(".pgpass")),
        "{:?}",
        config.warnings
    );
    let shown = config.redacted();
    assert!(!shown.to_toml().contains("a b") && !shown.to_json().to_string().contains("a b"));
    assert!(config.to_toml().contains("a b"), "the file itself keeps it");
}

#[test]
fn several_repositories_have_names_and_places_of_their_own() {
    let second = "[[repository]]\nname = 'far'\nurl = 's3://b/p'\nstorage_class = 'STANDARD_IA'\n";
    let two = format!("{SMALLEST}{second}");
    let config = parse(&two).unwrap();
    let names: Vec<&str> = config
        .repositories
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(names, ["primary", "far"]);
    assert_eq!(config.repository().name, "primary", "the first one");
    assert_eq!(parse(&config.to_toml()).unwrap(), config);
    let Location::S3 { options, .. } = &config.repositories[1].location else {
        panic!("S3")
    };
    assert_eq!(options.storage_class.as_deref(), Some("STANDARD_IA"));
    refused(
        &format!("{SMALLEST}[[repository]]\nurl = 's3://b'\n"),
        Some(4),
        "two repositories are named `primary`",
        "`name` of its own",
    );
    refused(
        &format!("{two}[[repository]]\nname = 'again'\nurl = 's3://b/p/'\n"),
        Some(8),
        "`again` is the same place as `far`",
        "`url` of its own",
    );
    refused(
        &format!("{SMALLEST}[[repository]]\nname = 'x'\nurl = 'file:///srv//w/'\n"),
        Some(4),
        "the same place as `primary`",
        "",
    );
    let elsewhere =
        "[[repository]]\nname = 'x'\nurl = 's3://b/p'\nendpoint = 'https://elsewhere'\n";
    assert!(
        parse(&format!("{two}{elsewhere}")).is_ok(),
        "another store's bucket of that name"
    );
    let nine: String = (0..8)
        .map(|n| format!("[[repository]]\nname = 'r{n}'\nurl = 's3://b{n}'\n"))
        .collect();
    refused(&format!("{SMALLEST}{nine}"), Some(25), "more than 8", "");
    for (class, why) in [
        ("GLACIER", "GLACIER_IR"),
        ("standard", "not a storage class"),
        ("", "not a storage class"),
    ] {
        refused(&two.replace("STANDARD_IA", class), Some(7), why, "");
    }
    refused(
        &format!("{SMALLEST}storage_class = 'STANDARD'\n"),
        Some(4),
        "for s3:// only",
        "",
    );
    let ack = |ack: &str| format!("{two}[archive]\nack = {ack}\n");
    assert_eq!(parse(&ack("'any'")).unwrap().archive.ack, Ack::Any);
    assert_eq!(
        parse(&ack("{ quorum = 2 }")).unwrap().archive.ack,
        Ack::Quorum(2)
    );
    refused(
        &ack("{ quorum = 3 }"),
        Some(9),
        "number of repositories, here 2",
        "",
    );
}

#[test]
fn a_repository_named_on_the_command_line_is_the_only_one() {
    let two = format!(
        "{SMALLEST}[[repository]]\nname = 'far'\nurl = 's3://b/p'\nregion = 'r'\n[archive]\nack = {{ quorum = 2 }}\n"
    );
    let named = |url: &str| {
        let mut config = parse(&two).unwrap();
        let overrides = Overrides {
            repository: Some(RepositoryOverride {
                url: url.into(),
                ..Default::default()
            }),
            ..Overrides::default()
        };
        config.lay_over(&overrides).unwrap();
        assert_eq!(
            (config.repositories.len(), config.archive.ack),
            (1, Ack::All)
        );
        config.repositories.remove(0)
    };
    let far = named("s3://b/p");
    assert_eq!(far.name, "far");
    assert!(
        matches!(&far.location, Location::S3 { options, .. } if options.region.as_deref() == Some("r"))
    );
    assert_eq!(named("s3://other").name, "primary");
}

#[test]
fn a_repository_needs_a_url_and_a_configuration_a_repository() {
    refused(
        &SMALLEST.replace("url = 'file:///srv/w'", "name = 'x'"),
        Some(2),
        "no `url`",
        "",
    );
    let empty = parse("encryption = 'none'").unwrap();
    let error = empty.clone().lay_over(&Overrides::default()).unwrap_err();
    assert!(
        format!("{error:#}").contains("no [[repository]]"),
        "{error:#}"
    );
}

#[test]
fn values_that_cannot_be_used_are_refused() {
    let restore = |setting: &str| format!("{SMALLEST}[restore]\n{setting}\n");
    refused(&restore("patience = 600"), Some(5), "must be a string", "");
    refused(&restore("patience = '10'"), Some(5), "not a duration", "");
    refused(
        &restore("patience = '500ms'"),
        Some(5),
        "outside 1s to 7d",
        "",
    );
    refused(&restore("patience = '8d'"), Some(5), "outside 1s to 7d", "");
    refused(
        &restore("patiense = '8d'"),
        Some(5),
        "unknown key",
        "`patience`",
    );
    let archive = |setting: &str| format!("{SMALLEST}[archive]\n{setting}\n");
    refused(
        &archive("patience = '8d'"),
        Some(5),
        "`patience` of 8d is outside 1s to 7d",
        "",
    );
    let postgres = |setting: &str| format!("{SMALLEST}[postgres]\n{setting}\n");
    for off in ["0s", "2h"] {
        refused(
            &postgres(&format!("wal_receiver_timeout = '{off}'")),
            Some(5),
            "outside 1s to 1h",
            "",
        );
    }
    refused(&archive("rpo = '5'"), Some(5), "not a duration", "");
    refused(&archive("rpo = '10ms'"), Some(5), "outside 100ms to 1h", "");
    refused(&archive("rpo = 5"), Some(5), "must be a string", "");
    refused(
        &archive("ack = 'some'"),
        Some(5),
        "`ack` is \"all\" or \"any\"",
        "",
    );
    refused(
        &archive("ack = { quorum = 2 }"),
        Some(5),
        "number of repositories, here 1",
        "",
    );
    refused(
        &archive("ack = { quorum = 0 }"),
        Some(5),
        "a quorum is from 1",
        "",
    );
    refused(&archive("ack = { qorum = 1 }"), Some(5), "`ack` is", "");
    refused(
        &archive("on_invalid = 'ignore'"),
        Some(5),
        "store-and-report",
        "",
    );
    refused(
        &archive("compression = 'gzip'"),
        Some(5),
        "\"lz4\" or \"zstd\"",
        "",
    );
    refused(
        &archive("descriptor = 'none'"),
        Some(5),
        "\"full\" or \"minimal\"",
        "",
    );
    let minimal = parse(&archive("descriptor = 'minimal'")).unwrap();
    assert!(minimal.archive.minimal_descriptor);
    assert_eq!(parse(&minimal.to_toml()).unwrap().archive, minimal.archive);
    let postgres = |setting: &str| format!("{SMALLEST}[postgres]\n{setting}\n");
    refused(&postgres("slot = 'Walden'"), Some(5), "not a slot name", "");
    refused(&postgres("slot = ''"), Some(5), "not a slot name", "");
    for identifier in ["0", "-1", "+5", "x", ""] {
        refused(
            &postgres(&format!("system_identifier = '{identifier}'")),
            Some(5),
            "not a system identifier",
            "walden init",
        );
    }
    refused(
        &format!("{SMALLEST}region = 'x'\n"),
        Some(4),
        "for s3:// only",
        "",
    );
    refused(
        &format!("{EXAMPLE}secret_key = 'env:A'\n"),
        Some(17),
        "go together",
        "",
    );
}

#[test]
fn flag_wins_over_file() {
    let mut config = parse(EXAMPLE).unwrap();
    let overrides = Overrides {
        conninfo: Some("host=other".into()),
        slot: Some("other".into()),
        rpo: Some(Rpo::Sync),
        identity: Some(parse_secret_reference("env:K").unwrap()),
        repository: Some(RepositoryOverride {
            url: "file:///other".into(),
            ..Default::default()
        }),
    };
    config.lay_over(&overrides).unwrap();
    assert_eq!(config.postgres.conninfo.as_deref(), Some("host=other"));
    assert_eq!(config.postgres.slot, "other");
    assert_eq!(config.archive.rpo, Rpo::Sync);
    assert_eq!(
        config.repository().location,
        Location::File("/other".into())
    );
    let Some(Encryption::Sealed {
        recipients,
        identity,
    }) = config.encryption
    else {
        panic!("sealed")
    };
    assert_eq!(
        (recipients.len(), identity.unwrap().to_string()),
        (1, "env:K".to_owned())
    );
}

#[test]
fn a_repository_url_needs_no_file() {
    let overrides = Overrides {
        identity: Some(parse_secret_reference("file:k").unwrap()),
        repository: Some(RepositoryOverride {
            url: "s3://b/p".into(),
            ..Default::default()
        }),
        ..Overrides::default()
    };
    let config = Config::load(None, Caller::Command, &overrides).unwrap();
    assert_eq!(
        (config.file.as_ref(), config.repository().url.as_str()),
        (None, "s3://b/p")
    );
    assert!(matches!(config.encryption, Some(Encryption::Sealed { .. })));
    let bad = Overrides {
        repository: Some(RepositoryOverride {
            url: "/srv".into(),
            ..Default::default()
        }),
        ..Overrides::default()
    };
    let error = Config::load(None, Caller::Command, &bad).unwrap_err();
    assert_eq!(crate::failure::Failure::of(&error).code, ExitCode::Usage);
}

#[test]
fn file_that_others_can_change_is_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("walden.toml");
    std::fs::write(&path, EXAMPLE).unwrap();
    let warnings = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        Config::load(Some(&path), Caller::Command, &Overrides::default())
            .unwrap()
            .warnings
    };
    assert!(warnings(0o664).is_empty());
    assert!(warnings(0o602)[0].contains("chmod o-w"));
    std::fs::write(&path, EXAMPLE.replace("user=walden", "password=x")).unwrap();
    assert!(
        !warnings(0o640)
            .iter()
            .any(|warning| warning.contains("chmod"))
    );
    assert!(
        warnings(0o644)
            .iter()
            .any(|warning| warning.contains("chmod o-r"))
    );
}

#[tokio::test]
async fn keys_that_cannot_be_used_never_mean_plaintext() {
    assert!(
        parse(SMALLEST).unwrap().recipients().unwrap().is_none(),
        "said explicitly"
    );
    assert_eq!(
        parse(EXAMPLE)
            .unwrap()
            .recipients()
            .unwrap()
            .unwrap()
            .to_strings(),
        [RECIPIENT]
    );
    let identity_only = SMALLEST.replace("encryption = 'none'\n", "")
        + "[encryption]\nidentity = 'file:/nonexistent'\n";
    let config = parse(&identity_only).unwrap();
    assert_eq!(
        crate::failure::Failure::of(&config.recipients().unwrap_err()).code,
        ExitCode::Usage
    );
    let error = config.identities().await.unwrap_err();
    assert_eq!(crate::failure::Failure::of(&error).code, ExitCode::NoKey);
    let from_url = Overrides {
        repository: Some(RepositoryOverride {
            url: "s3://b".into(),
            ..Default::default()
        }),
        ..Overrides::default()
    };
    let config = Config::load(None, Caller::Command, &from_url).unwrap();
    assert!(config.recipients().is_err() && config.identities().await.unwrap().is_empty());
}

#[test]
fn both_callers_read_the_file_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("any name.toml");
    std::fs::write(
        &path,
        "encryption = 'none'\n[[repository]]\nurl = 'file:///x'\n",
    )
    .unwrap();
    let args = crate::cli::GlobalArgs {
        config: Some(path.clone()),
        ..crate::cli::GlobalArgs::default()
    };
    let globals = crate::commands::Globals::new(&args);
    for config in [
        globals.load_config(&Overrides::default()),
        globals.load_hook_config(&Overrides::default()),
    ] {
        assert_eq!(config.unwrap().file.as_deref(), Some(path.as_path()));
    }
}

#[test]
fn the_disk_guard_never_drops_the_slot_unless_told_to() {
    let archive = |guard: &str| format!("{SMALLEST}[archive]\ndisk_guard = {guard}\n");
    let guard = |text: &str| parse(&archive(text)).unwrap().archive.disk_guard.unwrap();
    let warn = guard("{ warn = '10GB' }");
    assert_eq!((warn.warn.bytes(), warn.drop_slot), (10_000_000_000, None));
    let both = guard("{ warn = '10GiB', drop_slot = '50GiB' }");
    assert_eq!(both.drop_slot.map(|size| size.bytes()), Some(50 << 30));
    let drop = guard("{ drop_slot = '50GiB' }");
    assert_eq!(drop.warn.bytes(), 25 << 30, "said in time");
    assert_eq!(parse(SMALLEST).unwrap().archive.disk_guard, None);
    assert!(!parse(SMALLEST).unwrap().backup.on_gap);
    let line = Some(SMALLEST.lines().count() + 2);
    for (bad, message) in [
        ("{}", "`disk_guard` is"),
        ("{ warn = '10GB', drop_slot = '10GB' }", "more than `warn`"),
        ("{ drop_slot = '10kB' }", "at least 1MiB"),
        ("{ drop_slot = 'much' }", "not a size"),
        ("{ drop = '10GB' }", "drop"),
    ] {
        refused(&archive(bad), line, message, "");
    }
}

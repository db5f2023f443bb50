//! One real S3 server (SeaweedFS) for the whole test program, and a bucket for each test.

use super::ports::Port;
use super::s3::{Answer, Client};
use super::scratch::Scratch;
use super::tls::Authority;
use super::{cache, process, wait_until};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const ACCESS_KEY: &str = "walden-test";
const SECRET_KEY: &str = "a secret that is none";

/// Runs the server, and ends it and removes its folder when standard input closes: that happens when the test program
/// ends, even by `kill -9`. The socket names are SeaweedFS's own; nothing makes it put them elsewhere.
const LEASH: &str = r#"
trap '' INT TERM HUP
directory=$1 ports=$2; shift 2
"$@" </dev/null >"$directory/server.log" 2>&1 &
server=$!
cat >/dev/null
kill -9 $server
wait $server 2>/dev/null
rm -rf -- "$directory"
for port in $ports; do rm -f /tmp/seaweedfs-*-$port.sock; done
"#;

struct Server {
    client: Client,
    https: u16,
    /// Certificate of the authority behind the HTTPS port.
    ca: PathBuf,
    _ports: Vec<Port>,
    _directory_lock: File,
    /// Holds the pipe that keeps the server alive.
    _leash: Child,
}

/// Shared by all tests: it takes a second to start and memory to run.
static SERVER: LazyLock<Server> = LazyLock::new(start);

fn start() -> Server {
    let weed = cache().join("bin/weed");
    assert!(
        weed.exists(),
        "{} is missing: run scripts/setup test",
        weed.display()
    );
    let (directory, lock) = Scratch::new().keep();
    let identities = format!(
        r#"{{"identities":[{{"name":"test","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],
        "actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
    );
    std::fs::write(directory.join("s3.json"), identities).expect("write the identities");
    let ports: Vec<Port> = (0..10).map(|_| Port::lease()).collect();
    let [
        master,
        master_grpc,
        volume,
        volume_grpc,
        filer,
        filer_grpc,
        s3,
        s3_grpc,
        admin_grpc,
    ] = std::array::from_fn(|index| ports.get(index).expect("ten ports").number());
    let https = ports.last().expect("ten ports").number();
    let listed: Vec<String> = ports.iter().map(|port| port.number().to_string()).collect();

    // Not through `process::command`: the leash must outlive this program by a moment.
    let mut leash = Command::new("sh");
    leash
        .args(["-c", LEASH, "leash"])
        .arg(&directory)
        .arg(listed.join(" "));
    leash
        .arg(weed)
        .arg(format!("-logdir={}", directory.display()))
        .arg("mini");
    leash.arg(format!("-dir={}", directory.join("data").display()));
    leash.arg(format!(
        "-s3.config={}",
        directory.join("s3.json").display()
    ));
    leash.args([
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-admin.ui=false",
        "-webdav=false",
    ]);
    leash.args([
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
    ]);
    // Each bucket takes volumes of its own; how many there may be is else reckoned from free disk space.
    leash.args(["-master.volumeSizeLimitMB=64", "-volume.max=1000"]);
    for (name, port) in [
        ("master.port", master),
        ("master.port.grpc", master_grpc),
        ("volume.port", volume),
        ("volume.port.grpc", volume_grpc),
        ("filer.port", filer),
        ("filer.port.grpc", filer_grpc),
        ("s3.port", s3),
        ("s3.port.grpc", s3_grpc),
        ("admin.port.grpc", admin_grpc),
        ("s3.port.https", https),
    ] {
        leash.arg(format!("-{name}={port}"));
    }
    let authority = Authority::new();
    let (certificate, key) = (directory.join("s3.crt"), directory.join("s3.key"));
    authority.issue(&["localhost", "127.0.0.1"], &certificate, &key);
    let ca = directory.join("ca.crt");
    std::fs::write(&ca, authority.certificate()).expect("write the authority's certificate");
    leash.arg(format!("-s3.cert.file={}", certificate.display()));
    leash.arg(format!("-s3.key.file={}", key.display()));
    leash
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    std::fs::create_dir(directory.join("data")).expect("make the store's folder");
    let leash = process::spawn(leash);

    let client = Client {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, s3)),
        access_key: ACCESS_KEY.to_owned(),
        secret_key: SECRET_KEY.to_owned(),
    };
    wait_until(
        "the object store lists its buckets",
        Duration::from_secs(60),
        || {
            let answer = client.request("GET", "/", &[], b"").ok()?;
            (answer.status == 200).then_some(())
        },
    );
    Server {
        client,
        https,
        ca,
        _ports: ports,
        _directory_lock: lock,
        _leash: leash,
    }
}

/// A bucket of one test.
#[derive(Debug)]
pub(crate) struct Bucket {
    name: String,
    client: Client,
}

impl Bucket {
    /// A fresh, empty bucket.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let bucket = Self {
            name,
            client: SERVER.client.clone(),
        };
        // A server that has just started may list its buckets before it can make one.
        wait_until("a bucket is made", Duration::from_secs(60), || {
            (bucket.request("PUT", "", &[], b"").status == 200).then_some(())
        });
        bucket
    }

    /// The bucket of nobody in particular, asked for with a secret that is not the right one.
    pub(crate) fn with_wrong_secret() -> Self {
        let mut bucket = Self::new();
        bucket.client.secret_key.push('x');
        bucket
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Host and port of the store, which speaks HTTP there.
    pub(crate) fn address(&self) -> SocketAddr {
        self.client.address
    }

    /// URL of a repository at `prefix` of this bucket.
    pub(crate) fn url(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}", self.name)
    }

    /// What `walden` needs in its environment to reach the bucket.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        [
            ("AWS_ACCESS_KEY_ID", self.client.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.client.secret_key.clone()),
            (
                "AWS_ENDPOINT_URL",
                format!("http://{}", self.client.address),
            ),
            ("AWS_REGION", self.client.region().to_owned()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// The same store over TLS. Its certificate is for `localhost` and 127.0.0.1.
    pub(crate) fn https_endpoint(&self) -> String {
        format!("https://localhost:{}", SERVER.https)
    }

    /// PEM file of the only authority that vouches for [`Self::https_endpoint`].
    pub(crate) fn ca_file(&self) -> &'static Path {
        &SERVER.ca
    }

    /// One raw request for `key`; anything but an answer fails the test.
    #[track_caller]
    pub(crate) fn request(
        &self,
        method: &str,
        key: &str,
        query: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let path = format!("/{}/{key}", self.name);
        let path = if key.is_empty() {
            format!("/{}", self.name)
        } else {
            path
        };
        match self.client.request(method, &path, query, body) {
            Ok(answer) => answer,
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    #[track_caller]
    fn expect(&self, method: &str, key: &str, query: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let answer = self.request(method, key, query, body);
        let text = String::from_utf8_lossy(&answer.body);
        assert!(
            (200..300).contains(&answer.status),
            "{method} {key}: {} {text}",
            answer.status
        );
        answer.body
    }

    /// Stores an object, replacing what is there.
    #[track_caller]
    pub(crate) fn put(&self, key: &str, body: &[u8]) {
        self.expect("PUT", key, &[], body);
    }

    #[track_caller]
    pub(crate) fn get(&self, key: &str) -> Vec<u8> {
        self.expect("GET", key, &[], b"")
    }

    #[track_caller]
    pub(crate) fn delete(&self, key: &str) {
        self.expect("DELETE", key, &[], b"");
    }

    /// All keys below `prefix`, in order.
    #[track_caller]
    pub(crate) fn list(&self, prefix: &str) -> Vec<String> {
        let mut keys = Vec::new();
        let mut after = String::new();
        loop {
            let query = [
                ("list-type", "2"),
                ("prefix", prefix),
                ("start-after", after.as_str()),
            ];
            let page = self.expect("GET", "", &query, b"");
            let page = String::from_utf8(page).expect("a listing is UTF-8");
            keys.extend(page.split("<Key>").skip(1).filter_map(|rest| {
                let key = rest.split_once("</Key>")?.0;
                Some(
                    key.replace("&lt;", "<")
                        .replace("&gt;", ">")
                        .replace("&amp;", "&"),
                )
            }));
            if !page.contains("<IsTruncated>true") {
                return keys;
            }
            keys.last()
                .expect("a truncated page holds a key")
                .clone_into(&mut after);
        }
    }
}

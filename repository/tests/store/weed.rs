//! One SeaweedFS for all tests of this binary: HTTP and HTTPS, three kinds of rights. It dies with the test process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use repository::{Deadlines, Store, StoreOptions};

const START_DEADLINE: Duration = Duration::from_secs(60);

const IDENTITIES: &str = r#"{"identities":[
  {"name":"writer","credentials":[{"accessKey":"writer-key","secretKey":"writer-secret-0123"}],"actions":["Read","Write","List"]},
  {"name":"reader","credentials":[{"accessKey":"reader-key","secretKey":"reader-secret-0123"}],"actions":["Read","List"]}
]}"#;

pub(crate) struct Weed {
    pub(crate) http: String,
    pub(crate) https: String,
    pub(crate) ca_file: PathBuf,
    folder: tempfile::TempDir,
}

/// The server, started by whoever asks first; `None` (and said so) where there is no `weed` program.
pub(crate) fn weed(test: &str) -> Option<&'static Weed> {
    static SERVER: OnceLock<Option<Weed>> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        std::env::var_os("WALDEN_TEST_WEED").map(|program| Weed::start(Path::new(&program)))
    });
    if server.is_none() {
        crate::not_run(
            test,
            "WALDEN_TEST_WEED does not name the program `weed` of SeaweedFS",
        );
    }
    server.as_ref()
}

impl Weed {
    fn start(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("data")).unwrap();
        std::fs::write(at("s3.json"), IDENTITIES).unwrap();
        write_certificates(folder.path());

        // Other test processes choose ports too: one chooses at a time, until its server listens.
        let lock =
            std::fs::File::create(std::env::temp_dir().join("walden-test-ports.lock")).unwrap();
        lock.lock().unwrap();
        let ports = free_ports(8);
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .arg("mini")
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
        let names = [
            "master.port",
            "volume.port",
            "filer.port",
            "s3.port",
            "s3.port.https",
            "admin.port",
        ];
        command.args(
            names
                .iter()
                .zip(&ports)
                .map(|(name, port)| format!("-{name}={port}")),
        );
        command.args([
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.autoCreateBucket=false",
        ]);
        command.args(["-bucket=wal", &format!("-dir={}", at("data").display())]);
        command.arg(format!("-s3.config={}", at("s3.json").display()));
        command.arg(format!("-s3.cert.file={}", at("cert.pem").display()));
        command.arg(format!("-s3.key.file={}", at("key.pem").display()));
        let log = std::fs::File::create(at("log")).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .current_dir(folder.path());
        // The kernel's parent death signal follows the thread, not the process: the child belongs to a thread that never ends.
        std::thread::spawn(move || {
            let status = command.spawn().and_then(|mut child| child.wait());
            crate::not_run("SeaweedFS", &format!("ended: {status:?}"));
            std::thread::park();
        });
        let weed = Weed {
            http: format!("http://127.0.0.1:{}", ports[3]),
            https: format!("https://127.0.0.1:{}", ports[4]),
            ca_file: at("ca.pem"),
            folder,
        };
        weed.wait_until_ready();
        weed
    }

    fn wait_until_ready(&self) {
        let store = self.store(&self.http, "ready", "writer");
        let log = self.folder.path().join("log");
        // A thread of its own: the caller is inside a runtime already.
        let asking = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let started = Instant::now();
            loop {
                let answer =
                    runtime.block_on(store.put_new(&format!("{:?}", started.elapsed()), "x"));
                if answer.is_ok() || started.elapsed() > START_DEADLINE {
                    return answer;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let answer = asking.join().unwrap();
        assert!(
            answer.is_ok(),
            "SeaweedFS does not answer: {answer:?}\n{}",
            std::fs::read_to_string(log).unwrap_or_default()
        );
    }

    /// A store in a folder of its own, as `writer` or `reader`.
    pub(crate) fn store(&self, endpoint: &str, folder: &str, identity: &str) -> Store {
        Store::open(
            &format!("s3://wal/{folder}"),
            self.options(endpoint, identity),
        )
        .unwrap()
    }

    pub(crate) fn options(&self, endpoint: &str, identity: &str) -> StoreOptions {
        StoreOptions {
            endpoint: Some(endpoint.to_owned()),
            region: Some("us-east-1".into()),
            access_key_id: Some(format!("{identity}-key")),
            secret_access_key: Some(format!("{identity}-secret-0123")),
            deadlines: Deadlines {
                request: Duration::from_secs(20),
                total: Duration::from_secs(60),
            },
            ..StoreOptions::default()
        }
    }
}

/// Ports whose gRPC twins (10000 above) are free too.
fn free_ports(count: usize) -> Vec<u16> {
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let start = 10_000 + (std::process::id() % 9000) as u16;
    let ports: Vec<u16> = (start..20_000)
        .chain(10_000..start)
        .filter(|&port| is_free(port) && is_free(port + 10_000))
        .take(count)
        .collect();
    assert_eq!(ports.len(), count, "no free ports");
    ports
}

/// `ca.pem`, and `cert.pem` with `key.pem` for 127.0.0.1 signed by it; `other-ca.pem` signed nothing.
fn write_certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let authority = || {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
    };
    let (ca, other) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".into()])
        .unwrap()
        .signed_by(&key, &ca)
        .unwrap();
    let files = [
        ("ca.pem", ca.pem()),
        ("other-ca.pem", other.pem()),
        ("cert.pem", leaf.pem()),
        ("key.pem", key.serialize_pem()),
    ];
    for (name, pem) in files {
        std::fs::write(folder.join(name), pem).unwrap();
    }
}

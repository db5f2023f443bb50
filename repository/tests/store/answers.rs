//! `s3://` against a scripted server: what each odd answer of a store or of something in between is taken for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use repository::store::MAX_CONCURRENT_REQUESTS;
use repository::{Deadlines, Error, ErrorClass, PutOutcome, Store, StoreOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SECRET: &str = "hunter2-hunter2";

/// One answer, to one request on one connection.
#[derive(Clone)]
enum Answer {
    /// Status line without `HTTP/1.1`, further headers, body.
    Http(&'static str, &'static str, String),
    /// As announced `Content-Length`, then so many bytes less.
    Cut(usize, usize),
    /// The request is read and the connection closed: the lost reply.
    Close,
    /// The request is read and nothing more happens.
    Silence,
}

#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<String>>,
    now: AtomicUsize,
    most: AtomicUsize,
}

fn error(status: &'static str, code: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>words of {code}</Message></Error>"
    );
    Answer::Http(status, "", body)
}

fn object(body: &str) -> Answer {
    Answer::Http(
        "200 OK",
        "Last-Modified: Sun, 22 Nov 2026 11:00:00 GMT\r\nETag: \"1\"\r\n",
        body.into(),
    )
}

/// Answers in the order of requests, the last one again and again.
async fn serve(answers: Vec<Answer>) -> (String, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Seen::default());
    let shared = Arc::clone(&seen);
    let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (seen, answers) = (Arc::clone(&shared), Arc::clone(&answers));
            tokio::spawn(async move {
                seen.most.fetch_max(
                    seen.now.fetch_add(1, Ordering::SeqCst) + 1,
                    Ordering::SeqCst,
                );
                answer_one(stream, &seen, &answers).await;
                seen.now.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (endpoint, seen)
}

async fn answer_one(mut stream: TcpStream, seen: &Seen, answers: &Mutex<VecDeque<Answer>>) {
    let mut request = Vec::new();
    let head = loop {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        request.extend_from_slice(&buffer[..read]);
        if let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            break String::from_utf8_lossy(&request[..end + 4]).into_owned();
        }
        if read == 0 {
            return;
        }
        if !request[0].is_ascii_uppercase() {
            // As web servers answer what is no HTTP, for example the beginning of TLS.
            return stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
        }
    };
    let length: usize = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length:")
                .map(|value| value.trim().parse().unwrap())
        })
        .unwrap_or(0);
    let mut missing = (head.len() + length).saturating_sub(request.len());
    while missing > 0 {
        let mut buffer = vec![0; missing.min(65536)];
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => missing -= read,
            _ => return,
        }
    }
    seen.requests.lock().unwrap().push(head);
    let answer = {
        let mut answers = answers.lock().unwrap();
        if answers.len() > 1 {
            answers.pop_front()
        } else {
            answers.front().cloned()
        }
    };
    let bytes = match answer.unwrap() {
        Answer::Http(status, headers, body) => {
            tokio::time::sleep(Duration::from_millis(5)).await;
            format!(
                "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
        }
        Answer::Cut(length, sent) => format!(
            "HTTP/1.1 200 OK\r\nLast-Modified: Sun, 22 Nov 2026 11:00:00 GMT\r\nETag: \"1\"\r\nContent-Length: {length}\r\n\r\n{}",
            "x".repeat(sent)
        ),
        Answer::Close => return,
        Answer::Silence => return std::future::pending().await,
    };
    // The client may be gone; that is its business.
    if stream.write_all(bytes.as_bytes()).await.is_ok() && stream.shutdown().await.is_err() {}
}

fn store(endpoint: &str, request: Duration, total: Duration) -> Store {
    let deadlines = Deadlines { request, total };
    let options = StoreOptions {
        deadlines,
        ..options(endpoint)
    };
    Store::open("s3://bucket/prefix", options).unwrap()
}

fn options(endpoint: &str) -> StoreOptions {
    StoreOptions {
        endpoint: Some(endpoint.into()),
        access_key_id: Some("id".into()),
        secret_access_key: Some(SECRET.into()),
        ..StoreOptions::default()
    }
}

fn quick(endpoint: &str) -> Store {
    store(endpoint, Duration::from_secs(5), Duration::from_secs(1))
}

#[tokio::test]
async fn what_a_read_takes_each_answer_for() {
    let cases = [
        (
            error("404 Not Found", "NoSuchKey"),
            ErrorClass::NotFound,
            "no such object",
        ),
        (
            error("404 Not Found", "NoSuchBucket"),
            ErrorClass::Config,
            "bucket does not exist",
        ),
        (
            Answer::Http("404 Not Found", "", "<html>nginx</html>".into()),
            ErrorClass::Config,
            "not as an S3 service",
        ),
        (
            error("403 Forbidden", "AccessDenied"),
            ErrorClass::Config,
            "access denied",
        ),
        (
            error("401 Unauthorized", "InvalidAccessKeyId"),
            ErrorClass::Config,
            "access denied",
        ),
        (
            error("403 Forbidden", "RequestTimeTooSkewed"),
            ErrorClass::Config,
            "clock",
        ),
        (
            error("403 Forbidden", "InvalidObjectState"),
            ErrorClass::Config,
            "archive storage class",
        ),
        (
            error("400 Bad Request", "ExpiredToken"),
            ErrorClass::Config,
            "access denied",
        ),
        (
            error("400 Bad Request", "AuthorizationHeaderMalformed"),
            ErrorClass::Config,
            "region",
        ),
        (
            error("400 Bad Request", "SomethingNew"),
            ErrorClass::Config,
            "refuses",
        ),
        (
            error("400 Bad Request", "RequestTimeout"),
            ErrorClass::Retry,
            "unavailable",
        ),
        (
            error("301 Moved Permanently", "PermanentRedirect"),
            ErrorClass::Config,
            "region",
        ),
        (
            Answer::Http("307 Temporary Redirect", "", String::new()),
            ErrorClass::Config,
            "region",
        ),
        (
            error("500 Internal Server Error", "InternalError"),
            ErrorClass::Retry,
            "unavailable",
        ),
        (
            error("503 Slow Down", "SlowDown"),
            ErrorClass::Retry,
            "unavailable",
        ),
        (
            error("429 Too Many Requests", "TooMany"),
            ErrorClass::Retry,
            "unavailable",
        ),
        (
            Answer::Http("502 Bad Gateway", "", "<html>".into()),
            ErrorClass::Retry,
            "unavailable",
        ),
        (
            error("507 Insufficient Storage", "XMinioStorageFull"),
            ErrorClass::Retry,
            "no space left",
        ),
        (Answer::Cut(100, 40), ErrorClass::Retry, "unavailable"),
        (Answer::Close, ErrorClass::Retry, "unavailable"),
    ];
    for (answer, class, words) in cases {
        let (endpoint, _) = serve(vec![answer]).await;
        let error = quick(&endpoint)
            .fetch("some/object", 1000)
            .await
            .unwrap_err();
        let shown = format!("{error}: {error:?}");
        assert_eq!(error.class(), class, "{shown}");
        assert!(error.to_string().contains(words), "{words}: {shown}");
        assert!(
            error.to_string().contains("s3://bucket/prefix/some/object"),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn what_a_put_takes_each_answer_for() {
    for (answer, expected) in [
        (
            Answer::Http("200 OK", "ETag: \"1\"\r\n", String::new()),
            PutOutcome::Created,
        ),
        (
            error("412 Precondition Failed", "PreconditionFailed"),
            PutOutcome::AlreadyExists,
        ),
        (
            error("409 Conflict", "ConditionalRequestConflict"),
            PutOutcome::AlreadyExists,
        ),
    ] {
        let (endpoint, seen) = serve(vec![answer]).await;
        assert_eq!(
            quick(&endpoint).put_new("x", "body").await.unwrap(),
            expected
        );
        let requests = seen.requests.lock().unwrap();
        assert_eq!(requests.len(), 1);
        assert!(
            requests[0]
                .to_ascii_lowercase()
                .contains("if-none-match: *"),
            "{requests:?}"
        );
    }
    let stored = Answer::Http("200 OK", "ETag: \"1\"\r\n", String::new());
    let (endpoint, seen) = serve(vec![stored]).await;
    let options = StoreOptions {
        storage_class: Some("STANDARD_IA".into()),
        ..options(&endpoint)
    };
    let store = Store::open("s3://bucket/prefix", options).unwrap();
    assert_eq!(
        store.put_new("x", "body").await.unwrap(),
        PutOutcome::Created
    );
    let request = seen.requests.lock().unwrap()[0].to_ascii_lowercase();
    assert!(
        request.contains("x-amz-storage-class: standard_ia"),
        "{request}"
    );
    let (endpoint, _) = serve(vec![error("501 Not Implemented", "NotImplemented")]).await;
    let refused = quick(&endpoint).put_new("x", "body").await.unwrap_err();
    assert!(
        refused.class() == ErrorClass::Config && refused.to_string().contains("conditional"),
        "{refused:?}"
    );
    let (endpoint, _) = serve(vec![error("404 Not Found", "NoSuchKey")]).await;
    assert_eq!(
        quick(&endpoint)
            .put_new("x", "body")
            .await
            .unwrap_err()
            .class(),
        ErrorClass::Retry
    );
}

#[tokio::test]
async fn a_lost_reply_becomes_the_question_already_exists() {
    let (endpoint, seen) = serve(vec![
        Answer::Close,
        error("412 Precondition Failed", "PreconditionFailed"),
    ])
    .await;
    assert_eq!(
        quick(&endpoint).put_new("x", "body").await.unwrap(),
        PutOutcome::AlreadyExists
    );
    assert_eq!(seen.requests.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn passing_trouble_is_retried_and_a_cut_body_read_again() {
    let trouble = [
        error("503 Slow Down", "SlowDown"),
        Answer::Close,
        Answer::Cut(4, 2),
        object("good"),
    ];
    let (endpoint, seen) = serve(trouble.to_vec()).await;
    let store = store(&endpoint, Duration::from_secs(5), Duration::from_secs(20));
    assert_eq!(store.fetch("x", 100).await.unwrap(), "good");
    assert_eq!(seen.requests.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn an_object_larger_than_the_limit_is_not_read() {
    let (endpoint, _) = serve(vec![Answer::Cut(usize::MAX / 2, 10)]).await;
    let error = quick(&endpoint).fetch("x", 1 << 20).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::ObjectTooLarge {
                limit: 1_048_576,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn silence_ends_at_the_deadlines() {
    for answer in [Answer::Silence, Answer::Cut(100, 0)] {
        let (endpoint, seen) = serve(vec![answer]).await;
        let store = store(
            &endpoint,
            Duration::from_millis(200),
            Duration::from_millis(900),
        );
        let started = Instant::now();
        let error = store.fetch("x", 1000).await.unwrap_err();
        assert!(
            matches!(error, Error::Unavailable { attempts: 2.., .. }),
            "{error:?}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(3),
            "{:?}",
            started.elapsed()
        );
        assert!(seen.requests.lock().unwrap().len() >= 2);
    }
}

#[tokio::test]
async fn a_refused_connection_says_so_within_the_total_deadline() {
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = quick(&format!("http://127.0.0.1:{port}"))
        .fetch("x", 1)
        .await
        .unwrap_err();
    let Error::Unavailable {
        attempts, source, ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert!(*attempts >= 3, "{error:?}");
    assert!(source.to_string().contains("refused"), "{source}");
}

#[tokio::test]
async fn what_the_store_says_is_shown_without_secrets() {
    let body = format!(
        "<Error><Code>SignatureDoesNotMatch</Code><Message>key {SECRET} at https://h/x?X-Amz-Signature=deadbeef</Message>\
         <StringToSign>AWS4-HMAC-SHA256 private</StringToSign></Error>"
    );
    let (endpoint, _) = serve(vec![Answer::Http("403 Forbidden", "", body)]).await;
    let error = quick(&endpoint).fetch("x", 1).await.unwrap_err();
    let shown = format!("{error:?}");
    assert!(shown.contains("SignatureDoesNotMatch"), "{shown}");
    for secret in [SECRET, "deadbeef", "AWS4-HMAC", "private"] {
        assert!(!shown.contains(secret), "{secret}: {shown}");
    }
}

#[tokio::test]
async fn plain_http_needs_permission_and_tls_needs_tls() {
    let options = StoreOptions {
        endpoint: Some("http://127.0.0.1:1".into()),
        allow_http: Some(false),
        access_key_id: Some("id".into()),
        secret_access_key: Some(SECRET.into()),
        ..StoreOptions::default()
    };
    let error = Store::open("s3://bucket", options.clone()).unwrap_err();
    assert!(error.to_string().contains("not encrypted"), "{error}");
    for (endpoint, words) in [
        ("127.0.0.1:9000", "write https://host:port"),
        ("ftp://x", "must begin with"),
        ("http://u:p@x", "credentials"),
    ] {
        let options = StoreOptions {
            endpoint: Some(endpoint.into()),
            allow_http: None,
            ..options.clone()
        };
        let error = Store::open("s3://bucket", options).unwrap_err();
        assert!(error.to_string().contains(words), "{endpoint}: {error}");
    }
    let (endpoint, _) = serve(vec![object("x")]).await;
    let error = quick(&endpoint.replace("http:", "https:"))
        .fetch("x", 1)
        .await
        .unwrap_err();
    assert!(
        error.class() == ErrorClass::Config && error.to_string().contains("does not speak TLS"),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_opens_no_more_connections_than_the_limit() {
    let (endpoint, seen) = serve(vec![object("x")]).await;
    let store = store(&endpoint, Duration::from_secs(10), Duration::from_secs(20));
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.fetch("x", 1).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(seen.requests.lock().unwrap().len(), 100);
    let most = seen.most.load(Ordering::SeqCst);
    // A closed connection may still be counted while its successor opens.
    assert!(
        most > 1 && most <= 2 * MAX_CONCURRENT_REQUESTS,
        "{most} connections at a time"
    );
}

/// The other side of this test runs as a process without `AWS_*` variables, where the instance's metadata service has no role to give.
#[tokio::test]
async fn no_credentials_anywhere_is_configuration_and_said_at_once() {
    const MARK: &str = "WALDEN_TEST_NO_CREDENTIALS";
    if let Some(endpoint) = std::env::var_os(MARK) {
        let options = StoreOptions {
            endpoint: endpoint.into_string().ok(),
            ..StoreOptions::default()
        };
        let error = Store::open("s3://bucket", options)
            .unwrap()
            .fetch("x", 1)
            .await
            .unwrap_err();
        assert!(
            error.class() == ErrorClass::Config && error.to_string().contains("no credentials"),
            "{error:?}"
        );
        return;
    }
    let (endpoint, _) = serve(vec![Answer::Http("404 Not Found", "", "no role".into())]).await;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_"))
    {
        child.env_remove(name);
    }
    let child = child
        .args([
            "--exact",
            "answers::no_credentials_anywhere_is_configuration_and_said_at_once",
            "--nocapture",
        ])
        .env(MARK, &endpoint)
        .env("AWS_METADATA_ENDPOINT", &endpoint)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(30), child)
        .await
        .unwrap()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

//! The proxy before an object store: plain HTTP, request by request. It also keeps the books that no store keeps: every write that
//! succeeded, so that a second one to the same key is seen, and every request's fate, so that retries can be counted.

use super::http::{Answer, Head};
use super::{Fault, Rule, Rules, Victim, close_sending, hold, listing, pause, reset};
use crate::support::object_store::Bucket;
use std::collections::BTreeMap;
use std::io::{BufReader, Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Requests whose fate is kept; of older ones only the counts.
const MAX_KEPT: usize = 20_000;
/// No store takes longer for what these tests ask.
const STORE_DEADLINE: Duration = Duration::from_secs(60);

/// What became of a request.
#[derive(Debug, Clone)]
pub(crate) struct Fate {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) arrived: Instant,
    pub(crate) fault: Option<Fault>,
    /// Until the answer was sent, or the asker gave up.
    pub(crate) took: Duration,
}

/// Before one bucket's store. Ends with its test; then what is held is let go.
#[derive(Debug)]
pub(crate) struct StoreProxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: SocketAddr,
    rules: Mutex<Rules>,
    books: Mutex<Books>,
    victim: Victim,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Books {
    fates: Vec<Fate>,
    /// Requests that arrived, by method.
    requests: BTreeMap<String, u64>,
    /// Writes that the store said it did, by target: how many, and the last.
    written: BTreeMap<String, (u32, Instant)>,
    /// Keys that were left out of listings by chance.
    unlisted: Vec<String>,
    /// What must never be asked.
    offences: Vec<String>,
}

impl StoreProxy {
    pub(crate) fn before(bucket: &Bucket, seed: u64) -> Self {
        let store = bucket.address();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            store,
            rules: Mutex::new(Rules::new(seed)),
            books: Mutex::default(),
            victim: Victim::default(),
            closed: AtomicBool::new(false),
        });
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if own.closed.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&own);
                // A connection that breaks is what this is about.
                std::thread::spawn(move || shared.serve(client).unwrap_or_default());
            }
        });
        Self { port, shared }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn arm(&self, rules: impl IntoIterator<Item = Rule>) {
        self.shared.rules().rules.extend(rules);
    }

    /// No more faults. Fails the test if one of them has not happened yet.
    #[track_caller]
    pub(crate) fn calm(&self) {
        let mut rules = self.shared.rules();
        let unfired = rules.unfired();
        rules.rules.clear();
        drop(rules);
        let seen = self.shared.books().requests.clone();
        assert!(
            unfired.is_empty(),
            "these faults did not happen: {unfired:#?} in {seen:?}"
        );
    }

    /// Whether every fault that is armed has happened.
    pub(crate) fn all_fired(&self) -> bool {
        self.shared.rules().unfired().is_empty()
    }

    /// Faults that happened so far, by name.
    pub(crate) fn fired(&self) -> BTreeMap<String, u32> {
        self.shared.rules().fired.clone()
    }

    /// Whom the next kill meets.
    pub(crate) fn victim(&self, process: u32) {
        self.shared.victim.0.store(process, Ordering::SeqCst);
    }

    /// Requests that arrived so far.
    pub(crate) fn requests(&self) -> u64 {
        self.shared.books().requests.values().sum()
    }

    /// Keys that were left out of listings by chance since the last time.
    pub(crate) fn take_unlisted(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.books().unlisted)
    }

    /// What became of the requests since the last time.
    pub(crate) fn take_fates(&self) -> Vec<Fate> {
        std::mem::take(&mut self.shared.books().fates)
    }

    /// Fails the test unless every write was one that creates, no key was written twice and nothing was deleted.
    #[track_caller]
    pub(crate) fn assert_write_once(&self) {
        let books = self.shared.books();
        assert!(books.offences.is_empty(), "{:#?}", books.offences);
        let twice = books.written.iter().filter(|(_, (count, _))| *count > 1);
        assert_eq!(Vec::from_iter(twice), Vec::new(), "written twice");
    }
}

impl Drop for StoreProxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // Wakes the thread that listens.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        if !std::thread::panicking() {
            let unfired = self.shared.rules().unfired();
            assert!(
                unfired.is_empty(),
                "these faults did not happen: {unfired:#?}"
            );
        }
    }
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().expect("nobody panics with the rules")
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("nobody panics with the books")
    }

    fn serve(&self, client: TcpStream) -> Result<()> {
        client.set_nodelay(true)?;
        let mut reader = BufReader::new(client.try_clone()?);
        while let Some(head) = Head::read(&mut reader)? {
            let arrived = Instant::now();
            let (method, target) = (head.word(0).to_owned(), head.word(1).to_owned());
            let fault = self.rules().decide(&method, &target);
            {
                let mut books = self.books();
                *books.requests.entry(method.clone()).or_default() += 1;
                let creates = head.header("if-none-match") == Some("*");
                if method == "DELETE" || method == "POST" || (method == "PUT" && !creates) {
                    books.offences.push(format!("{method} {target}"));
                }
            }
            let exchange = Exchange {
                shared: self,
                client: client.try_clone()?,
                head,
            };
            let mut status = None;
            let goes_on = exchange.run(fault, &mut reader, &mut status);
            let mut books = self.books();
            if let (Some(200..300), "PUT") = (status, method.as_str()) {
                let now = Instant::now();
                let (count, last) = books.written.entry(target.clone()).or_insert((0, now));
                (*count, *last) = (*count + 1, now);
            }
            if books.fates.len() < MAX_KEPT {
                books.fates.push(Fate {
                    method,
                    target,
                    arrived,
                    fault,
                    took: arrived.elapsed(),
                });
            }
            drop(books);
            if !goes_on? {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// One request and what is done with it.
struct Exchange<'a> {
    shared: &'a Shared,
    client: TcpStream,
    head: Head,
}

impl Exchange<'_> {
    /// Whether the connection can be used again.
    fn run(
        mut self,
        fault: Option<Fault>,
        reader: &mut BufReader<TcpStream>,
        status: &mut Option<u16>,
    ) -> Result<bool> {
        let closed = &self.shared.closed;
        let rate = match fault {
            Some(Fault::Bandwidth(rate)) => Some(rate),
            _ => None,
        };
        let body = self.read_body(reader, rate)?;
        match fault {
            Some(Fault::Delay(time)) => pause(time, closed),
            Some(Fault::Stall) => {
                hold(&mut self.client, closed);
                return Ok(false);
            }
            Some(Fault::Reset) => return Ok(self.reset()),
            Some(Fault::HalfClose) => {
                close_sending(&self.client);
                hold(&mut self.client, closed);
                return Ok(false);
            }
            Some(Fault::Status(code)) => {
                self.refuse(code)?;
                return Ok(true);
            }
            Some(Fault::TruncatedRequest) => {
                let mut store = self.connect()?;
                store.write_all(self.head.text.as_bytes())?;
                store.write_all(body.get(..body.len() / 2).unwrap_or_default())?;
                // Time for the store to see that there is no more.
                close_sending(&store);
                pause(Duration::from_millis(100), closed);
                drop(store);
                return Ok(self.reset());
            }
            Some(Fault::KillBefore) => {
                self.shared.victim.kill(closed);
                return Ok(false);
            }
            _ => {}
        }

        let mut answer = self.ask(&body)?;
        *status = Some(answer.status());
        self.falsify(fault, &mut answer);
        let (head, mut body) = (answer.framed(), answer.body.clone());
        let half = body.len() / 2;
        match fault {
            Some(Fault::ReplyLost) => return Ok(self.reset()),
            Some(Fault::KillAfter) => {
                self.shared.victim.kill(closed);
                return Ok(false);
            }
            Some(Fault::FailedAfter) => {
                self.refuse(500)?;
                return Ok(true);
            }
            Some(Fault::StallInAnswer) => {
                let part = body.get(..half).unwrap_or_default();
                match part.is_empty() {
                    true => self.client.write_all(b"HTTP/1.1 200 O")?,
                    false => {
                        self.client.write_all(head.as_bytes())?;
                        self.client.write_all(part)?;
                    }
                }
                hold(&mut self.client, closed);
                return Ok(false);
            }
            Some(Fault::TruncatedAnswer) => {
                let part = body.get(..half).unwrap_or_default();
                match part.is_empty() {
                    true => self.client.write_all(b"HTTP/1.1 200 O")?,
                    false => {
                        self.client.write_all(head.as_bytes())?;
                        self.client.write_all(part)?;
                    }
                }
                return Ok(false);
            }
            Some(Fault::LengthTooLong) => {
                let head = answer.head.with_length(body.len() as u64 + 100);
                self.client.write_all(head.as_bytes())?;
                self.client.write_all(&body)?;
                return Ok(false);
            }
            Some(Fault::LengthTooShort) => {
                let head = answer
                    .head
                    .with_length(body.len().saturating_sub(10) as u64);
                self.client.write_all(head.as_bytes())?;
                self.client.write_all(&body)?;
                return Ok(false);
            }
            Some(Fault::FlippedBit) => {
                if let Some(byte) = body.get_mut(half) {
                    *byte ^= 4;
                }
            }
            Some(Fault::Drip(size, time)) => {
                let whole = [head.as_bytes(), &body].concat();
                for (number, piece) in whole.chunks(size.max(1)).enumerate() {
                    if number < 100 {
                        pause(time, closed);
                    }
                    self.client.write_all(piece)?;
                }
                return Ok(true);
            }
            _ => {}
        }
        self.client.write_all(head.as_bytes())?;
        match rate {
            None => self.client.write_all(&body)?,
            Some(rate) => {
                for piece in body.chunks(step(rate)) {
                    self.client.write_all(piece)?;
                    pause(STEP, closed);
                }
            }
        }
        Ok(true)
    }

    /// Leaves out of a listing what the fault says.
    fn falsify(&self, fault: Option<Fault>, answer: &mut Answer) {
        let left_out: Vec<String> = match fault {
            Some(Fault::ListedAsOf(moment)) => {
                let books = self.shared.books();
                let later = books.written.iter().filter(|(_, (_, at))| *at > moment);
                later.map(|(target, _)| listing::key_of(target)).collect()
            }
            Some(Fault::Unlisted(part)) => {
                let mut keys = listing::keys(&answer.body);
                keys.retain(|key| key.contains(part));
                if keys.is_empty() {
                    return;
                }
                let index = self.shared.rules().random.below(keys.len() as u64);
                let key = keys.swap_remove(usize::try_from(index).expect("few"));
                self.shared.books().unlisted.push(key.clone());
                vec![key]
            }
            _ => return,
        };
        answer.body = listing::without(&answer.body, |key| left_out.iter().any(|out| out == key));
    }

    fn read_body(&self, reader: &mut BufReader<TcpStream>, rate: Option<u32>) -> Result<Vec<u8>> {
        let length = usize::try_from(self.head.length().unwrap_or(0)).expect("64 bits");
        let mut body = vec![0; length];
        match rate {
            None => reader.read_exact(&mut body)?,
            Some(rate) => {
                for piece in body.chunks_mut(step(rate)) {
                    reader.read_exact(piece)?;
                    pause(STEP, &self.shared.closed);
                }
            }
        }
        Ok(body)
    }

    fn connect(&self) -> Result<TcpStream> {
        let store = TcpStream::connect(self.shared.store)?;
        store.set_nodelay(true)?;
        store.set_read_timeout(Some(STORE_DEADLINE))?;
        store.set_write_timeout(Some(STORE_DEADLINE))?;
        Ok(store)
    }

    fn ask(&self, body: &[u8]) -> Result<Answer> {
        let mut store = self.connect()?;
        store.write_all(self.head.text.as_bytes())?;
        store.write_all(body)?;
        Answer::read(&mut BufReader::new(store), self.head.word(0))
    }

    /// An answer as S3 gives it.
    fn refuse(&mut self, status: u16) -> Result<()> {
        let code = match status {
            403 => "ExpiredToken",
            429 => "TooManyRequests",
            503 => "SlowDown",
            507 => "InsufficientStorage",
            _ => "InternalError",
        };
        let mut body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>broken on purpose</Message></Error>"
        );
        let length = body.len();
        if self.head.word(0) == "HEAD" {
            body.clear();
        }
        let head = format!(
            "HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\r\n"
        );
        self.client.write_all((head + &body).as_bytes())
    }

    fn reset(self) -> bool {
        // The reader has another handle to the same connection: a shutdown ends it for both.
        reset(self.client);
        false
    }
}

/// Between two pieces of a transfer of limited speed.
pub(super) const STEP: Duration = Duration::from_millis(20);

/// Bytes of one step at `rate` bytes a second.
pub(super) fn step(rate: u32) -> usize {
    usize::try_from(rate / 50).expect("32 bits").max(1)
}

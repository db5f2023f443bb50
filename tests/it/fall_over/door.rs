//! A door before an object store that shuts for good once so many bytes have come through it: whoever asks then is refused.

use crate::support::object_store::Bucket;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Forwards to the store of a bucket.
pub(crate) struct Door {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Bytes that came from the store.
    passed: AtomicU64,
    /// After so many it shuts.
    budget: AtomicU64,
    /// Whether it then takes connections and answers nothing, instead of closing them.
    hangs: AtomicBool,
}

impl State {
    fn is_shut(&self) -> bool {
        self.passed.load(Ordering::SeqCst) >= self.budget.load(Ordering::SeqCst)
    }
}

impl Door {
    pub(crate) fn before(bucket: &Bucket) -> Self {
        let environment = bucket.environment();
        let endpoint = environment
            .iter()
            .find(|(name, _)| name == "AWS_ENDPOINT_URL");
        let endpoint = endpoint.and_then(|(_, url)| url.strip_prefix("http://"));
        let store = endpoint.expect("a store over HTTP").to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(State::default());
        state.budget.store(u64::MAX, Ordering::SeqCst);
        let shared = Arc::clone(&state);
        // Threads end with their connections, and the listening one with the program.
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for client in listener.incoming().flatten() {
                if shared.is_shut() {
                    if shared.hangs.load(Ordering::SeqCst) {
                        held.push(client);
                    }
                    continue;
                }
                let Ok(server) = TcpStream::connect(&store) else {
                    continue;
                };
                let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else {
                    continue;
                };
                let state = Arc::clone(&shared);
                std::thread::spawn(move || forward(from, to, &state, false));
                let state = Arc::clone(&shared);
                std::thread::spawn(move || forward(server, client, &state, true));
            }
        });
        Self { port, state }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Bytes that came from the store so far.
    pub(crate) fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::SeqCst)
    }

    /// Shuts once so many more have come.
    pub(crate) fn shut_after(&self, bytes: u64) {
        self.state
            .budget
            .store(self.passed() + bytes, Ordering::SeqCst);
    }

    /// The same, and whoever asks then waits for ever.
    pub(crate) fn hang_after(&self, bytes: u64) {
        self.state.hangs.store(true, Ordering::SeqCst);
        self.shut_after(bytes);
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.state.is_shut()
    }

    pub(crate) fn open(&self) {
        self.state.budget.store(u64::MAX, Ordering::SeqCst);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, state: &State, counts: bool) {
    let mut piece = [0; 4 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let read = piece.get(..length).expect("no more is read than fits");
        if state.is_shut() && state.hangs.load(Ordering::SeqCst) {
            // The connection stays, and no byte passes.
            continue;
        }
        if state.is_shut() || to.write_all(read).is_err() {
            break;
        }
        if counts {
            state.passed.fetch_add(length as u64, Ordering::SeqCst);
        }
    }
    for socket in [from, to] {
        // It may be closed already.
        socket.shutdown(Shutdown::Both).unwrap_or_default();
    }
}

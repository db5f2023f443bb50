//! A door before a store: open, shut in the face, or held so that nobody gets an answer. For one repository that is down while another is not.

use crate::support::object_store::Bucket;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// What happens to whoever comes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    Open,
    /// Connections end without an answer.
    Shut,
    /// Nothing gets through, and nothing ends.
    Held,
}

pub(super) struct Door {
    port: u16,
    state: Arc<AtomicU8>,
    /// Pieces that met a door that was not open.
    met: Arc<AtomicU64>,
}

impl Door {
    pub(super) fn before(bucket: &Bucket) -> Self {
        let environment = bucket.environment();
        let endpoint = environment
            .iter()
            .find(|(name, _)| name == "AWS_ENDPOINT_URL");
        let endpoint = endpoint.and_then(|(_, url)| url.strip_prefix("http://"));
        let store = endpoint.expect("a store over HTTP").to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(AtomicU8::new(State::Open as u8));
        let met = Arc::new(AtomicU64::new(0));
        let door = Self { port, state, met };
        let (state, met) = (Arc::clone(&door.state), Arc::clone(&door.met));
        // Threads end with their connections, and the listening one with the program.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&store) else {
                    continue;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
                        continue;
                    };
                    let (state, met) = (Arc::clone(&state), Arc::clone(&met));
                    std::thread::spawn(move || forward(from, to, &state, &met));
                }
            }
        });
        door
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn set(&self, state: State) {
        self.state.store(state as u8, Ordering::SeqCst);
    }

    /// How often somebody has met it closed.
    pub(super) fn met(&self) -> u64 {
        self.met.load(Ordering::SeqCst)
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, state: &AtomicU8, met: &AtomicU64) {
    let mut piece = [0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        if state.load(Ordering::SeqCst) != State::Open as u8 {
            met.fetch_add(1, Ordering::SeqCst);
        }
        while state.load(Ordering::SeqCst) == State::Held as u8 {
            std::thread::sleep(Duration::from_millis(10));
        }
        let is_shut = state.load(Ordering::SeqCst) == State::Shut as u8;
        let read = piece.get(..length).expect("no more is read than fits");
        if is_shut || to.write_all(read).is_err() {
            // Both ways: whoever asked must not wait.
            from.shutdown(Shutdown::Both).unwrap_or_default();
            break;
        }
    }
    to.shutdown(Shutdown::Write).unwrap_or_default();
}

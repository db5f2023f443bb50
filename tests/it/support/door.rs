//! A door before an object store: open, shut in the face, or held so that nobody gets an answer; at once, or when so many more bytes have come
//! from the store. For a store that is down, dies in the middle or hangs. Faults of single requests are the fault proxy's.

use super::object_store::Bucket;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What happens to whoever comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Open,
    /// Connections end without an answer.
    Shut,
    /// Nothing gets through, and nothing ends.
    Held,
}

#[derive(Debug)]
struct State {
    way: Way,
    /// How the door will be once so many bytes have come from the store.
    next: Option<(u64, Way)>,
    /// Bytes that came from the store.
    passed: u64,
    /// Pieces that met a door that was not open.
    met: u64,
}

/// Forwards to the store of a bucket.
pub(crate) struct Door {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    opened: Condvar,
}

impl Door {
    pub(crate) fn before(bucket: &Bucket) -> Self {
        let store = bucket.address();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                way: Way::Open,
                next: None,
                passed: 0,
                met: 0,
            }),
            opened: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        // Threads end with their connections, and the listening one with the program.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(store) else {
                    continue;
                };
                for (from, to, is_answer) in [(&client, &server, false), (&server, &client, true)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
                        continue;
                    };
                    let shared = Arc::clone(&own);
                    std::thread::spawn(move || forward(from, to, &shared, is_answer));
                }
            }
        });
        Self { port, shared }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn way(&self) -> Way {
        self.shared.state().way
    }

    pub(crate) fn set(&self, way: Way) {
        let mut state = self.shared.state();
        (state.way, state.next) = (way, None);
        self.shared.opened.notify_all();
    }

    /// Is so once so many more bytes have come from the store.
    pub(crate) fn set_after(&self, bytes: u64, way: Way) {
        let mut state = self.shared.state();
        state.next = Some((state.passed + bytes, way));
        state.turn();
    }

    /// Returns when it is open again.
    pub(crate) fn hold_for(&self, time: Duration) {
        self.set(Way::Held);
        std::thread::sleep(time);
        self.set(Way::Open);
    }

    /// Bytes that came from the store so far.
    pub(crate) fn passed(&self) -> u64 {
        self.shared.state().passed
    }

    /// How often somebody has met it closed.
    pub(crate) fn met(&self) -> u64 {
        self.shared.state().met
    }
}

impl State {
    fn turn(&mut self) {
        if let Some((_, way)) = self.next.take_if(|(bytes, _)| self.passed >= *bytes) {
            self.way = way;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a piece may pass; waits while the door is held.
    fn admits(&self) -> bool {
        let mut state = self.state();
        state.met += u64::from(state.way != Way::Open);
        let state = self
            .opened
            .wait_while(state, |state| state.way == Way::Held);
        state.unwrap_or_else(PoisonError::into_inner).way == Way::Open
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, shared: &Shared, is_answer: bool) {
    let mut piece = [0; 4 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let read = piece.get(..length).expect("no more is read than fits");
        if !shared.admits() || to.write_all(read).is_err() {
            // Both ways: whoever asked must not wait.
            from.shutdown(Shutdown::Both).unwrap_or_default();
            break;
        }
        if is_answer {
            let mut state = shared.state();
            state.passed += length as u64;
            state.turn();
        }
    }
    // The other direction may be closed already.
    to.shutdown(Shutdown::Write).unwrap_or_default();
}

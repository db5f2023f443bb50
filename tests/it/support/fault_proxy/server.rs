//! The proxy before a PostgreSQL server: bytes of connections, in both directions. A fault happens to the connection in which so many
//! bytes have passed: in the login, in a command or in the middle of a stream. Does not read what passes.

use super::{Fault, LONGEST_HOLD, close_sending, hold, pause, reset};
use crate::support::postgres::Server;
use crate::support::workload::Random;
use rustix::net::sockopt::set_socket_linger;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A connection that is slow is slow for so many bytes.
const SLOW_BYTES: u64 = 256 << 10;

/// Faults for connections to come, in turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trap {
    pub(crate) fault: Fault,
    /// Bytes that have come from the server in a connection before it happens.
    pub(crate) after: u64,
}

/// Before one server. Ends with its test; then what is held is let go.
#[derive(Debug)]
pub(crate) struct ServerProxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    state: Mutex<State>,
    connections: AtomicU64,
    closed: AtomicBool,
}

#[derive(Debug)]
struct State {
    traps: Vec<Trap>,
    /// So many of a hundred connections get one of these, somewhere.
    storm: Option<(u64, Vec<Fault>)>,
    random: Random,
    fired: BTreeMap<String, u32>,
    /// How long the other side bore a silence before it ended the connection.
    held: Vec<Duration>,
}

impl ServerProxy {
    pub(crate) fn before(server: &Server, seed: u64) -> Self {
        let socket = socket_of(server);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            socket,
            state: Mutex::new(State {
                traps: Vec::new(),
                storm: None,
                random: Random::new(seed),
                fired: BTreeMap::new(),
                held: Vec::new(),
            }),
            connections: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if own.closed.load(Ordering::Relaxed) {
                    return;
                }
                own.connections.fetch_add(1, Ordering::Relaxed);
                let shared = Arc::clone(&own);
                std::thread::spawn(move || shared.serve(client));
            }
        });
        Self { port, shared }
    }

    /// As the server's own, through here.
    pub(crate) fn conninfo(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            self.port
        )
    }

    /// The next connections in which so many bytes pass get these, one each, in this order.
    pub(crate) fn arm(&self, traps: impl IntoIterator<Item = Trap>) {
        self.shared.state().traps.extend(traps);
    }

    /// From now on so many of a hundred connections get one of these faults, after a random number of bytes.
    pub(crate) fn storm(&self, percent: u64, faults: &[Fault]) {
        self.shared.state().storm = Some((percent, faults.to_vec()));
    }

    /// Whether every trap was sprung.
    pub(crate) fn all_fired(&self) -> bool {
        self.shared.state().traps.is_empty()
    }

    /// No more faults. Fails the test if a trap was not sprung.
    #[track_caller]
    pub(crate) fn calm(&self) {
        let mut state = self.shared.state();
        state.storm = None;
        let left = std::mem::take(&mut state.traps);
        let connections = self.shared.connections.load(Ordering::Relaxed);
        assert!(
            left.is_empty(),
            "these faults did not happen in {connections} connections: {left:?}"
        );
    }

    /// Faults that happened so far, by name.
    pub(crate) fn fired(&self) -> BTreeMap<String, u32> {
        self.shared.state().fired.clone()
    }

    /// Connections that were made so far.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How long the other side bore each silence that it ended itself.
    pub(crate) fn take_held(&self) -> Vec<Duration> {
        std::mem::take(&mut self.shared.state().held)
    }
}

impl Drop for ServerProxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // Wakes the thread that listens.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        if !std::thread::panicking() {
            let left = self.shared.state().traps.clone();
            assert!(left.is_empty(), "these faults did not happen: {left:?}");
        }
    }
}

fn socket_of(server: &Server) -> PathBuf {
    server
        .socket_directory()
        .join(format!(".s.PGSQL.{}", server.port()))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with the state")
    }

    fn serve(&self, client: TcpStream) {
        // A server that is down: the connection ends.
        let Ok(server) = UnixStream::connect(&self.socket) else {
            return;
        };
        let chance = {
            let mut state = self.state();
            let State { storm, random, .. } = &mut *state;
            storm.as_ref().and_then(|(percent, faults)| {
                let index = random.below(faults.len() as u64);
                let magnitude = random.below(21);
                let after = random.below(1 << magnitude);
                let fault = *faults.get(usize::try_from(index).expect("few"))?;
                (random.below(100) < *percent).then_some(Trap { fault, after })
            })
        };
        let (Ok(up_from), Ok(up_to)) = (client.try_clone(), server.try_clone()) else {
            return;
        };
        let silent = Arc::new(AtomicBool::new(false));
        let is_silent = Arc::clone(&silent);
        let up = std::thread::spawn(move || pass_up(up_from, up_to, &is_silent));
        // Ends with the connection: both of its sides are closed by then or shut down.
        self.pass_down(server, client, chance, &silent, &up);
    }

    /// From the server to the client, and what goes wrong on the way.
    fn pass_down(
        &self,
        mut server: UnixStream,
        mut client: TcpStream,
        mut chance: Option<Trap>,
        silent: &AtomicBool,
        up: &JoinHandle<()>,
    ) {
        let mut passed = 0_u64;
        let mut slow: Option<(Fault, u64)> = None;
        let mut piece = [0; 16 << 10];
        server
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap_or_default();
        loop {
            let length = match server.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if self.closed.load(Ordering::Relaxed) {
                        break;
                    }
                    continue;
                }
                Err(_) => break,
            };
            passed += length as u64;
            slow = slow.filter(|(_, until)| passed <= *until);
            let sprung = match slow {
                Some(_) => None,
                None => self.sprung(passed, &mut chance),
            };
            match sprung {
                None => {}
                Some(Fault::Delay(time)) => pause(time, &self.closed),
                Some(Fault::Stall) => {
                    silent.store(true, Ordering::Relaxed);
                    let time = self.hold_silently(&mut client);
                    self.state().held.push(time);
                    // The server is not told: it finds out by itself.
                    while !self.closed.load(Ordering::Relaxed) {
                        match server.read(&mut piece) {
                            Ok(1..) => {}
                            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                            Ok(0) | Err(_) => break,
                        }
                    }
                    break;
                }
                Some(Fault::StallInAnswer) => {
                    let begun = Instant::now();
                    // The other direction's thread sees the client's end.
                    while !up.is_finished() && !self.closed.load(Ordering::Relaxed) {
                        pause(Duration::from_millis(10), &self.closed);
                    }
                    self.state().held.push(begun.elapsed());
                    break;
                }
                Some(Fault::Reset | Fault::ReplyLost) => {
                    server
                        .shutdown(std::net::Shutdown::Both)
                        .unwrap_or_default();
                    // The other direction's thread holds the socket too: what it waits for ends, so that the last handle goes.
                    set_socket_linger(&client, Some(Duration::ZERO)).unwrap_or_default();
                    client
                        .shutdown(std::net::Shutdown::Read)
                        .unwrap_or_default();
                    reset(client);
                    return;
                }
                Some(Fault::TruncatedAnswer) => {
                    client
                        .write_all(piece.get(..length / 2).unwrap_or_default())
                        .unwrap_or_default();
                    break;
                }
                Some(Fault::HalfClose) => {
                    close_sending(&client);
                    // What the client still says goes to the server, whose answers go nowhere.
                    let until = Instant::now() + Duration::from_secs(5);
                    while Instant::now() < until && !self.closed.load(Ordering::Relaxed) {
                        if matches!(server.read(&mut piece), Ok(0)) {
                            break;
                        }
                    }
                    break;
                }
                Some(fault @ (Fault::Drip(..) | Fault::Bandwidth(_))) => {
                    slow = Some((fault, passed + SLOW_BYTES));
                }
                Some(other) => panic!("{other:?} is no fault of a connection"),
            }
            let bytes = piece.get(..length).unwrap_or_default();
            let slow = slow.map(|(fault, _)| fault);
            if self.send(&mut client, bytes, slow).is_err() {
                break;
            }
        }
        // Ends the other direction too.
        server
            .shutdown(std::net::Shutdown::Both)
            .unwrap_or_default();
        client
            .shutdown(std::net::Shutdown::Both)
            .unwrap_or_default();
    }

    /// The fault whose turn it is once so many bytes have passed.
    fn sprung(&self, passed: u64, chance: &mut Option<Trap>) -> Option<Fault> {
        let mut state = self.state();
        let fault = if state.traps.first().is_some_and(|trap| trap.after < passed) {
            state.traps.remove(0).fault
        } else {
            chance.take_if(|trap| trap.after < passed)?.fault
        };
        *state.fired.entry(fault.name()).or_default() += 1;
        Some(fault)
    }

    /// Until the client ends the connection. The thread of the other direction reads what it sends.
    fn hold_silently(&self, client: &mut TcpStream) -> Duration {
        let begun = Instant::now();
        // Both directions' threads read from it now, and either sees its end.
        let time = hold(client, &self.closed);
        if time < Duration::from_millis(1) {
            pause(Duration::from_millis(1), &self.closed);
        }
        begun.elapsed().min(LONGEST_HOLD)
    }

    fn send(
        &self,
        client: &mut TcpStream,
        bytes: &[u8],
        slow: Option<Fault>,
    ) -> std::io::Result<()> {
        match slow {
            Some(Fault::Drip(size, time)) => {
                for (number, piece) in bytes.chunks(size.max(1)).enumerate() {
                    if number < 20 {
                        pause(time, &self.closed);
                    }
                    client.write_all(piece)?;
                }
                Ok(())
            }
            Some(Fault::Bandwidth(rate)) => {
                for piece in bytes.chunks(super::store::step(rate)) {
                    client.write_all(piece)?;
                    pause(super::store::STEP, &self.closed);
                }
                Ok(())
            }
            _ => client.write_all(bytes),
        }
    }
}

/// From the client to the server; in a silence it is read and forgotten.
fn pass_up(mut client: TcpStream, mut server: UnixStream, silent: &AtomicBool) {
    let mut piece = [0; 16 << 10];
    loop {
        match client.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => {
                let bytes = piece.get(..length).unwrap_or_default();
                if !silent.load(Ordering::Relaxed) && server.write_all(bytes).is_err() {
                    break;
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Err(_) => break,
        }
        if silent.load(Ordering::Relaxed) {
            // Whoever holds the silence sees its end.
            return;
        }
    }
    server
        .shutdown(std::net::Shutdown::Write)
        .unwrap_or_default();
}

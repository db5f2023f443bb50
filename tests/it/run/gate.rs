//! A door before an object store that a test can shut for a while: connections stay open, and no byte passes.

use crate::support::object_store::Bucket;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, RwLock};
use std::time::Duration;

/// Forwards to the store of a bucket.
pub(super) struct Gate {
    port: u16,
    /// Read for each piece that passes, written while the gate is shut.
    door: Arc<RwLock<()>>,
}

impl Gate {
    pub(super) fn before(bucket: &Bucket) -> Self {
        let environment = bucket.environment();
        let endpoint = environment
            .iter()
            .find(|(name, _)| name == "AWS_ENDPOINT_URL");
        let endpoint = endpoint.and_then(|(_, url)| url.strip_prefix("http://"));
        let store = endpoint.expect("a store over HTTP").to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let door = Arc::new(RwLock::new(()));
        let guard = Arc::clone(&door);
        // Threads end with their connections, and the listening one with the program.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&store) else {
                    continue;
                };
                let pairs = [(&client, &server), (&server, &client)];
                for (from, to) in pairs {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
                        continue;
                    };
                    let door = Arc::clone(&guard);
                    std::thread::spawn(move || forward(from, to, &door));
                }
            }
        });
        Self { port, door }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns when it is open again.
    pub(super) fn shut_for(&self, time: Duration) {
        let _shut = self.door.write().expect("nobody panics in the door");
        std::thread::sleep(time);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, door: &RwLock<()>) {
    let mut piece = [0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let _open = door.read().expect("nobody panics in the door");
        let read = piece.get(..length).expect("no more is read than fits");
        if to.write_all(read).is_err() {
            break;
        }
    }
    // The other direction may be closed already.
    to.shutdown(Shutdown::Write).unwrap_or_default();
}

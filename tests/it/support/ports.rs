//! TCP ports for servers of tests: 10000 to 19999, each leased to one test at a time on the whole machine.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 10_000;
const COUNT: u16 = 10_000;

/// A port that nobody else takes while this value lives. The lock is a socket name without a file, so it leaves
/// nothing behind and ends with the program.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _lock: UnixListener,
}

impl Port {
    pub(crate) fn lease() -> Self {
        // Each program starts elsewhere, so that several rarely ask for the same ones.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let start = std::process::id().wrapping_mul(97);
        for _ in 0..COUNT {
            let turn = NEXT.fetch_add(1, Ordering::Relaxed);
            let place = start.wrapping_add(u32::from(turn)) % u32::from(COUNT);
            let number = FIRST + u16::try_from(place).expect("below COUNT");
            let name = SocketAddr::from_abstract_name(format!("walden-it-port-{number}"))
                .expect("a short name");
            if let Ok(lock) = UnixListener::bind_addr(&name)
                && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok()
            {
                return Self {
                    number,
                    _lock: lock,
                };
            }
        }
        panic!(
            "no port is free between {FIRST} and {}",
            FIRST + (COUNT - 1)
        );
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

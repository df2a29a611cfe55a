//! Ports that nobody else takes while a test lives, so that a killed server can come back.
//!
//! They lie below the range from which the system takes ports for outgoing connections. Tests run
//! as processes side by side: each claims its ports by a listener on an abstract socket of that
//! name, which ends with the process however that ends.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};

const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// One claimed port of the loopback address.
pub struct Port {
    pub address: SocketAddr,
    _claim: UnixListener,
}

impl Port {
    /// A port that is free now and stays claimed.
    pub fn claim() -> Self {
        let start = std::process::id().wrapping_mul(61);
        let numbers = (0..u32::from(COUNT)).map(|step| {
            let offset = (start.wrapping_add(step)) % u32::from(COUNT);
            FIRST + u16::try_from(offset).expect("below COUNT")
        });
        let free = numbers.filter_map(Self::try_claim).next();
        free.expect("one of 20,000 ports is free")
    }

    fn try_claim(number: u16) -> Option<Self> {
        let name = UnixAddress::from_abstract_name(format!("tandem-test-port-{number}")).ok()?;
        let claim = UnixListener::bind_addr(&name).ok()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, number));
        TcpListener::bind(address).ok()?;
        Some(Self { address, _claim: claim })
    }
}

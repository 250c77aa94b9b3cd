//! The listeners of a start: which there are, and one of each for every shard.

use crate::io::listener::{ListenError, ListenOptions, Listener};
use crate::server::config::{Bind, Launch};
use crate::server::event::Target;
use std::net::SocketAddr;
use store::session::Transport;

/// Every listener once for each shard.
pub(super) fn deal_listeners(
    launch: &Launch,
    mut first: Vec<Listener>,
) -> Result<Vec<Vec<Listener>>, ListenError> {
    let options = listen_options(launch);
    let mut others = Vec::new();
    for _ in 1..launch.shards {
        others.push(first.iter_mut().map(|listener| listener.another(options)).collect::<Result<_, _>>()?);
    }
    others.insert(0, first);
    Ok(others)
}

fn listen_options(launch: &Launch) -> ListenOptions {
    ListenOptions { backlog: launch.backlog, reuse_port: false }
}

/// Opens every listener the settings ask for: RESP, HTTP, AF_UNIX, in this order.
pub(super) fn open_listeners(launch: &Launch) -> Result<Vec<Listener>, ListenError> {
    let options = listen_options(launch);
    let mut listeners = Vec::new();
    open_tcp(&mut listeners, &launch.bind, launch.port, Transport::Resp, options)?;
    if let Some(port) = launch.http_port {
        open_tcp(&mut listeners, &launch.bind, port, Transport::Http, options)?;
    }
    if let Some(path) = &launch.unix {
        listeners.push(Listener::unix(path, Transport::Resp, options)?);
    }
    Ok(listeners)
}

/// One listener per address, all on one port: a free one is chosen by the first.
fn open_tcp(
    listeners: &mut Vec<Listener>,
    binds: &[Bind],
    mut port: u16,
    transport: Transport,
    options: ListenOptions,
) -> Result<(), ListenError> {
    for bind in binds {
        match Listener::tcp(SocketAddr::new(bind.address, port), transport, options) {
            Ok(listener) => {
                if let Target::Tcp(address) = listener.address() {
                    port = address.port();
                }
                listeners.push(listener);
            }
            Err(error) if bind.optional && error.is_absent_address() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

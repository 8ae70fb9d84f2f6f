//! Asking the plugin that runs on this node what it knows, for the command `devices`.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::devices::state::NodeState;

/// How long the plugin has for its whole answer, which may take it one to hear from the kubelet.
const LIMIT: Duration = Duration::from_secs(2);

/// How long it has to let us in.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// A node with a thousand devices is far below it.
const MAX_ANSWER: usize = 8 << 20;

/// Why nothing was learned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody is there, or nobody who speaks HTTP.
    #[error("no running plugin answers at {address} ({source})")]
    NoAnswer { address: SocketAddr, source: std::io::Error },
    /// Somebody is there, and does not say what a plugin says.
    #[error("what answers at {address} is no running plugin that knows its node: {what}")]
    NoPlugin { address: SocketAddr, what: String },
}

/// What the plugin that was told to listen at `address` says.
pub(crate) fn ask(address: SocketAddr) -> Result<NodeState, AskError> {
    let address = reachable(address);
    let answer = get(address, "/devices").map_err(|source| AskError::NoAnswer { address, source })?;
    let no_plugin = |what: String| AskError::NoPlugin { address, what };
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| no_plugin("no HTTP".to_owned()))?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(no_plugin(format!("{status}, {}", body.lines().next().unwrap_or_default())));
    }
    serde_json::from_str(body).map_err(|error| no_plugin(error.to_string()))
}

/// Where somebody on the same machine finds who listens at `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        // It listens on IPv4 too, which is there more often.
        IpAddr::V6(ip) if ip == Ipv6Addr::UNSPECIFIED => Ipv4Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// One request. The limit holds for all of it, however slowly an answer drips.
fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let end = Instant::now() + LIMIT;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
    stream.set_write_timeout(Some(CONNECT_LIMIT))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 16 << 10];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || answer.len() > MAX_ANSWER {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => break,
            size => answer.extend_from_slice(&part[..size]),
        }
    }
    String::from_utf8(answer).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// What is learned from somebody who answers `answer` and then keeps the connection for `linger`.
    fn ask_one_who_says(answer: &'static str, linger: Duration) -> Result<NodeState, AskError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let other = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // The request has to be read, or closing would cut the answer off.
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).unwrap() > 0);
            drop(stream.write_all(answer.as_bytes()));
            drop(stream.set_read_timeout(Some(linger)));
            if !linger.is_zero() {
                drop(stream.read(&mut request));
            }
        });
        let learned = ask(address);
        other.join().unwrap();
        learned
    }

    #[test]
    fn whoever_listens_everywhere_is_found_at_home() {
        for address in ["0.0.0.0:9413", "[::]:9413"] {
            assert_eq!(reachable(address.parse().unwrap()), "127.0.0.1:9413".parse().unwrap());
        }
        let other: SocketAddr = "10.0.0.7:80".parse().unwrap();
        assert_eq!(reachable(other), other);
    }

    #[test]
    fn nobody_and_somebody_else_are_told_apart() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(ask(free), Err(AskError::NoAnswer { .. })));
        for answer in
            ["SSH-2.0-OpenSSH\r\n", "HTTP/1.1 404 Not Found\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n<html>"]
        {
            let error = ask_one_who_says(answer, Duration::ZERO).unwrap_err();
            assert!(matches!(error, AskError::NoPlugin { .. }), "{answer}: {error}");
        }
    }

    #[test]
    fn an_answer_that_does_not_end_is_not_waited_for() {
        let error = ask_one_who_says("HTTP/1.1 200 OK\r\n\r\n{", Duration::from_mins(1)).unwrap_err();
        assert!(matches!(error, AskError::NoAnswer { .. }), "{error}");
    }
}

//! A client for what the plugin says over HTTP, as simple as can be.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::rig::{LIMIT, Plugin};

/// Listens on a port that is free, and says so in its log.
pub(crate) const ANYWHERE: &str = "--http-address=127.0.0.1:0";

/// An answer in parts.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Plugin {
    /// Where it listens, as its log says.
    pub(crate) async fn address(&self) -> SocketAddr {
        self.wait_for_log(&["over HTTP", "address="]).await;
        let log = self.log();
        let line = log.lines().find(|line| line.contains("over HTTP")).unwrap();
        line.split_once("address=").unwrap().1.trim().parse().unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "").await
    }

    /// `more`: further lines of the request's head.
    pub(crate) async fn request(&self, method: &str, path: &str, more: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address().await).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(LIMIT, stream.read_to_string(&mut answer)).await.expect("no answer").unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// Asks until `is` holds.
    pub(crate) async fn wait_for(&self, path: &str, is: impl Fn(&Answer) -> bool, what: &str) -> Answer {
        let asked = async {
            loop {
                let answer = self.get(path).await;
                if is(&answer) {
                    return answer;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let Ok(answer) = timeout(2 * LIMIT, asked).await else {
            panic!("waited in vain for {what}: {:?}", self.get(path).await)
        };
        answer
    }
}

//! What sqlx 0.9.0 leaves to be set at the sockets of connections to the database.
//!
//! * TCP_NODELAY (launchbadge/sqlx#4335, mended behind it): what goes out in two parts, such as the rows and the end of a COPY, else waits
//!   40 ms for an acknowledgement that the other side delays.
//! * Limits for another side that vanishes without a word (a machine that dies, a network that drops the flow). An answer is waited for without
//!   a limit of ours, since the server cuts its statements; it would never come, and whoever waits would never go on.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Nothing was heard for so long: the other side is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(30);

/// Pause between two such questions.
const QUESTIONS: Duration = Duration::from_secs(5);

/// What was sent, or asked, and is not acknowledged for so long ends the connection. A slow statement is not meant: its bytes are
/// acknowledged when they arrive.
const UNANSWERED: Duration = Duration::from_secs(20);

/// Sets up the connections of this process to a port. sqlx does not show its socket, so it is looked for among the open
/// files; whoever else is connected to that port has no disadvantage by it.
///
/// # Errors
/// When the open files cannot be listed.
pub(crate) fn set_up(port: u16) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(SILENCE).with_interval(QUESTIONS);
    connected_to(port, |socket| {
        // One that was closed meanwhile needs nothing.
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_keepalive(&keepalive);
        #[cfg(target_os = "linux")]
        let _ = socket.set_tcp_user_timeout(Some(UNANSWERED));
    })
}

/// Shows every socket of this process whose other end has the port.
fn connected_to(port: u16, mut see: impl FnMut(&SockRef<'_>)) -> io::Result<()> {
    for file in std::fs::read_dir("/dev/fd")? {
        let Some(number) = file?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        // SAFETY: the file stays open elsewhere. If it is closed just now, what is asked of it fails; if another one has its number by
        // then, it is one of this process, and is asked where it is connected to before anything is set.
        let file = unsafe { BorrowedFd::borrow_raw(number) };
        let socket = SockRef::from(&file);
        let other = socket.peer_addr().ok().and_then(|address| address.as_socket());
        if other.is_some_and(|other| other.port() == port) {
            see(&socket);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    fn delays(port: u16) -> Vec<bool> {
        let mut delays = Vec::new();
        connected_to(port, |socket| delays.push(!socket.tcp_nodelay().unwrap())).unwrap();
        delays
    }

    #[test]
    fn sockets_are_found_by_the_port_they_are_connected_to() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(delays(port).is_empty());
        let socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(delays(port), [true]);
        set_up(port).unwrap();
        assert_eq!((delays(port), socket.nodelay().unwrap()), (vec![false], true));
    }

    #[tokio::test]
    async fn connections_of_a_store_send_at_once_and_notice_silence() {
        let database = engines::testing::database().await;
        let store = Store::connect(database.url(), 2).await.unwrap();
        let apart = store.apart(1, &[]);
        let _held =
            (store.begin("one").await.unwrap(), store.begin("two").await.unwrap(), apart.begin("three").await.unwrap());
        let port = store.pool().connect_options().get_port();
        let delays = delays(port);
        assert!(delays.len() >= 3 && !delays.contains(&true), "{delays:?}");
        connected_to(port, |socket| assert!(socket.keepalive().unwrap())).unwrap();
        #[cfg(target_os = "linux")]
        connected_to(port, |socket| assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNANSWERED))).unwrap();
    }
}

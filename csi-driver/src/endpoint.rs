//! The unix socket the driver serves on: made at start, gone at the end.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;

/// Longest path the kernel takes for a socket, without the final zero byte.
const MAX_PATH_BYTES: usize = 107;

/// What is wrong with an endpoint.
#[derive(Debug, Error)]
pub(crate) enum EndpointError {
    #[error("{0:?} is not an endpoint; write unix:///path/to/csi.sock")]
    NotUnix(String),
    #[error("socket path {0:?} is longer than {MAX_PATH_BYTES} bytes; choose a shorter directory")]
    TooLong(String),
    #[error("{} is served by a running program already; stop that one first", .0.display())]
    InUse(PathBuf),
    #[error("{} is there and is not a socket; remove it or choose another endpoint", .0.display())]
    NotSocket(PathBuf),
    #[error("cannot serve on {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A unix socket by its absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint(PathBuf);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:"));
        let Some(path) = path.filter(|p| p.starts_with('/')) else {
            return Err(EndpointError::NotUnix(text.to_owned()));
        };
        if path.len() > MAX_PATH_BYTES {
            return Err(EndpointError::TooLong(path.to_owned()));
        }
        Ok(Self(PathBuf::from(path)))
    }
}

impl Endpoint {
    /// Listens. What an earlier run left behind is removed; what is in use or no socket is not.
    pub(crate) async fn bind(&self) -> Result<Bound, EndpointError> {
        let path = &self.0;
        let failed = |source| EndpointError::Io { path: path.clone(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(EndpointError::NotSocket(path.clone()));
            }
            Ok(_) if UnixStream::connect(path).await.is_ok() => {
                return Err(EndpointError::InUse(path.clone()));
            }
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        let socket = Socket { path: path.clone(), inode };
        // Whoever can connect can have volumes mounted and removed.
        fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
        Ok(Bound { listener, socket })
    }
}

/// A listening socket. The order of the fields matters: the listener closes first.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: UnixListener,
    socket: Socket,
}

impl Bound {
    /// The connections to come, and the name they come by; drop the name last.
    pub(crate) fn split(self) -> (UnixListenerStream, Socket) {
        (UnixListenerStream::new(self.listener), self.socket)
    }
}

/// The socket's name in the file system; removed when this is dropped, if it is still ours.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    inode: u64,
}

impl Socket {
    pub(crate) fn display(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Whether the name is still that of our socket. The listener must be closed by now: numbers of
    /// inodes come back, so a socket of that number that answers belongs to somebody else.
    fn is_ours(&self) -> bool {
        let same = fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        same && std::os::unix::net::UnixStream::connect(&self.path).is_err()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        if let Err(e) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %e, "socket left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn endpoint(dir: &TempDir) -> Endpoint {
        format!("unix://{}/csi/csi.sock", dir.path().display()).parse().unwrap()
    }

    #[test]
    fn endpoints_are_absolute_unix_paths() {
        for text in ["unix:///a/b.sock", "unix:/a/b.sock"] {
            assert_eq!(text.parse::<Endpoint>().unwrap(), Endpoint(PathBuf::from("/a/b.sock")));
        }
        for text in ["", "/a/b.sock", "unix://", "unix:a", "unix://a/b", "tcp://0.0.0.0:1"] {
            assert!(matches!(text.parse::<Endpoint>(), Err(EndpointError::NotUnix(_))), "{text}");
        }
        let long = format!("unix:///{}", "a".repeat(MAX_PATH_BYTES));
        assert!(matches!(long.parse::<Endpoint>(), Err(EndpointError::TooLong(_))));
    }

    #[tokio::test]
    async fn a_socket_is_gone_with_its_owner() {
        let dir = TempDir::new().unwrap();
        let bound = endpoint(&dir).bind().await.unwrap();
        let path = dir.path().join("csi/csi.sock");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
        let dir = TempDir::new().unwrap();
        let first = endpoint(&dir).bind().await.unwrap();
        let refused = endpoint(&dir).bind().await.unwrap_err();
        assert!(matches!(refused, EndpointError::InUse(_)), "{refused}");
        // The first one dies without cleaning up: nobody listens, the name is left.
        let (incoming, socket) = first.split();
        drop(incoming);
        let second = endpoint(&dir).bind().await.unwrap();
        // The name is another's by now.
        drop(socket);
        assert!(second.socket.path.exists());
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_left_alone() {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("csi")).unwrap();
        let path = dir.path().join("csi/csi.sock");
        fs::write(&path, "mine").unwrap();
        let refused = endpoint(&dir).bind().await.unwrap_err();
        assert!(matches!(refused, EndpointError::NotSocket(_)), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}

//! Serves a volume in memory as the NBD export `disk`, to try clients and to measure the door.
//!
//! `nbd-memory SOCKET [MEBIBYTES]`

use std::path::Path;
use std::sync::Arc;

use lockstep_attach::memory::MemoryBackend;
use lockstep_attach::nbd::{Export, Limits, Server, bind_unix};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().ok_or("usage: nbd-memory SOCKET [MEBIBYTES]")?;
    let mebibytes: u64 = arguments.next().map_or(Ok(1024), |size| size.parse())?;
    let server = Server::new(Limits::default(), CancellationToken::new());
    let backend = Arc::new(MemoryBackend::new(mebibytes << 20));
    server.add(Export::new("disk", backend))?;
    server.serve(bind_unix(Path::new(&socket))?).await;
    Ok(())
}

//! The NBD door: fixed newstyle negotiation, simple and structured replies.
//!
//! [`Server`] serves any number of exports, each a [`Backend`](crate::Backend), to any number of
//! clients over unix sockets and TCP. [`Client`] is the other side, for demonstrations and tests.
//!
//! What is spoken, and what is not:
//!
//! - Options: `EXPORT_NAME`, `ABORT`, `LIST`, `INFO`, `GO`, `STRUCTURED_REPLY`,
//!   `LIST_META_CONTEXT` and `SET_META_CONTEXT` (`base:allocation`). `STARTTLS` and
//!   `EXTENDED_HEADERS` are refused with `ERR_UNSUP`, as is anything unknown.
//! - Commands: all of `READ`, `WRITE`, `FLUSH`, `TRIM`, `CACHE`, `WRITE_ZEROES`, `BLOCK_STATUS`
//!   and `DISC`, with `FUA`, `NO_HOLE`, `DF`, `REQ_ONE` and `FAST_ZERO`.
//! - Block size: 4096 is advertised as the minimum. A client that did not ask for block sizes is
//!   let in all the same, since most of them send whole blocks anyway; a request that is not
//!   aligned gets `EINVAL` and changes nothing.
//!
//! One task serves one connection: it receives, runs the requests concurrently and gathers the
//! replies that are ready into one vectored write. Memory per connection is bounded by
//! [`Limits`]: at a limit the task stops receiving, and the socket pushes back on the client.

mod buffer;
pub mod client;
mod command;
mod export;
mod inbox;
mod limits;
mod listen;
mod negotiate;
mod option;
mod outbox;
pub mod proto;
mod reply;
mod server;
mod transmit;
mod uri;

pub(crate) use buffer::aligned;
pub use client::{Client, ClientError, ConnectOptions};
pub use export::Export;
pub use limits::Limits;
pub use listen::{Listener, bind_unix};
pub use server::{Server, ServerError};
pub use uri::{Address, NbdUri, UriError};

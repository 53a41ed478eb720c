//! The gRPC schema of Lockstep and the types generated from it. No logic lives here.
//!
//! - [`v1`]: the record store as a service (`meta.proto`) and the admin API of the daemon
//!   (`control.proto`, `types.proto`).
//! - [`csi`]: the Container Storage Interface.
//!
//! Each message and field is explained in the `.proto` file it comes from.

/// A moment, as several messages tell it.
pub use prost_types::Timestamp;

/// Lockstep's own services: `Meta` and `Control`.
pub mod v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        rustdoc::all,
        clippy::all,
        reason = "generated code: the .proto files are what is read and reviewed"
    )]
    tonic::include_proto!("lockstep.v1");
}

/// The Container Storage Interface, `csi.v1`.
pub mod csi {
    #![allow(
        missing_docs,
        unreachable_pub,
        rustdoc::all,
        clippy::all,
        reason = "generated code: the .proto files are what is read and reviewed"
    )]
    tonic::include_proto!("csi.v1");
}

//! What a device should be like.

/// What a device should be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// A name for it among those of this node: the volume's id. Safe in a file name.
    pub name: String,
    /// Size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// Writes are refused by the kernel.
    pub read_only: bool,
    /// A write that is answered is durable: the device shows no volatile cache. Otherwise it does,
    /// and takes flush and FUA.
    pub write_through: bool,
    /// Queues, or connections, that the kernel may use at once.
    pub queues: u16,
}

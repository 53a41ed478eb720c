//! Tests of the store from outside: through its operations and its files.

mod crash;
mod disk;
mod twin;
mod world;

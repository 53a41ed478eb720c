//! Tests of the store from outside: through its operations and its files.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

mod barriers;
mod crash;
mod damage;
mod disk;
mod driver;
mod images;
mod services;
mod torn;
mod twin;
mod world;

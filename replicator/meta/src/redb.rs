//! A record store in one file on one machine.
//!
//! The file is a redb database (copy-on-write B-trees; it is whole after any crash). One process at
//! a time has it open; the daemon that does serves it to the others ([`crate::server`]).

use crate::model::start_of_list;
use crate::{
    Entry, Expect, Meta, MetaError, Page, PutError, Revision, Versioned, check_value, key, owner,
};
use ::redb::{
    CommitError, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable,
    TableDefinition, WriteTransaction,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

/// Key to (revision, value).
const ENTRIES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("entries");
/// Two numbers: what this file is, and the revision of its last change.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const FORMAT_KEY: &str = "format";
const REVISION_KEY: &str = "revision";
/// The only layout there is so far.
const FORMAT: u64 = 1;

/// Why a file could not be opened as a record store.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "record store {} is already open in {owner}; only one daemon may own it: point this one \
         at that daemon instead, or stop that one first",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who has it open, as far as is known.
        owner: String,
    },
    /// It was written by another version of this program.
    #[error(
        "record store {} has format {found}, this program reads format {FORMAT}; use the version \
         of Lockstep that wrote it",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says its format is.
        found: u64,
    },
    /// It could not be read or made.
    #[error("cannot open record store {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: Box<::redb::Error>,
    },
    /// Its directory could not be made durable.
    #[error("cannot make the directory of record store {} durable: {source}", path.display())]
    Directory {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

/// An open record store file. Closed when the last clone of its owner is dropped.
///
/// After an error of the disk the store stays unavailable until it is opened again.
pub struct Redb {
    database: Arc<Database>,
    /// Taken by each change, so that waiting ones hold a queue place and not a thread.
    turn: Arc<Mutex<()>>,
    path: PathBuf,
}

impl fmt::Debug for Redb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redb").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Redb {
    /// Opens a file, or makes an empty store if there is none. Blocks on the disk.
    ///
    /// # Errors
    /// [`OpenError`]: in use, of another format, damaged, or not readable and writable.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let path = path.into();
        let is_new = !path.exists();
        let database = Database::create(&path).map_err(|e| open_error(&path, e))?;
        match prepare(&database) {
            Ok(FORMAT) => {}
            Ok(found) => return Err(OpenError::Format { path, found }),
            Err(e) => return Err(OpenError::File { path, source: Box::new(e) }),
        }
        if is_new && let Err(source) = make_name_durable(&path) {
            return Err(OpenError::Directory { path, source });
        }
        Ok(Self { database: Arc::new(database), turn: Arc::default(), path })
    }

    async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Database) -> Result<T, ::redb::Error> + Send + 'static,
    ) -> Result<T, MetaError> {
        let database = Arc::clone(&self.database);
        let answer = spawn_blocking(move || question(&database)).await;
        match answer {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(e)) => Err(MetaError::Unavailable(self.blame(&e))),
            Err(e) => Err(MetaError::Unavailable(self.blame(&e))),
        }
    }

    async fn change<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&WriteTransaction, Revision) -> Result<T, Stop> + Send + 'static,
    ) -> Result<T, PutError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let database = Arc::clone(&self.database);
        // The change goes on to its end, and holds its turn, even if nobody waits for it any more.
        let answer = spawn_blocking(move || {
            let _turn = turn;
            in_transaction(&database, decide)
        });
        match answer.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Stop::Refused(refusal))) => Err(refusal),
            Ok(Err(Stop::Before(e))) => Err(PutError::Unavailable(self.blame(&e))),
            Ok(Err(Stop::AtCommit(e))) => Err(PutError::Unknown(self.blame(&e))),
            Err(e) => Err(PutError::Unknown(self.blame(&e))),
        }
    }

    fn blame(&self, error: &dyn fmt::Display) -> String {
        format!("{}: {error}; check the disk, then restart the daemon", self.path.display())
    }
}

/// Why a transaction changed nothing, or may have.
enum Stop {
    /// The caller's fault; nothing changed.
    Refused(PutError),
    /// The disk's fault, before the commit; nothing changed.
    Before(Box<::redb::Error>),
    /// The disk's fault, while committing; anything may be on it.
    AtCommit(CommitError),
}

impl<E: Into<::redb::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Before(Box::new(error.into()))
    }
}

/// Runs one change under the next revision and makes it durable.
fn in_transaction<T>(
    database: &Database,
    decide: impl FnOnce(&WriteTransaction, Revision) -> Result<T, Stop>,
) -> Result<T, Stop> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    let next = {
        let mut counters = transaction.open_table(COUNTERS)?;
        let last = counters.get(REVISION_KEY)?.map_or(0, |n| n.value());
        assert!(last < u64::MAX, "the revision space is used up");
        counters.insert(REVISION_KEY, last + 1)?;
        Revision(last + 1)
    };
    // Dropping the transaction on the way out takes the revision back with all the rest.
    let done = decide(&transaction, next)?;
    transaction.commit().map_err(Stop::AtCommit)?;
    Ok(done)
}

fn refuse(error: PutError) -> Stop {
    Stop::Refused(error)
}

/// Makes the tables if there are none; answers with the format of the file.
fn prepare(database: &Database) -> Result<u64, ::redb::Error> {
    let transaction = database.begin_write()?;
    let found = transaction.open_table(COUNTERS)?.get(FORMAT_KEY)?.map(|n| n.value());
    if let Some(format) = found {
        transaction.abort()?;
        return Ok(format);
    }
    transaction.open_table(COUNTERS)?.insert(FORMAT_KEY, FORMAT)?;
    transaction.open_table(ENTRIES)?;
    transaction.commit()?;
    Ok(FORMAT)
}

/// A new file survives a power loss only once its directory is durable too.
fn make_name_durable(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            let owner = owner::of_lock(&path).unwrap_or_else(|| "another process".to_owned());
            OpenError::InUse { path, owner }
        }
        other => OpenError::File { path, source: Box::new(other.into()) },
    }
}

#[async_trait]
impl Meta for Redb {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, MetaError> {
        key::check(key)?;
        let key = key.to_owned();
        self.read(move |database| {
            let entries = database.begin_read()?.open_table(ENTRIES)?;
            let found = entries.get(key.as_str())?;
            Ok(found.map(|row| {
                let (revision, value) = row.value();
                Versioned { value: Bytes::copy_from_slice(value), revision: Revision(revision) }
            }))
        })
        .await
    }

    async fn put_if(
        &self,
        key: &str,
        expected: Expect,
        value: Bytes,
    ) -> Result<Revision, PutError> {
        key::check(key)?;
        check_value(&value)?;
        let key = key.to_owned();
        self.change(move |transaction, revision| {
            let mut entries = transaction.open_table(ENTRIES)?;
            let current = entries.get(key.as_str())?.map(|row| Revision(row.value().0));
            expected.check(current).map_err(refuse)?;
            entries.insert(key.as_str(), (revision.0, value.as_ref()))?;
            Ok(revision)
        })
        .await
    }

    async fn delete_if(&self, key: &str, expected: Revision) -> Result<(), PutError> {
        key::check(key)?;
        let key = key.to_owned();
        self.change(move |transaction, _| {
            let mut entries = transaction.open_table(ENTRIES)?;
            let current = entries.get(key.as_str())?.map(|row| Revision(row.value().0));
            Expect::Revision(expected).check(current).map_err(refuse)?;
            entries.remove(key.as_str())?;
            Ok(())
        })
        .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, MetaError> {
        let start = start_of_list(prefix, after)?.map(str::to_owned);
        let prefix = prefix.to_owned();
        self.read(move |database| {
            let entries = database.begin_read()?.open_table(ENTRIES)?;
            let start = start.as_ref().map(String::as_str);
            let rows = entries.range::<&str>((start, Bound::Unbounded))?;
            let entries = rows
                .map(|row| {
                    let (key, row) = row?;
                    let (revision, value) = row.value();
                    Ok(Entry {
                        key: key.value().to_owned(),
                        value: Bytes::copy_from_slice(value),
                        revision: Revision(revision),
                    })
                })
                .take_while(|row| {
                    row.as_ref().map_or(true, |e: &Entry| e.key.starts_with(&prefix))
                });
            Page::collect(entries, limit)
        })
        .await
    }
}

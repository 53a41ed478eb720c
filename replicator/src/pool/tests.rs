pub(crate) mod kept;
pub(crate) mod mount;

use super::*;
use lockstep_core::id::VolumeId;
use mount::Mount;
use std::fs;
use tempfile::TempDir;

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("legal name")
}

fn config(dir: &Path) -> PoolConfig {
    PoolConfig {
        name: "default".into(),
        dir: dir.to_owned(),
        capacity_bytes: None,
        overcommit_percent: 100,
        reserve_bytes: 0,
    }
}

pub(crate) fn open(dir: &Path) -> Result<Pool, PoolError> {
    Pool::open(&config(dir), Uuid::from_u128(1), &node("a"))
}

fn files() -> Vec<Initial> {
    let meta = bytes::Bytes::from_static(b"superblock");
    vec![
        Initial {
            name: "meta",
            len: 8192,
            taking: Taking::Now,
            source: None,
            writes: vec![(4096, meta)],
        },
        Initial { name: "data", len: 1 << 30, taking: Taking::Later, source: None, writes: vec![] },
    ]
}

#[test]
fn a_pool_is_made_once_and_found_again() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("deep/pool");
    let uuid = open(&path).unwrap().uuid;
    assert_eq!(open(&path).unwrap().uuid, uuid);
}

#[test]
fn a_pool_has_one_owner_at_a_time() {
    let dir = TempDir::new().unwrap();
    let first = open(dir.path()).unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    drop(first);
    open(dir.path()).unwrap();
}

#[test]
fn a_pool_of_somebody_else_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()).unwrap());
    let named = PoolConfig { name: "fast".into(), ..config(dir.path()) };
    let one = Uuid::from_u128(1);
    let cases = [
        (Pool::open(&config(dir.path()), one, &node("b")), "belongs to node a"),
        (Pool::open(&config(dir.path()), Uuid::from_u128(2), &node("a")), "belongs to cluster"),
        (Pool::open(&named, one, &node("a")), "belongs to pool default"),
    ];
    for (result, wanted) in cases {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn a_directory_with_other_things_does_not_become_a_pool() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("thesis.tex"), "x").unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("thesis.tex"), "{error}");
}

#[test]
fn a_garbled_or_future_identity_is_refused() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("pool.json"), "{").unwrap();
    assert!(matches!(open(dir.path()), Err(PoolError::BadIdentity { .. })));
    fs::write(dir.path().join("pool.json"), r#"{"version": 99, "new": true}"#).unwrap();
    assert!(matches!(open(dir.path()), Err(PoolError::FromTheFuture { found: 99, .. })));
}

#[test]
fn a_replica_is_made_found_and_deleted() {
    let dir = TempDir::new().unwrap();
    let pool = open(dir.path()).unwrap();
    let volume = VolumeId(Uuid::from_u128(7));
    let about = About { volume_name: "db".to_owned(), thick: true };
    let made = pool.create(volume, about, &files()).unwrap();
    assert_eq!(fs::metadata(made.dir.join("data")).unwrap().len(), 1 << 30);
    assert_eq!(&fs::read(made.dir.join("meta")).unwrap()[4096..4106], b"superblock");
    assert!(space::bytes_used(&made.dir) < 1 << 20, "the data file is sparse");
    assert_eq!(pool.scan().unwrap(), vec![made]);
    assert!(pool.delete(volume).unwrap());
    assert!(!pool.delete(volume).unwrap());
    assert_eq!(pool.scan().unwrap(), vec![]);
}

#[test]
fn what_a_crash_left_behind_is_removed() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()).unwrap());
    let unfinished = dir.path().join("replicas/.new-x");
    let dying = dir.path().join("trash/y");
    let strange = dir.path().join("replicas/strange");
    for path in [&unfinished, &dying, &strange] {
        fs::create_dir(path).unwrap();
        fs::write(path.join("data"), "x").unwrap();
    }
    let pool = open(dir.path()).unwrap();
    assert!(!unfinished.exists() && !dying.exists());
    assert!(strange.exists(), "what is not ours is left alone");
    assert_eq!(pool.scan().unwrap(), vec![]);
}

#[test]
fn space_is_promised_once() {
    let dir = TempDir::new().unwrap();
    let sized = PoolConfig { capacity_bytes: Some(1000), ..config(dir.path()) };
    let pool = Pool::open(&sized, Uuid::from_u128(1), &node("a")).unwrap();
    let space = pool.space(100, 400).unwrap();
    assert_eq!((space.capacity, space.reserved, space.room()), (1000, 300, 600));
    drop(pool);
    let space = open(dir.path()).unwrap().space(4096, 8192).unwrap();
    assert_eq!(space.room(), space.free - 4096, "without a capacity, what there is");
}

#[test]
fn a_read_only_pool_is_refused() {
    let Some(mount) = Mount::tmpfs("size=1m") else {
        eprintln!("SKIPPED a_read_only_pool_is_refused: mounting needs root");
        return;
    };
    drop(open(mount.path()).unwrap());
    mount.remount("ro");
    let error = open(mount.path()).unwrap_err();
    assert!(matches!(error, PoolError::ReadOnly { .. }), "{error}");
}

#[test]
fn a_full_pool_says_how_much_is_missing() {
    let Some(mount) = Mount::tmpfs("size=256k") else {
        eprintln!("SKIPPED a_full_pool_says_how_much_is_missing: mounting needs root");
        return;
    };
    let pool = open(mount.path()).unwrap();
    let big = Initial {
        name: "tags",
        len: 1 << 20,
        taking: Taking::IfItCan,
        source: None,
        writes: vec![],
    };
    let error = pool.create(VolumeId(Uuid::from_u128(7)), About::default(), &[big]).unwrap_err();
    assert!(matches!(error, PoolError::Full { needed_bytes: 1_048_576, .. }), "{error}");
    assert_eq!(pool.scan().unwrap(), vec![], "nothing is left of it");
}

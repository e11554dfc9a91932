//! The lease file: appended at each group commit, written anew when it has become much longer
//! than its contents.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::journal::{self, Damage};
use super::{Change, Lease};

/// A file longer than this is refused: it is not one of ours.
const MAX_FILE: u64 = 1 << 30;
/// The file is written anew when it holds this many changes beyond four for each lease.
const SLACK: usize = 4096;

/// The durable set of leases.
///
/// An error of [`Self::commit`] means: not on disk, promise nothing. The next commit then writes
/// the whole file anew, because after a failed write or `fdatasync` nobody knows what the old one
/// holds.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    /// What the file holds, or would hold if the last commit had not failed.
    leases: BTreeMap<Ipv4Addr, Lease>,
    /// Changes in the file.
    written: usize,
    /// Appended, but not yet written.
    pending: Vec<Change>,
    failed: bool,
}

/// A store and what was found in it.
#[derive(Debug)]
pub struct Opened {
    pub store: Store,
    pub leases: Vec<Lease>,
    /// Octets of a torn last record that were cut off.
    pub torn: u64,
}

/// Why a lease file could not be opened or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("cannot open the lease file {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("the lease file {path} is in use by another server")]
    Locked { path: PathBuf },
    #[error("{path} is not a lease file of netloom; move it away or name another one")]
    Foreign { path: PathBuf },
    #[error("the lease file {path} is of version {version}, which this server does not know")]
    Version { path: PathBuf, version: String },
    /// Bits have changed on disk, or somebody edited it.
    #[error(
        "the lease file {path} is damaged at offset {offset}: {what}. Leases after it may be in \
         use; restore the file, or move it away and let clients ask anew"
    )]
    Damaged { path: PathBuf, offset: usize, what: String },
    #[error("cannot write the lease file {path}")]
    Write { path: PathBuf, source: io::Error },
}

impl Store {
    /// Opens the file, or makes it; cuts off a torn tail. The file is locked while it is open.
    ///
    /// # Errors
    /// The file is not changed when it is damaged or foreign.
    pub fn open(path: &Path) -> Result<Opened, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let mut file = lock(path)?;
        if file.metadata().map_err(open)?.len() > MAX_FILE {
            return Err(StoreError::Foreign { path: path.to_owned() });
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(open)?;
        let scan = journal::scan(&bytes).map_err(|damage| {
            let path = path.to_owned();
            match damage {
                Damage::NotALeaseFile => StoreError::Foreign { path },
                Damage::Version(version) => StoreError::Version { path, version },
                Damage::Record { offset, what } => StoreError::Damaged { path, offset, what },
            }
        })?;
        let written = scan.changes.len();
        let mut leases = BTreeMap::new();
        apply(&mut leases, scan.changes);
        let mut store = Self {
            path: path.to_owned(),
            file,
            leases,
            written,
            pending: Vec::new(),
            failed: false,
        };
        let torn = bytes.len() - scan.good;
        if scan.good == 0 {
            store.rewrite()?;
        } else {
            store.cut(scan.good, torn > 0).map_err(|source| store.write_error(source))?;
        }
        let leases = store.leases.values().cloned().collect();
        Ok(Opened { store, leases, torn: u64::try_from(torn).unwrap_or(u64::MAX) })
    }

    /// Notes changes for the next commit.
    pub fn append(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.pending.extend(changes);
    }

    /// Makes everything appended durable. Returns when it is on disk.
    ///
    /// # Errors
    /// Nothing of it may be promised to anybody; it is tried again with the next commit.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        let changes = std::mem::take(&mut self.pending);
        if changes.is_empty() && !self.failed {
            return Ok(());
        }
        let count = changes.len();
        let mut buf = Vec::new();
        let encoded = journal::append(&mut buf, &changes);
        apply(&mut self.leases, changes);
        let too_long = self.written + count > self.leases.len() * 4 + SLACK;
        if self.failed || too_long || encoded.is_err() {
            return self.rewrite();
        }
        let result = self.file.write_all(&buf).and_then(|()| self.file.sync_data());
        self.failed = result.is_err();
        self.written += count;
        result.map_err(|source| self.write_error(source))
    }

    /// The last commit failed and no later one has succeeded.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    fn cut(&mut self, good: usize, torn: bool) -> io::Result<()> {
        let good = u64::try_from(good).map_err(io::Error::other)?;
        if torn {
            self.file.set_len(good)?;
            self.file.sync_data()?;
        }
        self.file.seek(SeekFrom::Start(good)).map(drop)
    }

    /// Writes the whole set to a new file and puts it in the old one's place.
    fn rewrite(&mut self) -> Result<(), StoreError> {
        let result = self.replace();
        self.failed = result.is_err();
        match result {
            Ok(file) => {
                self.file = file;
                self.written = self.leases.len();
                Ok(())
            }
            Err(source) => Err(self.write_error(source)),
        }
    }

    fn replace(&self) -> io::Result<File> {
        let puts: Vec<Change> = self.leases.values().cloned().map(Change::Put).collect();
        let mut buf = journal::MAGIC.to_vec();
        journal::append(&mut buf, &puts)?;
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let name = PathBuf::from(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let result = options.open(&name).and_then(|mut file| {
            // Locked before it has the name under which another server would find it.
            file.try_lock().map_err(io::Error::from)?;
            file.write_all(&buf)?;
            file.sync_all()?;
            std::fs::rename(&name, &self.path)?;
            sync_directory(&self.path)?;
            Ok(file)
        });
        if result.is_err() {
            // Best effort: it would be written over anyway.
            let _ = std::fs::remove_file(&name);
        }
        result
    }

    fn write_error(&self, source: io::Error) -> StoreError {
        StoreError::Write { path: self.path.clone(), source }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Closing is not enough: a process that another thread is just starting has a copy of the
        // descriptor until it executes its program. A lock that cannot be released ends with it.
        let _ = self.file.unlock();
    }
}

fn apply(leases: &mut BTreeMap<Ipv4Addr, Lease>, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Put(lease) => {
                leases.insert(lease.ip, lease);
            }
            Change::Remove(ip) => {
                leases.remove(&ip);
            }
        }
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let error = |source| StoreError::Open { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    loop {
        let file = options.open(path).map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { path: path.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        // Its owner may have put a new file in its place before we got the lock.
        let (opened, named) = (file.metadata().map_err(error)?, std::fs::metadata(path));
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino())) {
            return Ok(file);
        }
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

//! 2 MiB pages for DPDK: set for the time of a run, put back after it.

use std::fs;

use anyhow::{Context, bail};

const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// Pages set aside; dropping it gives back those that were not there before.
#[derive(Debug)]
pub(super) struct Hugepages {
    before: u64,
}

impl Hugepages {
    /// Makes sure that at least `pages` are free.
    ///
    /// # Errors
    /// When the kernel has no such pages or too little memory in one piece.
    pub(super) fn reserve(pages: u64) -> anyhow::Result<Hugepages> {
        let before = read(COUNT).context("this kernel has no 2 MiB pages")?;
        let missing = pages.saturating_sub(read(FREE)?);
        // A run that is killed is put in order by `cargo xtask clean`.
        netns_tests::record::run().hugepages(Some(before));
        let reserved = Hugepages { before };
        if missing > 0 {
            fs::write(COUNT, (before + missing).to_string()).context(COUNT)?;
        }
        let free = read(FREE)?;
        if free < pages {
            bail!(
                "only {free} of {pages} pages of 2 MiB could be set aside: memory is short or fragmented"
            );
        }
        Ok(reserved)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        let _ = fs::write(COUNT, self.before.to_string());
        netns_tests::record::run().hugepages(None);
    }
}

fn read(path: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(path).context(path.to_owned())?;
    text.trim().parse().context(path.to_owned())
}

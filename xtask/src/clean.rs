//! Remove what an interrupted run of the lab left: by the record that each run keeps, never by
//! guessing names.

use crate::phase::phase;

pub(crate) fn clean() -> anyhow::Result<()> {
    let mut removed = Vec::new();
    phase("Runs that did not end by themselves", || {
        removed = netns_tests::record::remove_stale()?;
        Ok(())
    })?;
    for what in &removed {
        println!("removed {what}");
    }
    if removed.is_empty() {
        println!("nothing was left");
    }
    Ok(())
}

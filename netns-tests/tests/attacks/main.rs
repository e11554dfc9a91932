//! Hostile guests against a running vswitchd: each attack gets a clear trace at the attacker's own port,
//! and a probe of 1,000 frames per second between two other guests loses nothing meanwhile.

/// Makes two tests of each function: one with split rings, one with packed ones.
macro_rules! on_both_layouts {
    ($($name:ident)*) => { $(
        mod $name {
            use netns_tests::frontend::hostile::Layout;

            #[test]
            fn split() -> anyhow::Result<()> {
                super::$name(Layout::Split)
            }

            #[test]
            fn packed() -> anyhow::Result<()> {
                super::$name(Layout::Packed)
            }
        }
    )* };
}

mod control;
mod documentation;
mod flood;
mod foreign;
mod header;
mod log;
mod memory;
mod packed;
mod protocol;
mod race;
mod rings;
mod scene;
mod vanish;

//! The kernel command line: words, some of them `key=value`.

/// Offset of `hdr.cmd_line_ptr` in `boot_params`.
const CMD_LINE_PTR: u64 = 0x228;
const LONGEST: usize = 2048;

pub struct CommandLine(&'static str);

impl CommandLine {
    /// Reads the address that the boot protocol passes.
    pub fn from_boot_params(boot_params: u64) -> Self {
        let at = (boot_params + CMD_LINE_PTR) as *const u32;
        // SAFETY: the VMM passes a whole zero page, below 4 GiB and mapped.
        let start = unsafe { at.read_unaligned() } as usize as *const u8;
        if start.is_null() {
            return Self("");
        }
        let mut len = 0;
        // SAFETY: the line ends with NUL and is not longer than that.
        while len < LONGEST && unsafe { start.add(len).read() } != 0 {
            len += 1;
        }
        // SAFETY: as above; nobody writes there any more.
        let bytes = unsafe { core::slice::from_raw_parts(start, len) };
        Self(core::str::from_utf8(bytes).unwrap_or(""))
    }

    fn words(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.0.split_ascii_whitespace()
    }

    pub fn has(&self, word: &str) -> bool {
        self.words().any(|other| other == word)
    }

    /// Every value of `key`, in order; one word may list several, separated by commas.
    pub fn values(&self, key: &'static str) -> impl Iterator<Item = &'static str> + use<> {
        self.words()
            .filter_map(move |word| word.strip_prefix(key)?.strip_prefix('='))
            .flat_map(|list| list.split(','))
            .filter(|value| !value.is_empty())
    }

    pub fn value(&self, key: &'static str) -> Option<&'static str> {
        self.values(key).next()
    }

    pub fn number(&self, key: &'static str) -> Option<u32> {
        self.value(key)?.parse().ok()
    }
}

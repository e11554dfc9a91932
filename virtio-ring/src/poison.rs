//! SIGBUS on guest memory.
//!
//! Touching a page behind the end of a file raises SIGBUS, and a frontend may shrink its file at any time. A static table, read
//! without locks by the signal handler, knows every mapped region. The handler puts anonymous memory in the
//! region's place, so that the access completes, and marks the region. A fault elsewhere, or a signal that somebody sent, goes to the
//! handler that was there before.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Regions that can be mapped at a time: 32 for each of 1024 ports.
const SLOTS: usize = 32 * 1024;

/// `start` is `FREE` while nobody owns the slot. An owner writes `end` first, so that a reader which sees the same
/// `start` before and after reading `end` has a pair that belongs together, or one of an older mapping at the same start, which
/// then contains no address of a third region that is mapped now.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    poisoned: AtomicBool,
}

const FREE: usize = usize::MAX;

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(FREE),
        end: AtomicUsize::new(0),
        poisoned: AtomicBool::new(false),
    }
}; SLOTS];
/// Slots at and above this were never used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Serializes registration; the handler never takes it.
static REGISTER: Mutex<()> = Mutex::new(());
/// The action before ours; an address, because the handler may not touch a lock.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// A region's place in the table. Frees itself.
#[derive(Debug)]
pub(crate) struct Registration {
    slot: usize,
}

impl Registration {
    /// Makes the range known to the handler, which is installed by the first call. `None` when the table is full.
    ///
    /// # Safety
    /// `start..start+len` must be a shared mapping of whole pages that the caller owns and that may be replaced by anonymous memory
    /// at any time, until the registration is dropped.
    pub(crate) unsafe fn new(start: usize, len: usize) -> Option<Self> {
        install();
        let _guard = REGISTER.lock().unwrap_or_else(PoisonError::into_inner);
        let used = USED.load(Ordering::Relaxed);
        let slot = (0..used)
            .find(|&slot| TABLE[slot].start.load(Ordering::Relaxed) == FREE)
            .or((used < SLOTS).then_some(used))?;
        let entry = &TABLE[slot];
        entry.poisoned.store(false, Ordering::Relaxed);
        entry.end.store(start + len, Ordering::Release);
        entry.start.store(start, Ordering::Release);
        if slot == used {
            USED.store(used + 1, Ordering::Release);
        }
        Some(Self { slot })
    }

    /// The handler has replaced the region's memory.
    #[inline]
    pub(crate) fn is_poisoned(&self) -> bool {
        TABLE[self.slot].poisoned.load(Ordering::Relaxed)
    }

    /// As if the handler had seen a fault: for system calls that report one as EFAULT.
    pub(crate) fn poison(&self) {
        TABLE[self.slot].poisoned.store(true, Ordering::Relaxed);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _guard = REGISTER.lock().unwrap_or_else(PoisonError::into_inner);
        TABLE[self.slot].start.store(FREE, Ordering::Release);
    }
}

fn install() {
    PREVIOUS.get_or_init(|| {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            on_sigbus;
        // SAFETY: all-zero is a valid sigaction (default action, empty mask).
        let mut previous: libc::sigaction = unsafe { core::mem::zeroed() };
        // SAFETY: as above.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: both structures live; the handler is async-signal-safe (atomics and one mmap). The action that stood before
        // is read first, so that it is known when the first fault comes; SIGBUS is a valid signal, so neither call fails.
        unsafe {
            libc::sigaction(libc::SIGBUS, core::ptr::null(), &raw mut previous);
            libc::sigaction(libc::SIGBUS, &raw const action, core::ptr::null_mut());
        }
        previous
    });
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // A positive code is the kernel's report of a fault; others were sent by a process.
    if code <= 0 || !replace(address) {
        forward(signal, info, context);
    }
}

/// Puts anonymous memory in place of the region with `address`. False when there is none, or no memory.
fn replace(address: usize) -> bool {
    let used = USED.load(Ordering::Acquire).min(SLOTS);
    for slot in &TABLE[..used] {
        let start = slot.start.load(Ordering::Acquire);
        if start > address {
            continue;
        }
        let end = slot.end.load(Ordering::Acquire);
        fence(Ordering::Acquire);
        if address >= end || slot.start.load(Ordering::Acquire) != start {
            continue;
        }
        // Marked first: whoever sees the anonymous zeros can see the mark.
        slot.poisoned.store(true, Ordering::SeqCst);
        // SAFETY: errno's address is valid; it is restored so that the interrupted code does not see ours.
        let errno = unsafe { *libc::__errno_location() };
        // SAFETY: the range is a registered mapping, whose owner lets the handler replace it; mmap is a bare system call.
        let mapped = unsafe {
            libc::mmap(
                core::ptr::with_exposed_provenance_mut(start),
                end - start,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
        return mapped != libc::MAP_FAILED;
    }
    false
}

fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let default = || {
        // SAFETY: all-zero is the default action. The instruction faults again and ends the process as it would have
        // without us; a sent signal is raised again for the same end.
        unsafe {
            let action: libc::sigaction = core::mem::zeroed();
            libc::sigaction(signal, &raw const action, core::ptr::null_mut());
            if (*info).si_code <= 0 {
                libc::raise(signal);
            }
        }
    };
    match PREVIOUS.get() {
        Some(previous) if previous.sa_sigaction == libc::SIG_IGN => {
            // SAFETY: the kernel passes a valid siginfo.
            if unsafe { (*info).si_code } > 0 {
                default(); // A fault cannot be ignored: the instruction would fault for ever.
            }
        }
        Some(previous) if previous.sa_sigaction != libc::SIG_DFL => {
            if previous.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: an action with SA_SIGINFO holds a function of this type.
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    unsafe { core::mem::transmute(previous.sa_sigaction) };
                handler(signal, info, context);
            } else {
                // SAFETY: an action without SA_SIGINFO that is neither default nor ignore holds a function of this type.
                let handler: extern "C" fn(libc::c_int) =
                    unsafe { core::mem::transmute(previous.sa_sigaction) };
                handler(signal);
            }
            // SAFETY: the kernel passes a valid siginfo; asking for the action changes nothing. A handler that restores the
            // default (Rust's own does) counts on the fault coming again, which a sent signal does not.
            unsafe {
                let mut now: libc::sigaction = core::mem::zeroed();
                libc::sigaction(signal, core::ptr::null(), &raw mut now);
                if (*info).si_code <= 0 && now.sa_sigaction == libc::SIG_DFL {
                    libc::raise(signal);
                }
            }
        }
        _ => default(),
    }
}

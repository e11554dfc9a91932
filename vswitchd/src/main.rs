//! `vswitchd`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    vswitchd::daemon::main()
}

//! Connects to a Unix socket and says how that went; for guests that have nothing else to do so.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::Parser;

/// Connect to a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "socket-probe")]
struct Cli {
    socket: PathBuf,
}

fn main() {
    match UnixStream::connect(Cli::parse().socket) {
        Ok(_) => println!("connected"),
        Err(error) => println!("{}", error.kind()),
    }
}

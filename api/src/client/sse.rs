//! Server-sent events (HTML Living Standard §9.2.6), as far as the API uses them: `data` lines,
//! comments, blank lines between events.

use std::collections::VecDeque;

/// Longest event, in bytes.
const MAX_EVENT: usize = 1 << 20;

/// Bytes in, the `data` of events out.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    data: String,
    ready: VecDeque<String>,
}

impl Parser {
    /// Takes the next bytes of the stream, cut anywhere.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        for &byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    self.end_of_line(&line)?;
                }
                b'\r' => {}
                byte if self.line.len() < MAX_EVENT => self.line.push(byte),
                _ => return Err("an event is too long"),
            }
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> Option<String> {
        self.ready.pop_front()
    }

    fn end_of_line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if line.is_empty() {
            if !self.data.is_empty() {
                self.ready.push_back(std::mem::take(&mut self.data));
            }
            return Ok(());
        }
        let line = str::from_utf8(line).map_err(|_| "an event is not UTF-8")?;
        if let Some(value) = line.strip_prefix("data:") {
            if self.data.len() + value.len() > MAX_EVENT {
                return Err("an event is too long");
            }
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(value.strip_prefix(' ').unwrap_or(value));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_however_the_bytes_are_cut() {
        let stream =
            b": keep-alive\n\nid: 7\ndata: {\"a\":1}\n\ndata:one\r\ndata: two\r\n\r\nevent: x\n\n";
        for size in 1..stream.len() {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for piece in stream.chunks(size) {
                parser.feed(piece).expect("well-formed");
                events.extend(std::iter::from_fn(|| parser.next()));
            }
            assert_eq!(events, ["{\"a\":1}", "one\ntwo"], "pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut parser = Parser::default();
        let line = vec![b'x'; 1 << 16];
        assert!((0..17).any(|_| parser.feed(&line).is_err()));
        assert!(Parser::default().feed(b"data: \xff\n").is_err());
    }
}

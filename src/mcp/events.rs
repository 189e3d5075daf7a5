//! Streams of events, measured as they flow by: what is too long is cut off before it is gathered.

use super::http::Fault;
use bytes::Bytes;
use futures::{Stream, StreamExt};

/// What is told of a stream of events as it flows by.
pub(super) enum Measured {
    Bytes(usize),
    TooLong,
}

/// Ends a stream of events with an error at one of more than `limit` bytes, before it is gathered.
pub(super) fn bounded<S>(
    chunks: S,
    limit: usize,
    mut tell: impl FnMut(Measured) + Send + 'static,
) -> impl Stream<Item = Result<Bytes, Fault>> + Send + 'static
where
    S: Stream<Item = Result<Bytes, Fault>> + Send + 'static,
{
    let mut event = Event::default();
    chunks.map(move |chunk| {
        let chunk = chunk?;
        tell(Measured::Bytes(chunk.len()));
        if event.longest(&chunk) > limit {
            tell(Measured::TooLong);
            return Err(Fault::Oversize { limit });
        }
        Ok(chunk)
    })
}

/// How much of the event at hand was seen, and how much of its line.
#[derive(Default)]
struct Event {
    bytes: usize,
    line: usize,
    comment: bool,
    returned: bool,
}

impl Event {
    /// The size of the largest event that is, or ends, in this piece. Comments do not count:
    /// they keep a connection alive and are dropped line by line.
    fn longest(&mut self, piece: &[u8]) -> usize {
        let mut longest = self.bytes;
        for &byte in piece {
            let half = byte == b'\n' && self.returned;
            self.returned = byte == b'\r';
            match byte {
                _ if half => {}
                b'\n' | b'\r' => {
                    if self.line == 0 {
                        self.bytes = 0;
                    } else if self.comment {
                        self.bytes -= self.line;
                    }
                    (self.line, self.comment) = (0, false);
                }
                _ => {
                    self.comment |= self.line == 0 && byte == b':';
                    self.line += 1;
                    self.bytes += 1;
                    longest = longest.max(self.bytes);
                }
            }
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest(pieces: &[&str]) -> usize {
        let mut event = Event::default();
        pieces.iter().map(|piece| event.longest(piece.as_bytes())).max().unwrap_or_default()
    }

    #[test]
    fn an_event_is_measured_over_its_lines_and_ends_at_an_empty_one() {
        assert_eq!(longest(&["data: 12\n\ndata: 1\n\n"]), 8);
        assert_eq!(longest(&["data: 12\ndata: 34\n", "data: 56\n\n"]), 24);
        assert_eq!(longest(&["data: 12\r\ndata: 34\r", "\ndata: 56\r\n\r\n", "data: 7"]), 24);
        assert_eq!(longest(&["data: 12\r\rdata: 34\r\r"]), 8);
    }

    #[test]
    fn comments_that_keep_a_stream_alive_do_not_add_up() {
        assert_eq!(longest(&[": ping\n: ping\n: ping\n"]), 6);
        assert_eq!(longest(&["data: 12\n: ping\ndata: 34\n\n"]), 16);
    }
}

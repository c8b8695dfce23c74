//! Transports: how messages get from one process of a team to another.
//!
//! A [`Transport`] is small on purpose: messages under tags, posted and taken without waiting. What is sent, when, and
//! how long anybody waits is the team's business. [`channels`] is one within a process, in which several teams stand
//! for several processes; [`mpi`] is one between processes and hosts (cargo feature `mpi`).

#[cfg(feature = "mpi")]
pub mod mpi;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

/// Moves messages between the processes of a team. Messages from one process to another under one tag arrive whole,
/// once and in order. Any thread may call any function at any time.
pub trait Transport: Send + Sync {
    /// How many processes there are.
    fn processes(&self) -> usize;

    /// Which of them this is.
    fn process(&self) -> usize;

    /// Hands over a message for a process, another than this one. Does not wait for it to be taken.
    ///
    /// # Errors
    /// The transport's words.
    fn post(&self, to: usize, tag: u32, bytes: &[u8]) -> Result<(), String>;

    /// Takes the next message of a process under a tag, if one has come, and puts it in place of what `into` holds.
    ///
    /// # Errors
    /// The transport's words.
    fn take(&self, from: usize, tag: u32, into: &mut Vec<u8>) -> Result<bool, String>;

    /// Whether all that was posted under a tag will arrive even if this process does nothing about it; until then it calls
    /// this again and again.
    ///
    /// # Errors
    /// The transport's words.
    fn is_settled(&self, tag: u32) -> Result<bool, String>;
}

/// Messages that wait, by sender and tag.
type Mailbox = HashMap<(usize, u32), VecDeque<Vec<u8>>>;

/// One end of a transport within a process.
struct Channels {
    boxes: Arc<Vec<Mutex<Mailbox>>>,
    process: usize,
}

/// The ends of a transport between `n` teams of one process.
pub fn channels(n: usize) -> Vec<Arc<dyn Transport>> {
    let boxes: Arc<Vec<Mutex<Mailbox>>> = Arc::new((0..n).map(|_| Mutex::default()).collect());
    (0..n).map(|process| -> Arc<dyn Transport> { Arc::new(Channels { boxes: boxes.clone(), process }) }).collect()
}

impl Channels {
    fn mailbox(&self, of: usize) -> Result<MutexGuard<'_, Mailbox>, String> {
        let mailbox = self.boxes.get(of).ok_or_else(|| format!("there is no process {of}"))?;
        Ok(mailbox.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl Transport for Channels {
    fn processes(&self) -> usize {
        self.boxes.len()
    }

    fn process(&self) -> usize {
        self.process
    }

    fn post(&self, to: usize, tag: u32, bytes: &[u8]) -> Result<(), String> {
        self.mailbox(to)?.entry((self.process, tag)).or_default().push_back(bytes.to_vec());
        Ok(())
    }

    fn take(&self, from: usize, tag: u32, into: &mut Vec<u8>) -> Result<bool, String> {
        let Some(bytes) = self.mailbox(self.process)?.get_mut(&(from, tag)).and_then(VecDeque::pop_front) else {
            return Ok(false);
        };
        *into = bytes;
        Ok(true)
    }

    fn is_settled(&self, _tag: u32) -> Result<bool, String> {
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_sender_and_a_tag_stay_in_order() {
        let ends = channels(3);
        ends[0].post(2, 1, b"a").unwrap();
        ends[1].post(2, 1, b"b").unwrap();
        ends[0].post(2, 7, b"c").unwrap();
        ends[0].post(2, 1, b"").unwrap();
        let mut got = vec![9; 9];
        assert!(ends[2].take(0, 1, &mut got).unwrap() && got == b"a");
        assert!(ends[2].take(0, 1, &mut got).unwrap() && got.is_empty());
        assert!(!ends[2].take(0, 1, &mut got).unwrap());
        assert!(ends[2].take(0, 7, &mut got).unwrap() && got == b"c");
        assert!(ends[2].take(1, 1, &mut got).unwrap() && got == b"b");
        assert!(ends[0].post(3, 0, b"").unwrap_err().contains("no process 3"));
        assert_eq!((ends[1].processes(), ends[1].process()), (3, 1));
    }
}
